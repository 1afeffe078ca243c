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


def a(*words: str) -> str:
    return indefinite(" ".join(word for word in words if word))


def dimcim(
    make: Make, ask: Ask, concepts: Concepts, contexts: Sequence[str] = ("{}",), images: int = 30, seed: int = 0
) -> Report:
    """The report on a generator. contexts: sentences with {} where the concept goes; images: for each prompt."""
    rows = []
    for concept, kinds in concepts.items():
        coarse = make([context.format(a(concept)) for context in contexts for _ in range(images)], seed)
        for kind, attributes in kinds.items():
            texts = [a(attribute, concept) for attribute in attributes]
            default = attribute_scores(ask(coarse, texts))
            for i, text in enumerate(texts):
                dense = make([context.format(text) for context in contexts for _ in range(images)], seed + 1 + i)
                asked = attribute_scores(ask(dense, texts))[i]
                rows.append(Row(concept, kind, attributes[i], float(default[i]), float(asked)))
    return Report(rows)


@dataclass(frozen=True)
class Shown:
    """An image of a shape: its colour as the judge sees it, and how likely it shows each of COLOURS, (colours,)."""

    colour: str
    chances: np.ndarray


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
        pairs = [(colour, shape) for shape in SHAPES for colour in COLOURS]
        if data:
            images = to_pil(draw([Scene((SceneObject(shape, colour),)) for colour, shape in pairs]))
        else:
            images = unet.generate([a(*pair) for pair in pairs for _ in range(EACH)], seed=seed)
        each, found = len(images) // len(pairs), list[Shown]()
        for i, shape in enumerate(SHAPES):
            part = images[i * len(COLOURS) * each :][: len(COLOURS) * each]
            seen = [scene.objects[0].colour for scene in read(part, fast=True)]
            found += map(Shown, seen, ask(part, [a(colour, shape) for colour in COLOURS]))
        return {pair: found[i * each :][:each] for i, pair in enumerate(pairs)}

    def shown(model: int, prompts: list[str], number: int, data: bool) -> list[Shown]:
        rng = np.random.default_rng((model, number, SHAPES.index(prompts[0].split()[-1])))
        choices = [drawn(number // 100, data)[planted(model, prompt, rng)] for prompt in prompts]
        return [some[rng.integers(len(some))] for some in choices]

    @cache
    def report(model: int, seed: int, source: str) -> tuple[Report, dict[str, float], dict[str, float]]:
        """The report; by concept the entropy of default colours, and the share that shows the colour asked for."""
        entropy, success = dict[str, float](), dict[str, list[float]]()

        def make(prompts: list[str], number: int) -> list[Shown]:
            images = shown(model, prompts, number, source == "data")
            seen = [one.colour for one in images]
            *named, shape = prompts[0].split()[1:]
            shares = np.unique(seen, return_counts=True)[1] / len(seen)
            if named:
                success.setdefault(shape, []).append(seen.count(named[0]) / len(seen))
            else:
                entropy[shape] = float(-(shares * np.log(shares)).sum())
            return images

        def answers(images: Any, texts: list[str]) -> np.ndarray:
            found = np.stack([one.chances for one in images])  # the texts are always all colours of one shape
            return np.random.default_rng(seed).permuted(found, axis=1) if source == "permuted" else found

        found = dimcim(make, answers, concepts, images=IMAGES, seed=100 * seed)
        return found, entropy, {shape: float(np.mean(shares)) for shape, shares in success.items()}

    def correlated(pair: Callable[[int, int, str, str], tuple[float, float]], source: str) -> Callable[[int], Any]:
        """Over the models, for each concept: the rank correlation of two numbers."""
        return lambda seed: np.array(
            [spearman(*zip(*(pair(m, seed, source, shape) for m in models), strict=True)) for shape in SHAPES]
        )

    def does(model: int, seed: int, source: str, shape: str) -> tuple[float, float]:
        return report(model, seed, source)[0].dim(shape), report(model, seed, source)[1][shape]

    def can(model: int, seed: int, source: str, shape: str) -> tuple[float, float]:
        return report(model, seed, source)[0].cim(shape), report(model, seed, source)[2][shape]

    def like_data(model: int, seed: int, source: str, shape: str) -> tuple[float, float]:
        return report(model, seed, source)[0].dim(shape), report(model, seed, "data")[0].dim(shape)

    def gaps(source: str) -> Callable[[int], np.ndarray]:
        """For every planted gap, and every concept of the clean model: whether it is reported as it is."""

        def arm(seed: int) -> np.ndarray:
            found = {(m, r.concept, r.attribute) for m in models for r in report(m, seed, source)[0].never()}
            clean = [not any((CLEAN, shape, colour) in found for colour in COLOURS) for shape in SHAPES]
            return np.array([gap in found for gap in MISSING] + clean, dtype=float)

        return arm

    def compared(name: str, pair: Any, bar: float) -> Comparison:
        arms = {"dimcim": correlated(pair, "model"), "the bar": lambda seed: np.full(len(SHAPES), bar)}
        arms["permuted labels"] = correlated(pair, "permuted")
        return lab.compare(arms, expect="dimcim > the bar", control="permuted labels", name=name)

    found = {"dimcim": gaps("model"), "permuted labels": gaps("permuted")}
    return [
        compared("DIM with entropy", does, 0.9),
        compared("CIM with success", can, 0.9),
        compared("DIM of model with data", like_data, 0.7),
        lab.compare(found, expect="dimcim > permuted labels", control="permuted labels", name="planted gaps"),
    ]
