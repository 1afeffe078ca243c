"""Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in Text-to-Image Generative Models.
Park, Ko, Byun, Suh, Rhee, 2024, arXiv 2412.02237

Each head of the cross-attention is asked, at every step of ordinary sampling, which of several visual concepts (colour,
shape, ...) its queries answer to most; how often a concept wins at a head makes the concept's head relevance vector.
The vectors say which heads to weaken to lose a concept, and by how much to rescale a word's attention head by head.

Faithful: a word drawn per concept at each step, all words in one softmax, mean over the image and a word's tokens, the
largest one counted; vectors with mean 1 over all heads; weakening by -2 at all words and steps; strengthening by the
vector, adjusting by 2 * wanted - unwanted; prompt-to-prompt with 0.8 (cross) and 0.9 (self) of the steps, in which the
new word keeps its own attention, strengthened, and all others take the source's.
Ours: the start token takes no part in the softmax (the released code has it there and says it need not be), a draw
serves all heads of a step, prompt-to-prompt shares attention on the guidance pass too.
Scaled down: 4 concepts for 34 and 16 prompts for 2,100; 8 heads for 128, of which 2 and 4 are weakened; 10 steps.
Not here: the vectors inside Attend-and-Excite, and words of two meanings, of which the small world has none.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from showtell.bridges.base import Run, Technique, Text
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure import scores
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PromptSet
from showtell.measure.recolouring import colours, recoloured
from showtell.steer.listing import listed
from showtell.steer.lists import lists_of
from showtell.steer.maps import places
from showtell.steer.regions import positions_of, words_of
from showtell.steer.sharing import ShareAttention
from showtell.world.scene import COLOURS, SHAPES, SIZES, TEXTURES

Heads = dict[str, torch.Tensor]
"""Name of an attention module -> a number per head, (heads,)."""
Concepts = Mapping[str, Sequence[str]]
"""Name -> its words."""

EXAMPLE = """
import showtell
from showtell.papers.compose.head_relevance_vectors import HeadWeights, adjusting, relevance

