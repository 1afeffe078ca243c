"""G-Refine: A General Quality Refiner for Text-to-Image Generation.
Li, Wu, Hao, Zhang, Kou, Chen, Bai, Liu, Lin, Zhai, 2024, arXiv 2404.18343

From a picture and its prompt alone, two maps of a CLIP model say where the picture looks bad and where it is not what
was asked for. What fails is repaired there and as strongly as it is bad, first what is shown, then how it looks, and
good places are left alone.

Faithful: patches of the last layer by value-value attention, softmax(V V^T / |V|) V, past its feed-forward part (the
CLIP Surgery of the released code); three pairs of a high and a low quality (technical quality, rationality,
naturalness) learnt on whole pictures and read in patches, of which the worst counts (the cask effect); phrases of a
syntax tree, each scored by sigmoid(10 cos), the cosine's text without what the empty text has, and placed by its noun;
the two stages.
Ours: pairs are vectors of CLIP's space, learnt by themselves instead of through the text encoder; strengths (0.7, and
at most 0.5 times what quality lacks), thresholds and what is drawn anew when a thing is missing (all that no other
noun's map holds) are choices, as the paper's were not to be had; a stage's picture is kept only where it scores higher.
A grammar (or any `language.load`) stands for spaCy.
Scaled down: pairs learn from spoilt pictures of the world (unnatural ones are negatives); in a third of the pool a
patch is spoilt, in a third a colour or a thing is wrong. The thresholds of alignment are those that best tell right
from wrong exact pictures of validation prompts: one of phrases and, as nouns alone score lower, one of nouns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell import language
from showtell.bridges.base import as_list
from showtell.data.spoilt import poor, spoilt, wrong
from showtell.measure.curation import separating
from showtell.measure.dense import Found, alignment, dense
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.likeness import clip_score
from showtell.pictures import to_pil
from showtell.steer.embeddings import WordWeights
from showtell.steer.inversion import SDEdit
from showtell.steer.segment import masks_of
from showtell.steer.selection import best_of
from showtell.steer.strengths import CellStrengths
from showtell.train.opposites import opposites
from showtell.train.samples import training_scenes
from showtell.world import draw

EXAMPLE = """
import numpy as np
import showtell
from showtell.papers.compose.g_refine import learn_quality, refine

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
clip = showtell.load("openai/clip-vit-base-patch16")
images = bridge.generate(["a red ring left of a blue star"] * 2, seed=0)
blurred = [image.resize((8, 8)).resize(image.size) for image in images]
quality = learn_quality(clip, images, {"technical": blurred})
refined = refine(bridge, clip, images, ["a red ring left of a blue star"] * 2, quality, seed=1)
"""


def quality_of(vectors: Tensor, quality: Tensor, scale: float = 100.0) -> Tensor:
    """The worst factor's probability of high quality, (...), of unit vectors (..., d). quality: (factors, 2, d), the
    vectors of high and low quality. scale: of the cosines, that of CLIP by default."""
    cosines = torch.einsum("...d,fqd->...fq", vectors, F.normalize(quality, dim=-1))
    return (scale * cosines).softmax(dim=-1)[..., 0].amin(dim=-1)


def learn_quality(
    clip: Any, good: Any, bad: Mapping[str, Any], steps: int = 200, lr: float = 0.05, seed: int = 0
) -> Tensor:
    """Vectors (factors, 2, d) that tell good pictures from those that lack a factor. bad: factor -> pictures."""
    fine, poor = dense(clip, good)[0], [dense(clip, pictures)[0] for pictures in bad.values()]
    return opposites(fine, poor, float(clip.model.logit_scale.detach().exp()), steps, lr, seed)


def repair_map(found: Sequence[Found], threshold: float, there: float = 0.5) -> Tensor:
    """Where phrases that score below the threshold are to be drawn anew, bool (rows, columns): at their nouns, or for a
    noun that is not there (below `there`) either, wherever no other noun is."""
    held = torch.stack([masks_of(one.where) for one in found])
    shown = torch.tensor([one.noun >= there for one in found])
    area = torch.zeros_like(held[0])
    for k, one in enumerate(found):
        if one.score < threshold:
            others = shown & (torch.arange(len(found)) != k)
            area |= held[k] if shown[k] else ~held[others].any(dim=0)
    return area


def refine(
    bridge: Any, clip: Any, images: Any, prompts: Sequence[str], quality: Tensor, threshold: float = 0.5,
    there: float = 0.5, redraw: float = 0.7, touch_up: float = 0.5, good: float = 0.8, weight: float = 1.3,
    lm: Any = None, seed: Any = 0, shuffled: bool = False, **call: Any,
) -> list[Any]:  # fmt: skip
    """The pictures, repaired where they need it. redraw 0 and touch_up 0 keep them.

    threshold: score below which a phrase fails; there: below which a noun is not in the picture; redraw: the strength
    where a phrase fails; weight: of its words. touch_up: strength where quality is 0; a picture whose quality reaches
    `good` is not touched up.
    shuffled: every picture is repaired by the maps of the one before it. call: keywords of `bridge.generate`.
    """
    splits, pictures = [language.load(lm).split(text) for text in prompts], as_list(to_pil(images))
    scale = float(clip.model.logit_scale.detach().exp())

    def looks(these: Any) -> tuple[Tensor, Tensor]:
        pictures, patches = dense(clip, these)
        return quality_of(pictures, quality, scale), quality_of(patches, quality, scale)

    def total(these: Any) -> Tensor:
        fits = [np.mean([one.score for one in each] or [1.0]) for each in alignment(clip, these, splits)]
        return looks(these)[0].cpu() + torch.tensor(fits)

    def stage(these: list[Any], maps: Tensor, *using: Any) -> list[Any]:
        maps = maps.roll(1, dims=0) if shuffled else maps
        chosen = [i for i, one in enumerate(maps) if bool(one.any())]
        if not chosen:
            return these
        steered = CellStrengths(bridge.to_latents(these), list(maps.float()))
        changed = bridge.generate(list(prompts), using=[steered, *using], seed=seed, **call)
        better = total(changed) > total(these)
        return [new if bool(better[i]) and i in chosen else old for i, (old, new) in enumerate(zip(these, changed))]

    found = alignment(clip, pictures, splits)
    side = dense(clip, pictures[:1])[1].shape[1:3]
    areas = [repair_map(each, threshold, there) if each else torch.zeros(side, dtype=torch.bool) for each in found]
    louder = [{one.phrase: weight for one in each if one.score < threshold} for each in found]
    pictures = stage(pictures, redraw * torch.stack([one.cpu() for one in areas]).float(), WordWeights(louder))
    whole, cells = looks(pictures)
    return stage(pictures, touch_up * (1 - cells.cpu()) * (whole.cpu() < good).view(-1, 1, 1))


TRAINED = 192


def experiment(lab: Lab) -> list[Comparison]:
    bridge, clip, prompts = lab.base("unet"), lab.base("clip"), lab.prompts("pairs")
    pool, lm = spoilt(prompts.scenes, lab.seed), language.load()

    def qualities() -> dict[str, Tensor]:
        fine = draw(training_scenes(TRAINED))
        bad = poor(fine, np.random.default_rng(0))
        return {"quality": learn_quality(clip, to_pil(fine), {name: to_pil(these) for name, these in bad.items()})}

    @cache
    def learnt() -> tuple[Tensor, float, float]:
        """The quality vectors; the scores below which phrases fail and nouns are not there, on validation prompts.

        Of a picture the worst phrase counts, because a wrong one shows all of its other phrases well.
        """
        quality = lab.trained("quality", qualities, shared=True, n=TRAINED)["quality"]
        rng, scenes = np.random.default_rng(1), lab.validation("pairs", TRAINED).scenes
        splits = [lm.split(scene.caption()) for scene in scenes]
        lacking = [replace(scene, objects=scene.objects[1:]) for scene in scenes]
        right, other, less = (
            alignment(clip, to_pil(draw(drawn)), splits)
            for drawn in (scenes, [wrong(scene, rng) for scene in scenes], lacking)
        )
        worst = [[min(one.score for one in each) for each in side] for side in (right, other)]
        there = [one.noun for each in right for one in each]
        gone = [each[0].noun for each in less]  # captions name the first thing first
        return quality, separating(*worst), separating(there, gone)

    def refined(seed: int, **more: Any) -> list[Any]:
        quality, threshold, there = learnt()
        return refine(bridge, clip, pool, prompts.texts, quality, threshold, there, lm=lm, seed=seed, **more)

    def again(seed: int) -> list[Any]:
        return bridge.generate(prompts.texts, using=[SDEdit(bridge.to_latents(pool), 0.5)], seed=seed)

    def best(seed: int) -> list[Any]:
        drawn = [bridge.generate(prompts.texts, seed=1000 * seed + number) for number in range(2)]
        return best_of(drawn, lambda images: clip_score(clip, images, prompts.texts))

    def unharmed(images: Any, judge: str = "first") -> np.ndarray:
        """Of the pictures that were right, those that still are."""
        right = np.arange(len(pool)) % 3 == 0
        return np.where(right, prompts.complete(images, judge=judge), np.nan)

    arms: dict[str, Callable[[int], Any]] = {
        "g_refine": refined,
        "global img2img": again,
        "best of 2": best,
        "maps of others": lambda seed: refined(seed, shuffled=True),
    }
    expect, harm = "g_refine > global img2img", "g_refine > global img2img, g_refine > best of 2"
    return [
        lab.compare(arms, prompts.complete, expect=expect, control="maps of others"),
        lab.compare(arms, unharmed, expect=harm),
    ]
