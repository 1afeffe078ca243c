"""Isolated Diffusion: Optimizing Multi-Concept Text-to-Image Generation Training-Freely with Isolated Diffusion
Guidance. Zhu, Ma, Chen, Yuan, 2024, arXiv 2403.16954

A text encoder presses a whole prompt into its tokens, so concepts bleed into one another. Each attachment of a thing
therefore gets a guidance of its own, and several subjects are found in a first image and then denoised apart.

Faithful: attachments by the sum of their differences to the base prompt at the scale of the guidance (eq. 2); subjects
from the same noise, together until t = 750 of 1000 (the paper: 700 to 800), then each in latents where the others'
places became noise once (eqs. 3 and 4, variant A), with its own prompt, the whole prompt for the background (eq. 8).
Ours: a grammar (or any `language.load`) splits prompts instead of GPT-4; masks come from the first run's
cross-attention instead of SAM; masks of any other origin may be given. The noise in others' places is as strong as
latents of that level, which is the paper's N(0, 1) where the scheduler keeps their variance. A flow model mixes
velocities in the place of noises.
Scaled down: attachments are size, texture and state of one thing, as shapes wear nothing; its colour belongs to the
noun, since the base was never told of a thing without one. In the place of YOLOv8 the second judge, which therefore
does not score, says whether a first image has all the shapes, whatever their colours; where one is missing, up to three
first images are drawn, as a subject that is nowhere cannot be revised. The baseline of as many evaluations picks by a
contrastive model's score. Where several parts are summed, they share one scale of guidance: at 7.5 for each of four
parts nothing was left of the sum's images (0.006 complete).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from showtell import language
from showtell.bridges.base import Run, Technique, spread
from showtell.language import Split
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, PromptSet
from showtell.measure.verifying import first_judge_only
from showtell.steer.companions import Companion
from showtell.steer.masks import entity_regions
from showtell.steer.recurrence import noise_like
from showtell.steer.regions import Region, cells
from showtell.steer.selection import best_of
from showtell.world import sample
from showtell.world.scene import TEXTURES

Parts = tuple[str, list[str]]
"""The base prompt, and one prompt for the base with each attachment."""

TRIES, EVALUATIONS = 3, 7
"""First images at most, and plain images that cost as much as those and the revision of four subjects."""

SHARED = True
"""Whether the attachments of the experiment share one scale: then a control without a split is plain sampling."""

EXAMPLE = """
import showtell
from showtell import language
from showtell.papers.compose.isolated_diffusion import IsolatedAttachments, IsolatedSubjects
from showtell.steer.masks import entity_regions

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
parts = ("a baby penguin", ["a baby penguin in a blue hat", "a baby penguin in a red scarf"])
[penguin] = bridge.generate(parts[0], using=[IsolatedAttachments(parts)], guidance_scale=5, seed=0)

prompts = ["a dog next to a cat"]
first, subjects = entity_regions(bridge, [language.load().split(prompt) for prompt in prompts], seed=0)
[image] = bridge.generate(prompts, using=[IsolatedSubjects(subjects)], guidance_scale=5, seed=0)
"""


def attachments(split: Split, kept: int = 0) -> Parts:
    """The prompt without modifiers, and with each of them alone. kept: how many, next to a noun, belong to it."""
    near = [sorted(entity.modifiers, key=lambda word: abs(word.start - entity.head.start)) for entity in split.entities]
    own = [word for words in near for word in words[:kept]]
    return split.keeping(own), [split.keeping([*own, word]) for word, _ in split.pairs if word not in own]


def place(region: Region, grid: Sequence[int]) -> torch.Tensor:
    """A region's cells, bool (*grid,); none for an empty mask."""
    empty = isinstance(region.where, torch.Tensor) and not bool(region.where.any())
    return torch.zeros(tuple(grid), dtype=torch.bool) if empty else cells(region.where, grid)


def rows(values: Sequence[bool], latents: torch.Tensor) -> torch.Tensor:
    """A value for each sample, to be broadcast over its latents."""
    return torch.tensor(values, device=latents.device).view(-1, *[1] * (latents.ndim - 1))