bridge = showtell.load("CompVis/stable-diffusion-v1-4")
concepts = {"colour": ["red", "blue", "green"], "plant": ["rose", "fern"]}
vectors = relevance(bridge, concepts, ["a photo of a bus", "a bowl of soup"], seed=0)
weights = adjusting(vectors["colour"], vectors["plant"])
[image] = bridge.generate("a lavender vase", using=[HeadWeights(weights, ["lavender"])], seed=0)
"""


class CountHeads(Technique):
    """Counts, head by head, which concept the queries of the sampled image attend to most. Images do not change.

    counts: module -> (heads, concepts), to which the call adds.
    """

    def __init__(self, counts: Heads, concepts: Concepts, seed: int = 0) -> None:
        self.counts, self.concepts, self.seed = counts, concepts, seed

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state, known = run.state(self), sorted({word for words in self.concepts.values() for word in words})
        state.encoded = {word: run.encode([word]).tokens[0] for word in known}
        state.at = {word: positions_of(run, word, word) for word in known}
        if lost := [word for word in known if not state.at[word]]:
            raise ShowtellError(f"{lost[0]!r} is no word to the text encoder; leave it out of the concepts.")

    def beside(self, run: Run) -> dict[str, Text]:
        """A text per sample that lists one word of every concept, each as it is encoded alone."""
        state, tokens = run.state(self), run.text.tokens.clone()
        state.spans = []
        for row, prompt in enumerate(run.prompts):
            drawn = random.Random(f"{self.seed}/{prompt}/{run.step}")
            words = [drawn.choice(list(one)) for one in self.concepts.values()]
            state.spans.append(listed([state.at[word] for word in words]))
            if max(map(max, state.spans[-1])) >= (room := tokens.shape[1]):
                raise ShowtellError(f"{len(words)} concepts are too many for {room} text tokens; give fewer.")
            for word, span in zip(words, state.spans[-1], strict=True):
                tokens[row, span] = state.encoded[word][state.at[word]]
        return {"concepts": run.text.with_tokens(tokens)}

    def wants(self, run: Run, place: Place) -> bool:
        return place.kind == "cross"

    def attention(self, run: Run, site: Any) -> None:
        query, key = site.query[site.branches["text"]], site.key[site.branches["concepts"]]
        answers = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5  # (n, heads, image tokens, keys)
        total = self.counts.setdefault(site.name, torch.zeros(query.shape[1], len(self.concepts)))
        for row, spans in zip(answers, run.state(self).spans, strict=True):
            maps = row[..., [at for span in spans for at in span]].softmax(dim=-1).mean(dim=1)
            strength = torch.stack([part.mean(-1) for part in maps.split([len(span) for span in spans], -1)], -1)
            total[torch.arange(len(total)), strength.argmax(dim=-1).cpu()] += 1

    def finish(self, run: Run, outputs: list[Any]) -> None:
        if not self.counts:
            raise ShowtellError("this model has no cross-attention, whose heads are compared here; use one that has.")


def relevance(bridge: Any, concepts: Concepts, prompts: Sequence[str], **more: Any) -> dict[str, Heads]:
    """Concept -> its head relevance vector, with mean 1 over all heads. more: keywords of `generate`."""
    counts: Heads = {}
    bridge.generate(list(prompts), using=[CountHeads(counts, concepts)], output_type="latent", **more)
    shares = {name: count / count.sum(dim=-1, keepdim=True) for name, count in counts.items()}
    means = torch.cat(list(shares.values())).mean(dim=0).clamp(min=1e-12)
    return {concept: {name: one[:, i] / means[i] for name, one in shares.items()} for i, concept in enumerate(concepts)}


def ranked(vector: Heads) -> list[tuple[str, int]]:
    """All (module, head), the most relevant first."""
    heads = [(name, head) for name, values in vector.items() for head in range(len(values))]
    return sorted(heads, key=lambda one: -float(vector[one[0]][one[1]]))


def adjusting(wanted: Heads, unwanted: Heads) -> Heads:
    """Weights that favour one concept of a word over another."""
    return {name: 2 * wanted[name] - unwanted[name] for name in wanted}


def weakening(heads: Sequence[tuple[str, int]], vector: Heads, factor: float = -2.0) -> Heads:
    """`factor` at the given heads, 1 elsewhere."""
    weights = {name: torch.ones_like(values) for name, values in vector.items()}
    for name, head in heads:
        weights[name][head] = factor
    return weights


class HeadWeights(Technique):
    """Multiplies the attention to words by a weight per head; weights of 1 change nothing.

    words: phrases of the prompt, or one list of them per sample; None: all words. What a prompt lacks is left out.
    until: fraction of the steps. Listed before `ShareAttention`, these words keep the sample's own attention, which is
    weighed, while all others take over the source's, as in the paper's prompt-to-prompt.
    """

    def __init__(
        self, weights: Heads, words: Sequence[str] | Sequence[Sequence[str]] | None = None, until: float = 1.0
    ) -> None:
        self.weights, self.words, self.until = weights, words, until

    def start(self, run: Run, latents: torch.Tensor) -> None:
        if self.words is None:
            each = [[word.text for word in words_of(run, prompt)] for prompt in run.prompts]
        else:
            each = lists_of(self.words, len(run.prompts), "words")
        pairs = zip(run.prompts, each, strict=True)
        run.state(self).at = [[at for one in some for at in positions_of(run, text, one)] for text, some in pairs]

    def wants(self, run: Run, place: Place) -> bool:
        return place.kind == "cross" and place.name in self.weights and run.progress < self.until

    def attention(self, run: Run, site: Any) -> None:
        weights, own = self.weights[site.name].to(site.query), site.maps()  # before later techniques share theirs
        meant = torch.zeros(len(run.prompts), 1, 1, own.shape[-1], dtype=torch.bool, device=own.device)
        for row, at in enumerate(run.state(self).at):
            meant[row, ..., at] = True
        meant = meant.repeat_interleave(len(own) // len(meant), dim=0)  # a sample's frames are rows of their own
        site.edit(lambda maps: torch.where(meant, own * weights[:, None, None], maps))


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("pairs", min(lab.n, 16))
    concepts = {"colour": COLOURS[:10], "shape": SHAPES[:10], "size": SIZES, "texture": TEXTURES}
    other = {"colour": "shape", "shape": "colour"}

    @cache
    def vectors() -> dict[str, Heads]:
        return relevance(bridge, concepts, lab.validation("pairs", 16).texts, seed=0)

    def order(concept: str) -> list[tuple[str, int]]:
        return ranked(vectors()[concept])

    def shuffled(concept: str, seed: int) -> list[tuple[str, int]]:
        return random.Random(f"{concept}/{seed}").sample(heads := order(concept), len(heads))

    def lost(ordered: Any) -> Any:
        """Per prompt, what is lost of a concept whose heads are weakened in an order: the area over the curve."""

        def arm(seed: int) -> tuple[np.ndarray, Any]:
            found = []
            for concept, score in (("colour", colours), ("shape", scores.objects)):
                heads = ordered(concept, seed)
                for count in (len(heads) // 4, len(heads) // 2):
                    using = [HeadWeights(weakening(heads[:count], vectors()[concept]))]
                    images = bridge.generate(prompts.texts, using=using, seed=seed, num_inference_steps=10)
                    found.append(1 - prompts.score(score, images))
            return np.mean(found, axis=0), images

        return arm

    orders = {
        "most relevant first": lost(lambda concept, seed: order(concept)),
        "least relevant first": lost(lambda concept, seed: order(concept)[::-1]),
        "random order": lost(shuffled),
        "order of another concept": lost(lambda concept, seed: order(other[concept])),
    }
    expect = "most relevant first > random order, random order > least relevant first"
    weakened = lab.compare(orders, name="concept lost", expect=expect, control="order of another concept")

    # The second of two samples is recoloured by prompt-to-prompt, and the new colour's own attention strengthened.
    targets = PromptSet.of("recoloured", [recoloured(scene, COLOURS) for scene in prompts.scenes], lab.seed, lab.split)
    both = [text for pair in zip(prompts.texts, targets.texts, strict=True) for text in pair]
    changed = [words for scene in targets.scenes for words in ([], [scene.objects[0].colour])]
    source = [i - i % 2 for i in range(len(both))]
    share = [ShareAttention(source, "qk", places((k,)), (0.0, end)) for k, end in (("cross", 0.8), ("self", 0.9))]

    def edited(concept: str | None) -> Any:
        def arm(seed: int) -> list[Any]:
            using = [HeadWeights(vectors()[concept], changed, 0.8), *share] if concept else share
            seeds = [seed * 1000 + i // 2 for i in range(len(both))]
            return bridge.generate(both, using=using, seed=seeds, num_inference_steps=10)[1::2]

        return arm

    edits = {"p2p-hrv": edited("colour"), "p2p": edited(None), "p2p-hrv of shape": edited("shape")}
    told: Any = {"expect": "p2p-hrv > p2p", "control": "p2p-hrv of shape", "texts": targets.texts}
    return [weakened, lab.compare(edits, targets.complete, **told)]
