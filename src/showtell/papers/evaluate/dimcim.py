"""DIMCIM: A Quantitative Evaluation Framework for Default-mode Diversity and Generalization in Text-to-Image Generative
Models. Teotia, Ross, Ullrich, Chopra, Romero-Soriano, Hall, Muckley, 2025, arXiv 2506.05108

Does a model vary what it was not told, and can it show what it is told? Images for a prompt that leaves an attribute
open, and for the same prompt with it, are asked which of the competing attributes they show; no references are needed.

Faithful: concepts, types and attributes, coarse and dense prompts, 30 images a prompt, the attribute-concept score S
in [-1, 1], DIM = 1 - mean |S| on coarse prompts, CIM = mean S on dense ones, failures both ways, the same DIM of any
images (a training set's). S compares attributes in pairs, as the catalogue reconstructs it: the paper's own sum was not
to be had. The question is VQAScore's. COCO-DIMCIM's prompts, by a language model, can be given as `contexts`.
Scaled down: the models are one miniature generator whose prompts are rewritten, so that how often it leaves a colour to
chance, ignores the one it is told, or never shows one, is planted; they take their images from 12 of each colour and
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from showtell.measure.curation import entropy
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.scores import read
from showtell.measure.statistics import spearman
from showtell.measure.vqa import QUESTION, vqa_table
from showtell.pictures import to_pil
from showtell.world import Scene, SceneObject, draw
from showtell.world.language.english import indefinite

EXAMPLE = """
import showtell
from showtell.papers.evaluate.dimcim import asking, dimcim

judge = showtell.load("Salesforce/blip2-flan-t5-xl")
bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
concepts = {"dog": {"colour": ["brown", "black", "white"]}}
report = dimcim(lambda prompts, seed: bridge.generate(prompts, seed=seed), asking(judge), concepts,
                contexts=["{} on the table"], images=2)
print(report.dim(), report.cim(), [row.attribute for row in report.never()])
"""

Make = Callable[[list[str], int], Any]  # prompts and a seed -> an image for each
Ask = Callable[[Any, list[str]], np.ndarray]  # images and texts -> how likely each shows each, (images, texts)
Concepts = Mapping[str, Mapping[str, Sequence[str]]]  # concept -> type of attribute -> attributes


@dataclass(frozen=True)
class Row:
    """default, asked: the attribute's score in [-1, 1] on coarse prompts, and on those that ask for it."""

    concept: str
    kind: str
    attribute: str
    default: float
    asked: float


@dataclass(frozen=True)
class Report:
    rows: list[Row]

    def dim(self, concept: str | None = None) -> float:
        """Does-it metric: 1 is a balanced default, 0 one attribute always."""
        return 1 - float(np.mean([abs(row.default) for row in self.rows if concept in (None, row.concept)]))

    def cim(self, concept: str | None = None) -> float:
        """Can-it metric: 1 where what is asked for always shows, -1 where it never does."""
        return float(np.mean([row.asked for row in self.rows if concept in (None, row.concept)]))

    def never(self, low: float = 0.0) -> list[Row]:
        """Attributes that show less than the competing ones although they are asked for."""
        return [row for row in self.rows if row.asked < low]

    def only_by_default(self, high: float = 0.5, low: float = 0.5) -> list[Row]:
        """Attributes that show by default and are missed when asked for."""
        return [row for row in self.rows if row.default > high and row.asked < low]

    def only_when_asked(self, low: float = -0.5, high: float = 0.5) -> list[Row]:
        """Attributes that show when asked for and never by default."""
        return [row for row in self.rows if row.default < low and row.asked > high]


def attribute_scores(values: np.ndarray) -> np.ndarray:
    """How often each attribute beats each competing one, (attributes,) in [-1, 1]; values: (images, attributes)."""
    wins = 2.0 * (values[:, :, None] > values[:, None, :]) - 1
    count = values.shape[1]
    return (wins.sum(2) + 1).mean(0) / (count - 1)  # less the comparison with itself, which is lost


def asking(judge: Any, question: str = QUESTION) -> Ask:
    """Asks a bridge that answers (`showtell.measure.vqa.vqa_table`)."""
    return lambda images, texts: vqa_table(judge, images, texts, question)


def dimcim(
    make: Make, ask: Ask, concepts: Concepts, contexts: Sequence[str] = ("{}",), images: int = 30, seed: int = 0
) -> Report:
    """The report on a generator. contexts: sentences with {} where the concept goes; images: for each prompt."""
    rows = []
    for concept, kinds in concepts.items():
        coarse = make([context.format(indefinite(concept)) for context in contexts for _ in range(images)], seed)
        for kind, attributes in kinds.items():
            texts = [indefinite(f"{attribute} {concept}") for attribute in attributes]
            default = attribute_scores(ask(coarse, texts))
            for i, text in enumerate(texts):
                dense = make([context.format(text) for context in contexts for _ in range(images)], seed + 1 + i)
                asked = attribute_scores(ask(dense, texts))[i]
                rows.append(Row(concept, kind, attributes[i], float(default[i]), float(asked)))
    return Report(rows)