class IsolatedAttachments(Technique):
    """Generates the base prompt, and adds each attachment by the difference that it makes to the base (eq. 2).

    parts: the prompts, for all samples or a list of one pair each; the call's own prompts are not read. Without
    attachments the base alone is generated. Each attachment costs one evaluation a step. shared: whether attachments
    share one scale of guidance, by the mean of their differences in the place of the sum.
    """

    makes = ("prompts", "prediction")

    def __init__(self, parts: Parts | list[Parts], shared: bool = False) -> None:
        self.parts, self.shared = parts, shared

    def prompt(self, run: Run, prompts: list[str]) -> list[str]:
        given = self.parts if isinstance(self.parts, list) else [self.parts] * len(prompts)
        run.state(self).parts = spread(given, len(prompts), "parts")
        return [base for base, _ in given]

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        state.texts, state.there = [], []
        for k in range(max(len(attached) for _, attached in state.parts)):  # what is not there makes no difference
            there = [k < len(attached) for _, attached in state.parts]
            state.there.append(rows(there, latents))
            state.texts.append(run.encode([own[k] if k < len(own) else base for base, own in state.parts]))
        counts = [max(len(attached), 1) if self.shared else 1 for _, attached in state.parts]
        state.counts = torch.tensor(counts, device=latents.device).view(-1, *[1] * (latents.ndim - 1))

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        state = run.state(self)
        if run.given is None or not state.texts:
            return None
        origin = self.origin(conditional, unconditional)
        each = zip(state.texts, state.there, strict=True)
        more = sum(torch.where(there, run.evaluate(run.given, text) - origin, 0.0) for text, there in each)
        whole = self.first(conditional, unconditional) + more / state.counts
        return run.adapter.guide(run, {"text": whole} | ({} if unconditional is None else {"negative": unconditional}))

    def first(self, base: torch.Tensor, unconditional: Any) -> torch.Tensor:
        """What the differences are added to."""
        return base

    def origin(self, base: torch.Tensor, unconditional: Any) -> torch.Tensor:
        """What each attachment's prediction is compared with."""
        return base


class Composed(IsolatedAttachments):
    """The baseline, Composable Diffusion (2206.01714): the sum of every part's guidance, without a base."""

    unconditional = True

    def first(self, base: torch.Tensor, unconditional: Any) -> torch.Tensor:
        return unconditional

    def origin(self, base: torch.Tensor, unconditional: Any) -> torch.Tensor:
        return unconditional


class IsolatedSubjects(Technique):
    """Denoises each subject alone where it was found, from the step at which the layout stands.

    subjects: split prompts with masks or boxes, for all samples or a list for each; of overlapping ones the earlier has
    the place, and what nobody has follows the call's prompt. layout: fraction of the sampling that is done together;
    1 changes nothing. Each subject costs one guided prediction a step.
    """

    def __init__(self, subjects: Sequence[Region] | Sequence[Sequence[Region]], layout: float = 0.25) -> None:
        self.subjects, self.layout = list(subjects), layout

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state, same = run.state(self), all(isinstance(one, Region) for one in self.subjects)
        lists: list[Any] = [self.subjects] * len(latents) if same else spread(self.subjects, len(latents), "subjects")
        free = torch.ones_like(latents[:, :1], dtype=torch.bool)
        state.texts, state.masks, state.alone = [], [], []
        for k in range(max(map(len, lists), default=0)):
            own = [one[k] if k < len(one) else Region(prompt, (0, 0, 1, 1)) for one, prompt in zip(lists, run.prompts)]
            mask = torch.stack([place(region, latents.shape[2:]) for region in own])[:, None].to(latents.device)
            mask = mask & free & rows([k < len(one) for one in lists], latents)
            free = free & ~mask
            state.masks.append(mask)
            state.texts.append(run.encode([region.prompt for region in own]))

    def before(self, run: Any, latents: torch.Tensor) -> None:
        state = run.state(self)
        if run.progress < self.layout or not state.masks:
            return
        if not state.alone:
            alpha, sigma = run.noise_level()
            noise = (alpha**2 + sigma**2) ** 0.5 * noise_like(run, latents, 1)
            found = torch.stack(state.masks).any(dim=0)
            for mask, text in zip(state.masks, state.texts, strict=True):
                state.alone.append(Companion.of(run, torch.where(found & ~mask, noise, latents), text))
        state.own = [companion.step(run) for companion in state.alone]

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        state = run.state(self)
        if run.given is None or not state.alone:
            return None
        for mask, own in zip(state.masks, state.own, strict=True):
            guided = torch.where(mask, own, guided)
        return guided


