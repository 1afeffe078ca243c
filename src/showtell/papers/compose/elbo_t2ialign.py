"""ELBO-T2IAlign: Calibrating Pixel-level Text-Image Alignment in Diffusion Models.
Zhou, Zhang, Wang, Li, Zhang, Yu, Sheng, Xu, 2025, arXiv 2506.09740

How badly a model predicts the noise of an image when it is told one class alone says how weakly that class is aligned
with the pixels: small, hidden and rare things have a high loss. Their attention maps get a larger exponent, so that
they stop flooding the others' places. In generation the phrases that the prompt's prediction differs from most are
weighted up, anew at every step.

Faithful: losses at the levels 1, 51, ..., 951 of 1000, the same noise for all classes; min-max over the classes of an
image, an exponent of 3 to that power; attention at the levels 20, 40, ..., 200, averaged over heads, and over layers by
a Gaussian of 3 layers around the middle; maps refined by the product of two means of the self-attention of the largest
grid (all layers, those of the decoder; in joint attention all and all). Generation: weights of 1.2 to the same power,
rounded to 1/100, of the difference between the predictions for the prompt and for each phrase; weights around the empty
prompt's states, guided as usual.
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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.base import Run, Technique, as_list
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import BARE
from showtell.steer.embeddings import WordWeights, null_tokens, weighted
from showtell.steer.phrases import membership, phrases
from showtell.steer.regions import words_of
from showtell.steer.segment import normalised
from showtell.train.noising import Noised, Noising
from showtell.train.samples import drawn
from showtell.world.draw import masks, topmost
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


class Collected(Technique):
    """Adds up what every layer attends to: words, (n, tokens, *grid), and, on the largest grid, places."""

    def start(self, run: Run, latents: Tensor) -> None:
        run.state(self).words, run.state(self).places = {}, {}

    def wants(self, run: Run, place: Place) -> bool:
        return place.fold == 1 and (place.text is not None or self.largest(run, place))

    def largest(self, run: Any, place: Place) -> bool:
        return place.image_keys is not None and max(place.grid) == max(max(grid) for grid in run.grids)

    def attention(self, run: Run, site: Any) -> None:
        state, maps = run.state(self), site.probabilities("text", "image").float().mean(dim=1)
        if site.text is not None:
            words = maps[..., site.text].transpose(1, 2).unflatten(2, site.grid)
            state.words[site.depth] = state.words.get(site.depth, 0) + words
        if self.largest(run, site.place):
            state.places[site.depth] = state.places.get(site.depth, 0) + maps[..., site.image_keys]


def combined(words: dict[int, Tensor], places: dict[int, Tensor], spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """(maps (n, tokens, height, width), attention (n, places, places)) of what `Collected` has found by depth.

    Maps are weighted by a Gaussian of `spread` layers around the layers of the smallest grid.
    """
    depths, grid = sorted(words), max((one.shape[-2:] for one in words.values()), key=max)
    smallest = min(max(one.shape[-2:]) for one in words.values())
    middle = [i for i, depth in enumerate(depths) if max(words[depth].shape[-2:]) == smallest]
    offsets = torch.arange(len(depths)) - sum(middle) / len(middle)
    bell = torch.exp(-(offsets**2) / (2 * spread**2))
    resized = [F.interpolate(words[depth], tuple(grid), mode="bilinear") for depth in depths]
    maps = sum(share * one for share, one in zip((bell / bell.sum()).tolist(), resized, strict=True))
    later = [one for depth, one in places.items() if depth > depths[middle[-1]]] or list(places.values())
    means = [torch.stack(some).mean(dim=0) for some in (list(places.values()), later)]
    return maps, means[1] @ means[0]  # type: ignore[return-value]


def at_level(noising: Noising, clean: Tensor, noise: Tensor, level: int) -> Noised:
    """Clean latents at a level of 1000."""
    if not noising.flow:
        return noising.at(clean, noise, torch.full((len(clean),), level, device=clean.device))
    shift = 1.0 if noising.scheduler.config.get("use_dynamic_shifting") else noising.scheduler.config.get("shift", 1.0)
    return noising.at_share(clean, noise, shift * level / (1000 + (shift - 1) * level))


def errors(noising: Noising, at: Noised, predicted: Tensor) -> Tensor:
    """The mean squared error, (n,), of the noise that a prediction implies; of flow models that of the velocity."""
    if noising.flow:
        missed = predicted - noising.target(at)
    else:
        missed = at.alpha / at.sigma * (noising.clean(predicted, at) - at.clean)
    return missed.flatten(1).square().mean(dim=1)


@torch.no_grad()
def evidence(
    bridge: Any, images: Any, classes: Sequence[Sequence[str]], texts: Callable[[Sequence[str]], str] = photo_of,
    levels: Sequence[int] = ELBO_LEVELS, map_levels: Sequence[int] = MAP_LEVELS, seed: int = 0, **options: Any,
) -> list[Evidence]:  # fmt: skip
    """What a diffusion bridge shows of the classes in each image. images: pictures, or latents (n, ...).

    texts: the prompt of some classes, which must hold their names. options: further ones of `Noising`.
    Raises ShowtellError where an image has no classes or a prompt lacks one.
    """
    clean = images if isinstance(images, Tensor) else bridge.to_latents(as_list(images))
    if len(clean) != len(classes) or not all(classes):
        raise ShowtellError(f"{len(clean)} images, {len(classes)} lists of classes: give each image at least one.")
    size = [side * bridge.pipeline.vae_scale_factor for side in clean.shape[-2:]]
    noising, clean = Noising(bridge, *size, **options), clean.float()
    generator = torch.Generator().manual_seed(seed)
    noise = {level: torch.randn(clean.shape[1:], generator=generator).to(clean) for level in (*levels, *map_levels)}

    def noised(rows: Tensor, level: int) -> Noised:
        return at_level(noising, rows, noise[level].expand_as(rows), level)

    alone = noising.text([texts([name]) for one in classes for name in one])
    repeated = clean[[row for row, one in enumerate(classes) for _ in one]]
    losses = sum(errors(noising, at, noising.predict(at, alone)) for at in (noised(repeated, one) for one in levels))

    found = []
    for row, (own, loss) in enumerate(zip(classes, losses.split([len(one) for one in classes]), strict=True)):  # type: ignore[union-attr]
        prompt, watching = texts(own), Collected()
        run, text = noising.run([prompt], [watching]), noising.text([prompt])
        run.text = text
        watching.start(run, clean)
        for level in map_levels:
            noising.predict(noised(clean[row : row + 1], level), text, watching=[watching], run=run)
        maps, attention = combined(run.state(watching).words, run.state(watching).places)
        words = words_of(run, prompt)
        if missing := [name for name in own if name not in words or not words[name]]:
            raise ShowtellError(f"{missing[0]!r} is not among the words that are read of {prompt!r}.")
        placed = torch.stack([maps[0, list(words.find(name, 0))].mean(dim=0) for name in own])
        found.append(Evidence(loss, placed, attention[0]))
    return found


def labels(maps: Tensor, threshold: float, size: int) -> np.ndarray:
    """(size, size): of calibrated maps (k, height, width) the strongest, -1 where none is as high as the threshold."""
    full = normalised(F.interpolate(maps[None], (size, size), mode="bilinear")[0])
    return torch.where(full.amax(dim=0) < threshold, -1, full.argmax(dim=0)).cpu().numpy()


def noun_chunks(words: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The things that a prompt names, each with the article before it: text, and the positions of its tokens."""
    before = {word.start: last for last, word in zip(words, list(words)[1:])}
    found = []
    for phrase in phrases(words):
        first = min((*phrase.modifiers, phrase.noun), key=lambda word: word.start)
        article = before.get(first.start)
        if article and article.text.lower() in ("a", "an", "the"):
            found.append((words.prompt[article.start : phrase.noun.stop], (*article.positions, *phrase.positions)))
        else:
            found.append((phrase.text, phrase.positions))
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
        state.own, state.null = run.text, null_tokens(run.text)
        groups = [[positions for _, positions in one] for one in things]
        state.members = membership(groups, run.text.tokens.shape[1]).to(latents.device)
        state.there = state.members.any(dim=-1)
        state.alone = [
            run.encode([one[k][0] if k < len(one) else own for one, own in zip(things, run.prompts, strict=True)])
            for k in range(max(map(len, things)))
        ]

    def weights(self, run: Run, latents: Tensor) -> Tensor:
        """A weight for each phrase, (n, k); 1 where there is none."""
        state = run.state(self)
        whole = run.evaluate(latents, state.own)
        apart = [(run.evaluate(latents, text) - whole).float().flatten(1).square().mean(dim=1) for text in state.alone]
        return (self.strength ** relative(torch.stack(apart, dim=1), state.there)).mul(100).round() / 100

    def before(self, run: Run, latents: Tensor) -> None:
        state = run.state(self)
        if self.strength == 1 or not state.alone:
            return
        run.text = state.own
        if run.progress < self.until:
            more = self.weights(run, latents) - 1
            factors = 1 + torch.einsum("nk,nkt->nt", more, state.members.to(more))
            run.text = state.own.with_tokens(weighted(state.own, factors, state.null))