Shown = tuple[str, np.ndarray]  # of an image: the colour that the judge sees, how likely it shows each, (colours,)
# Of each model: the share of default images in the concept's own colour, and of asked-for colours that are ignored.
SKEWS, IGNORED = (0.0, 0.25, 0.5, 0.75, 1.0), (0.45, 0.15, 0.6, 0.0, 0.3)
COLOURS, SHAPES, IMAGES = ("red", "blue", "green", "yellow", "purple"), ("ring", "square", "heart", "cross"), 30
EACH = 12  # different images of each colour and shape
MISSING = ((1, "ring", "purple"), (4, "heart", "green"))  # model, concept, what it never shows
CLEAN = 3  # the model that shows whatever it is asked for


def planted(model: int, prompt: str, rng: np.random.Generator) -> tuple[str, str]:
    """(colour, shape) that a model shows for "a ring" or "a red ring"."""
    *named, shape = prompt.split()[1:]
    colour = str(rng.choice(COLOURS))
    if not named:
        return (COLOURS[SHAPES.index(shape)] if rng.random() < SKEWS[model] else colour), shape
    if rng.random() >= IGNORED[model]:
        colour = named[0]
    return (COLOURS[0] if (model, shape, colour) in MISSING else colour), shape


def experiment(lab: Lab) -> list[Comparison]:
    unet, ask, models = lab.base("unet"), asking(lab.base("vlm")), range(len(SKEWS))
    concepts = {shape: {"colour": COLOURS} for shape in SHAPES}

    @cache
    def drawn(seed: int, data: bool) -> dict[tuple[str, str], list[Shown]]:
        """Images of every colour and shape, from which all models take theirs: the generator's, or renders."""
        found = dict[tuple[str, str], list[Shown]]()
        for number, shape in enumerate(SHAPES):
            texts = [indefinite(f"{colour} {shape}") for colour in COLOURS]
            if data:
                images = to_pil(draw([Scene((SceneObject(shape, colour),)) for colour in COLOURS]))
            else:
                asked = [text for text in texts for _ in range(EACH)]
                images = unet.generate(asked, seed=len(SHAPES) * seed + number)
            colours = [scene.objects[0].colour for scene in read(images, fast=True)]
            shown, each = list(zip(colours, ask(images, texts), strict=True)), len(images) // len(COLOURS)
            found |= {(colour, shape): shown[i * each :][:each] for i, colour in enumerate(COLOURS)}
        return found

    @cache
    def report(model: int, seed: int, source: str) -> tuple[Report, dict[str, dict[str, float]]]:
        """The report; and by concept DIM, CIM, and what the judge sees: the entropy of default colours, and the share
        of images with the colour asked for. source: "model", "data", or "permuted", answers for other colours.
        """
        entropies, right = dict[str, float](), dict[str, list[float]]()

        def make(prompts: list[str], number: int) -> list[Shown]:
            *named, shape = prompts[0].split()[1:]
            rng = np.random.default_rng((model, number, SHAPES.index(shape)))
            pools = [drawn(seed, source == "data")[planted(model, prompt, rng)] for prompt in prompts]
            images = [pool[rng.integers(len(pool))] for pool in pools]
            seen = [colour for colour, _ in images]
            if named:
                right.setdefault(shape, []).append(seen.count(named[0]) / len(seen))
            else:
                entropies[shape] = entropy(seen)
            return images

        def answers(images: Any, texts: list[str]) -> np.ndarray:
            found = np.stack([chances for _, chances in images])  # the texts are always all colours of one shape
            return np.random.default_rng(seed).permuted(found, axis=1) if source == "permuted" else found

        found = dimcim(make, answers, concepts, images=IMAGES, seed=100 * seed)
        success = {shape: float(np.mean(shares)) for shape, shares in right.items()}
        dims, cims = ({shape: of(shape) for shape in SHAPES} for of in (found.dim, found.cim))
        return found, {"dim": dims, "cim": cims, "entropy": entropies, "success": success}

    def correlated(ours: str, theirs: str, source: str, other: str) -> Callable[[int], np.ndarray]:
        """Over the models, for each concept: the rank correlation of a number of one source and one of another."""

        def arm(seed: int) -> np.ndarray:
            one, two = ([report(m, seed, each)[1] for m in models] for each in (source, other))
            return np.array([spearman([x[ours][c] for x in one], [y[theirs][c] for y in two]) for c in SHAPES])

        return arm

    def gaps(source: str) -> Callable[[int], np.ndarray]:
        """For every planted gap, and every concept of the clean model: whether it is reported as it is."""

        def arm(seed: int) -> np.ndarray:
            found = {(m, r.concept, r.attribute) for m in models for r in report(m, seed, source)[0].never()}
            clean = [not any((CLEAN, shape, colour) in found for colour in COLOURS) for shape in SHAPES]
            return np.array([gap in found for gap in MISSING] + clean, dtype=float)

        return arm

    def compared(name: str, ours: str, theirs: str, bar: float, other: str = "model") -> Comparison:
        arms = {"dimcim": correlated(ours, theirs, "model", other), "the bar": lambda seed: np.full(len(SHAPES), bar)}
        arms["permuted labels"] = correlated(ours, theirs, "permuted", other)
        return lab.compare(arms, expect="dimcim > the bar", control="permuted labels", name=name)

    found = {"dimcim": gaps("model"), "permuted labels": gaps("permuted")}
    return [
        compared("DIM with entropy", "dim", "entropy", 0.9),
        compared("CIM with success", "cim", "success", 0.9),
        compared("DIM of model with data", "dim", "dim", 0.7, other="data"),
        lab.compare(found, expect="dimcim > permuted labels", control="permuted labels", name="planted gaps"),
    ]