def for_prompts(prompts: Sequence[str], lm: Any) -> IsolatedAttachments:
    """Every prompt without its modifiers, and its attachments, as the language model takes it apart."""
    return IsolatedAttachments([attachments(lm.split(text)) for text in prompts])


def attached(lab: Lab, n: int) -> PromptSet:
    """One thing of a size, a texture and a state."""
    looks: dict[str, Any] = {"size": ("small", "large"), "texture": TEXTURES[1:], "state": ("halved", "cracked")}
    scenes = {one.caption(): one for one in sample(2 * n, lab.seed, lab.split, 1, **PLAIN | looks)}
    return PromptSet.of("attached", list(scenes.values())[:n], lab.seed, lab.split)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, clip, lm = lab.base("unet"), lab.base("clip"), language.load()
    found = lab.prompts("bindings", max(1, lab.n // 2), kinds="shapes")
    said = attached(lab, max(1, lab.n // 2))
    splits, parts = [lm.split(text) for text in found.texts], [attachments(lm.split(text), 1) for text in said.texts]

    def seeds(seed: int, tries: Sequence[int] | int = 0) -> list[int]:
        """A seed of its own for each prompt's first image, or its later tries."""
        each = [tries] * len(found) if isinstance(tries, int) else tries
        return [10**6 * seed + 10**3 * i + k for i, k in enumerate(each)]

    @cache
    def subjects(seed: int) -> tuple[list[int], list[list[Region]]]:
        """The seed of each prompt's first image that lacks no shape, or of its first, and where things are in it."""
        drawn = [entity_regions(bridge, splits, seed=seeds(seed, k)) for k in range(TRIES)]
        there = np.stack([found.objects(images, judge="second") == 1 for images, _ in drawn])
        first = there.argmax(axis=0).tolist()
        return seeds(seed, first), [drawn[k][1][row] for row, k in enumerate(first)]

    def revised(seed: int, split: bool = True) -> Any:
        noise, regions = subjects(seed)
        if not split:
            regions = [[Region(t, r.where) for r in each] for t, each in zip(found.texts, regions, strict=True)]
        return bridge.generate(found.texts, using=[IsolatedSubjects(regions)], seed=noise)

    def best(seed: int) -> list[Any]:
        drawn = [bridge.generate(found.texts, seed=seeds(seed, k)) for k in range(EVALUATIONS)]
        words = clip.embed(texts=found.texts)
        return best_of(drawn, lambda images: (clip.embed(images=list(images)) * words).sum(-1))

    def image(texts: list[str], *using: Technique) -> Any:
        return lambda seed: bridge.generate(texts, using=using, seed=seeds(seed))

    phrases = [(text, split.prompts) for text, split in zip(found.texts, splits, strict=True)]
    several = {
        "isolated": revised,
        "plain": image(found.texts),
        "best of 7": best,
        "composed": image(found.texts, Composed(phrases, shared=True)),
        "no split": partial(revised, split=False),
    }
    unsplit = [(base, [text] * len(attached)) for text, (base, attached) in zip(said.texts, parts, strict=True)]
    single = {
        "isolated": image(said.texts, IsolatedAttachments(parts, SHARED)),
        "plain": image(said.texts),
        "composed": image(said.texts, Composed(parts, shared=True)),
        "no split": image(said.texts, IsolatedAttachments(unsplit, SHARED)),
    }
    better = "isolated > plain, isolated > composed"
    return [
        lab.compare(
            several,
            first_judge_only(found.complete),
            expect=f"{better}, isolated > best of 7",
            control="no split",
            texts=found.texts,
        ),
        lab.compare(single, said.attributes, expect=better, control="no split", texts=said.texts),
    ]
