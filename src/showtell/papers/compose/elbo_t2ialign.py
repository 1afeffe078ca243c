"""ELBO-T2IAlign: Calibrating Pixel-level Text-Image Alignment in Diffusion Models.
Zhou, Zhang, Wang, Li, Zhang, Yu, Sheng, Xu, 2025, arXiv 2506.09740

How badly a model predicts the noise of an image when it is told one class alone says how weakly that class is aligned
with the pixels: small, hidden and rare things have a high loss. Their attention maps get a larger exponent, so that
they stop flooding the others' places. In generation the phrases that the prompt's prediction differs from most are
weighted up, anew at every step.

Faithful: losses at the levels 1, 51, ..., 951 of 1000, the same noise for all classes; min-max over the classes of an
image, an exponent of 3 to that power; attention at the levels 20, 40, ..., 200, combined by `steer.depths`. Generation:
weights of 1.2 to the same power, rounded to 1/100, of the difference between the predictions for the prompt and for
each phrase; weights around the empty prompt's states, guided as usual.
Ours: all images share one draw of noise, so that batches give what single images do; of flow models the levels are
shares of the noise, moved by the scheduler's shift. Phrases, with their articles, are found by `steer.phrases` instead
of spaCy.
Scaled down: drawn scenes of a large and a small thing instead of VOC, COCO and others; the threshold for the background
is chosen for each arm on validation scenes.

Inconclusive: mean IoU 0.64, uncalibrated 0.62, permuted 0.61, but the same exponent for both things is as good (0.64;
48 scenes, 3 seeds). In generation it holds: 0.94 of the things are there, 0.91 plainly, 0.90 with all phrases at 1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from showtell.bridges.base import Run, Technique, as_list
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import BARE
from showtell.measure.segmentation import best_threshold, segmented
from showtell.steer.embeddings import WordWeights, null_tokens, weighted
from showtell.steer.phrases import membership, noun_chunks
from showtell.steer.regions import words_of
from showtell.steer.segment import normalised
from showtell.train.explained import attention_at, level_noise, text_errors
from showtell.train.noising import Noising
from showtell.train.samples import drawn
from showtell.world import Scene
from showtell.world.language.english import indefinite
from showtell.world.sampling import sample

ELBO_LEVELS, MAP_LEVELS = tuple(range(1, 999, 50)), tuple(range(20, 201, 20))

EXAMPLE = """
import showtell
from showtell.papers.compose.elbo_t2ialign import PhraseWeights, evidence

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
[image] = bridge.generate("a dog on a sofa and a cup", using=[PhraseWeights()], seed=0)
[found] = evidence(bridge, [image], [["dog", "sofa", "cup"]])
maps = found.calibrated(strength=3.0)           # (3, height, width) in [0, 1]; argmax over them says which class it is
"""


def photo_of(classes: Sequence[str]) -> str:
    return "a photo of " + ", ".join(classes)


def relative(losses: Tensor, there: Tensor | None = None) -> Tensor:
    """Losses (..., k) from 0 for the smallest to 1 for the largest. there: which of them count, bool; others are 0."""
    there = torch.ones_like(losses, dtype=torch.bool) if there is None else there
    low = losses.masked_fill(~there, torch.inf).amin(dim=-1, keepdim=True)
    high = losses.masked_fill(~there, -torch.inf).amax(dim=-1, keepdim=True)
    return torch.where(there, (losses - low) / (high - low + 1e-10), 0.0)


@dataclass(frozen=True)
class Evidence:
    """What a model shows of an image's classes: losses (k,), maps (k, height, width) of attention to their words, and
    how the places attend to each other, (places, places), all on one grid.
    """

    losses: Tensor
    maps: Tensor
    attention: Tensor

    def calibrated(self, strength: float = 3.0, power: Tensor | None = None) -> Tensor:
        """Maps (k, height, width) in [0, 1]. strength: the largest exponent; 1 calibrates nothing. power: in the place
        of the relative losses, (k,).
        """
        exponents = strength ** (relative(self.losses) if power is None else power)
        sharp = normalised(self.maps) ** exponents[:, None, None]
        return normalised((sharp.flatten(1) @ self.attention.T).view_as(sharp))


def evidence(
    bridge: Any, images: Any, classes: Sequence[Sequence[str]], texts: Callable[[Sequence[str]], str] = photo_of,
    levels: Sequence[int] = ELBO_LEVELS, map_levels: Sequence[int] = MAP_LEVELS, seed: int = 0, **options: Any,
) -> list[Evidence]:  # fmt: skip
    """What a diffusion bridge shows of the classes in each image. images: pictures, or latents (n, ...).

    texts: the prompt of some classes, which must hold their names. options: further ones of `Noising`.
    Raises ShowtellError where an image has no classes or a prompt lacks one.
    """
    clean = (images if isinstance(images, Tensor) else bridge.to_latents(as_list(images))).float()
    if len(clean) != len(classes) or not all(classes):
        raise ShowtellError(f"{len(clean)} images, {len(classes)} lists of classes: give each image at least one.")
    noising = Noising(bridge, *(side * bridge.pipeline.vae_scale_factor for side in clean.shape[-2:]), **options)
    noise = level_noise(clean, (*levels, *map_levels), seed)
    alone = [[texts([name]) for name in own] for own in classes]
    losses = text_errors(noising, clean, alone, {level: noise[level] for level in levels})
    found = []
    for row, own in enumerate(classes):
        at_levels = {level: noise[level] for level in map_levels}
        run, maps, attention = attention_at(noising, clean[row : row + 1], texts(own), at_levels)
        words = words_of(run, run.prompts[0])
        if missing := [name for name in own if name not in words or not words[name]]:
            raise ShowtellError(f"{missing[0]!r} is not among the words that are read of {run.prompts[0]!r}.")
        placed = torch.stack([maps[0, list(words.find(name, 0))].mean(dim=0) for name in own])
        found.append(Evidence(losses[row], placed, attention[0]))
    return found


class PhraseWeights(Technique):
    """Before each step weighs every phrase of a prompt by how far its own prediction is from the whole prompt's.

    strength: the largest weight; 1 changes nothing. until: fraction of the sampling; later weights are 1. Prompts of
    one phrase stay as they are. Each step costs an evaluation more, and one for each phrase.
    """

    makes = ("text",)

    def __init__(self, strength: float = 1.2, until: float = 1.0) -> None:
        self.strength, self.until = strength, until

    def start(self, run: Run, latents: Tensor) -> None:
        state = run.state(self)
        things = [noun_chunks(words_of(run, prompt)) for prompt in run.prompts]
        things = [one if len(one) > 1 else [] for one in things]
        groups = [[positions for _, positions in one] for one in things]
        state.own, state.members = run.text, membership(groups, run.text.tokens.shape[1]).to(latents.device)
        state.alone = [
            run.encode([one[k][0] if k < len(one) else own for one, own in zip(things, run.prompts, strict=True)])
            for k in range(max(map(len, things)))
        ]

    def weights(self, run: Run, latents: Tensor) -> Tensor:
        """A weight for each phrase, (n, k); 1 where there is none."""
        state = run.state(self)
        whole = run.evaluate(latents, state.own)
        apart = [(run.evaluate(latents, text) - whole).float().flatten(1).square().mean(dim=1) for text in state.alone]
        power = relative(torch.stack(apart, dim=1), state.members.any(dim=-1))
        return (100 * self.strength**power).round() / 100

    def before(self, run: Run, latents: Tensor) -> None:
        state = run.state(self)
        if self.strength == 1 or not state.alone:
            return
        run.text = state.own
        if run.progress < self.until:
            more = self.weights(run, latents) - 1
            factors = 1 + torch.einsum("nk,nkt->nt", more, state.members.to(more))
            run.text = state.own.with_tokens(weighted(state.own, factors, null_tokens(state.own)))


def for_prompts(prompts: Sequence[str], lm: Any, **options: Any) -> PhraseWeights:
    """What helps generation; `evidence` is for pictures that are there already."""
    return PhraseWeights(**options)


def and_of(classes: Sequence[str]) -> str:
    return " and ".join(map(indefinite, classes))


def names_of(scene: Scene) -> list[str]:
    return [f"{thing.colour} {thing.shape}" for thing in scene.objects]


PAIR: dict[str, Any] = {
    **BARE, "objects": 2, "size": ("small", "large"), "background": "white", "distinct": ("shape", "size"),
}  # fmt: skip


def experiment(lab: Lab) -> list[Comparison]:
    bridge, n = lab.base("unet"), min(lab.n, 48)

    def scenes_of(split: str, count: int) -> list[Scene]:
        return sample(count, lab.seed + (split == "validation"), split, **PAIR)

    @cache
    def seen(split: str, count: int, seed: int) -> list[Evidence]:
        scenes = scenes_of(split, count)
        names = [names_of(scene) for scene in scenes]
        return evidence(bridge, drawn(scenes), names, and_of, ELBO_LEVELS, MAP_LEVELS, seed)

    def scored(power: Callable[[Tensor], Tensor], seed: int) -> Any:
        def calibrated(split: str, count: int) -> tuple[list[Tensor], list[Scene]]:
            found = seen(split, count, seed)
            return [one.calibrated(power=power(relative(one.losses))) for one in found], scenes_of(split, count)

        threshold = best_threshold(*calibrated("validation", max(2, n // 3)))
        return segmented(*calibrated(lab.split, n), threshold)

    arms = {
        "elbo-t2ialign": partial(scored, lambda own: own),
        "uncalibrated": partial(scored, torch.zeros_like),
        "fixed exponent": partial(scored, torch.ones_like),
        "permuted": partial(scored, lambda own: own.roll(1)),
    }
    expect = "elbo-t2ialign > uncalibrated, elbo-t2ialign > fixed exponent"
    texts = [and_of(names_of(scene)) for scene in scenes_of(lab.split, n)]
    outlined = lab.compare(arms, expect=expect, control="permuted", name="mean IoU", texts=texts)

    prompts = lab.prompts("objects-3-4", n)
    all_heavier = [{text: 1.2 for text, _ in noun_chunks(bridge.words(prompt))} for prompt in prompts.texts]

    def drawn_with(*using: Technique) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed)

    weights = {
        "phrase weights": drawn_with(PhraseWeights()),
        "plain": drawn_with(),
        "all phrases 1.2": drawn_with(WordWeights(all_heavier)),
    }
    expect = "phrase weights > plain, phrase weights > all phrases 1.2"
    return [outlined, lab.compare(weights, prompts.objects, expect=expect)]