THRESHOLDS = tuple(0.05 * i for i in range(4, 16))


def mean_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Over the labels of the truth, the background's -1 among them."""
    kinds = np.unique(truth)
    return float(np.mean([((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in kinds]))


def for_prompts(prompts: Sequence[str], lm: Any, **options: Any) -> PhraseWeights:
    """What helps generation; `evidence` is for pictures that are there already."""
    return PhraseWeights(**options)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, n = lab.base("unet"), min(lab.n, 48)
    pair = {**BARE, "objects": 2, "size": ("small", "large"), "background": "white", "distinct": ("shape", "size")}

    def and_of(classes: Sequence[str]) -> str:
        return " and ".join(map(indefinite, classes))

    def scenes_of(split: str, count: int) -> tuple[list[Any], list[list[str]]]:
        scenes = sample(count, lab.seed + (split == "validation"), split, **pair)
        return scenes, [[f"{thing.colour} {thing.shape}" for thing in scene.objects] for scene in scenes]

    @cache
    def seen(split: str, count: int, seed: int) -> tuple[list[np.ndarray], list[Evidence]]:
        scenes, names = scenes_of(split, count)
        found = evidence(bridge, drawn(scenes), names, and_of, ELBO_LEVELS, MAP_LEVELS, seed)
        return [topmost(masks(scene)) for scene in scenes], found

    def scored(power: Callable[[Tensor], Tensor], seed: int) -> np.ndarray:
        def scores(split: str, count: int, threshold: float) -> np.ndarray:
            truth, found = seen(split, count, seed)
            maps = [one.calibrated(power=power(relative(one.losses))) for one in found]
            return np.array([mean_iou(labels(m, threshold, 64), t) for m, t in zip(maps, truth, strict=True)])

        best = max(THRESHOLDS, key=lambda threshold: scores("validation", max(2, n // 3), threshold).mean())
        return scores(lab.split, n, best)

    powers: dict[str, Callable[[Tensor], Tensor]] = {
        "elbo-t2ialign": lambda own: own,
        "uncalibrated": torch.zeros_like,
        "fixed exponent": torch.ones_like,
        "permuted": lambda own: own.roll(1),
    }
    arms = {name: partial(scored, power) for name, power in powers.items()}
    expect = "elbo-t2ialign > uncalibrated, elbo-t2ialign > fixed exponent"
    texts = [and_of(names) for names in scenes_of(lab.split, n)[1]]
    segmented = lab.compare(arms, expect=expect, control="permuted", name="mean IoU", texts=texts)

    prompts = lab.prompts("objects-3-4", n)
    all_heavier = [{one.text: 1.2 for one in phrases(bridge.words(text))} for text in prompts.texts]

    def drawn_with(*using: Technique) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed)

    weights = {
        "phrase weights": drawn_with(PhraseWeights()),
        "plain": drawn_with(),
        "all phrases 1.2": drawn_with(WordWeights(all_heavier)),
    }
    generated = lab.compare(weights, prompts.objects, expect="phrase weights > plain, phrase weights > all phrases 1.2")
    return [segmented, generated]
