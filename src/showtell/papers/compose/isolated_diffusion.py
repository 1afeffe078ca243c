"""Isolated Diffusion: Optimizing Multi-Concept Text-to-Image Generation Training-Freely with Isolated Diffusion
Guidance. Zhu, Ma, Chen, Yuan, 2024, arXiv 2403.16954

A text encoder presses a whole prompt into its tokens, so concepts bleed into one another. Each attachment of a thing
therefore gets a guidance of its own, and several subjects are found in a first image and then denoised apart.

Faithful: attachments by the sum of their differences to the base prompt at the scale of the guidance (eq. 2); subjects
from the same noise, together until t = 750 of 1000 (the paper: 700 to 800), then each in latents where the others'
places became noise once (eqs. 3 and 4, variant A), with its own prompt, the whole prompt for the background (eq. 8).
Ours: a grammar (or any `language.load`) splits prompts instead of GPT-4; masks come from the first run's
cross-attention instead of SAM, or are given. The noise in others' places is as strong as latents of that level, which
is the paper's N(0, 1) where the scheduler keeps their variance. A flow model mixes velocities in the place of noises.
Scaled down: attachments are size, texture and state of one thing, as shapes wear nothing; its colour belongs to the
noun, since the base was never told of a thing without one. In the place of YOLOv8 the second judge, which therefore
does not score, says whether a first image has all the shapes, whatever their colours; where one is missing, up to three
first images are drawn, as a subject that is nowhere cannot be revised. The baseline of as many evaluations picks by a
contrastive model's score. Where parts are summed in the experiment, they share one scale of guidance.
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
from showtell.steer.companions import Companion, Parts, texts_of
from showtell.steer.guidance import ComposedGuidance
from showtell.steer.lists import lists_of
from showtell.steer.masks import entity_regions, first_regions
from showtell.steer.recurrence import noise_like
from showtell.steer.regions import Region, cells
from showtell.steer.selection import best_of
from showtell.world import sample
from showtell.world.scene import TEXTURES

Attached = tuple[str, list[str]]
"""The base prompt, and one prompt for the base with each attachment."""

TRIES, EVALUATIONS = 3, 6
"""First images at most, and plain images that cost as much as those and the revision of two subjects."""

EXAMPLE = """
import showtell
from showtell import language
from showtell.papers.compose.isolated_diffusion import IsolatedAttachments, IsolatedSubjects

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
parts = ("a baby penguin", ["a baby penguin in a blue hat", "a baby penguin in a red scarf"])
[penguin] = bridge.generate(parts[0], using=[IsolatedAttachments(parts)], guidance_scale=5, seed=0)

prompt = "a dog next to a cat"
found = IsolatedSubjects([language.load().split(prompt)])          # or `Region`s of a detector of yours
[image] = bridge.generate(prompt, using=[found], guidance_scale=5, seed=0)
"""


def attachments(split: Split, kept: int = 0) -> Attached:
    """The prompt without modifiers, and with each of them alone. kept: how many, next to a noun, belong to it."""
    near = [sorted(entity.modifiers, key=lambda word: abs(word.start - entity.head.start)) for entity in split.entities]
    own = [word for words in near for word in words[:kept]]
    return split.keeping(own), [split.keeping([*own, word]) for word, _ in split.pairs if word not in own]


class IsolatedAttachments(Technique):
    """Generates the base prompt, and adds each attachment by the difference that it makes to the base (eq. 2).

    parts: the prompts, for all samples or a list of one pair each; the call's own prompts are not read. Without
    attachments the base alone is generated. Each attachment costs one evaluation a step. shared: whether attachments
    share one scale of guidance, by the mean of their differences in the place of the sum. Meant for one thing: what a
    prompt of several things says of each is no attachment of the others.
    """

    makes = ("prompts", "prediction")

    def __init__(self, parts: Attached | list[Attached], shared: bool = False) -> None:
        self.parts, self.shared = parts, shared

    def prompt(self, run: Run, prompts: list[str]) -> list[str]:
        given = self.parts if isinstance(self.parts, list) else [self.parts] * len(prompts)
        run.state(self).attached = [attached for _, attached in spread(given, len(prompts), "parts")]
        return [base for base, _ in given]

    def start(self, run: Run, latents: torch.Tensor) -> None:
        run.state(self).parts = Parts.of(run, run.state(self).attached, self.shared)

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
        whole = conditional + run.state(self).parts.differences(run, conditional)
        return run.adapter.guide(run, {"text": whole} | ({} if unconditional is None else {"negative": unconditional}))


class IsolatedSubjects(Technique):
    """Denoises each subject alone where it was found, from the step at which the layout stands.

    subjects: split prompts with masks or boxes, for all samples or a list for each; of overlapping ones the earlier has
    the place, and what nobody has follows the call's prompt. Or the prompts, taken apart, whose subjects are looked for
    in a first image from the same noise, another whole sampling. layout: fraction of the sampling that is done
    together; 1 changes nothing. Each subject costs one guided prediction a step.
    """

    makes = ("prediction",)

    def __init__(
        self, subjects: Sequence[Region] | Sequence[Sequence[Region]] | Sequence[Split], layout: float = 0.25
    ) -> None:
        self.subjects, self.layout = list(subjects), layout

    def start(self, run: Run, latents: torch.Tensor) -> None:
        if any(isinstance(one, Split) for one in self.subjects):
            lists = first_regions(run, latents, spread(self.subjects, len(latents), "subjects"))
        else:
            lists = lists_of(self.subjects, len(latents), "subjects", Region)
        state = run.state(self)
        state.texts = texts_of(run, [[region.prompt for region in own] for own in lists])
        state.masks, state.alone, state.own = [], [], []
        free = torch.ones_like(latents[:, :1], dtype=torch.bool)
        for k in range(len(state.texts)):
            own = [cells(one[k].where if k < len(one) else torch.zeros(1, 1), latents.shape[2:]) for one in lists]
            state.masks.append(torch.stack(own)[:, None].to(latents.device) & free)
            free = free & ~state.masks[-1]

    def before(self, run: Any, latents: torch.Tensor) -> None:
        state = run.state(self)
        if run.progress < self.layout or not state.masks:
            return
        if not state.alone:
            alpha, sigma = run.noise_level()
            noise = (alpha**2 + sigma**2) ** 0.5 * noise_like(run, latents, 1)
            taken = torch.stack(state.masks).any(dim=0)
            for mask, text in zip(state.masks, state.texts, strict=True):
                state.alone.append(Companion.of(run, torch.where(taken & ~mask, noise, latents), text))
        state.own = [companion.step(run) for companion in state.alone]

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
        for mask, own in zip(run.state(self).masks, run.state(self).own):  # none yet while all are together
            guided = torch.where(mask, own, guided)
        return guided


def for_prompts(prompts: Sequence[str], lm: Any) -> Technique:
    """What the paper has for what the prompts name: one thing each with its attachments, or several subjects."""
    splits = [lm.split(text) for text in prompts]
    if any(len(split.entities) > 1 for split in splits):
        return IsolatedSubjects(splits)
    return IsolatedAttachments([attachments(split) for split in splits])


def attached(lab: Lab, n: int) -> PromptSet:
    """One thing of a size, a texture and a state."""
    looks: dict[str, Any] = {"size": ("small", "large"), "texture": TEXTURES[1:], "state": ("halved", "cracked")}
    scenes = {one.caption(): one for one in sample(2 * n, lab.seed, lab.split, 1, **PLAIN | looks)}
    return PromptSet.of("attached", list(scenes.values())[:n], lab.seed, lab.split)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, clip, lm, n = lab.base("unet"), lab.base("clip"), language.load(), max(1, lab.n // 2)
    pairs, said = lab.prompts("bindings", n, kinds="shapes"), attached(lab, n)
    splits, parts = [lm.split(text) for text in pairs.texts], [attachments(lm.split(text), 1) for text in said.texts]

    def seeds(seed: int, tries: Sequence[int]) -> list[int]:
        """A seed of its own for each prompt, as many apart as later tries can need."""
        return [10**6 * seed + 10**3 * i + k for i, k in enumerate(tries)]

    def image(texts: list[str], *using: Technique, k: int = 0) -> Any:
        return lambda seed: bridge.generate(texts, using=using, seed=seeds(seed, [k] * len(texts)))

    @cache
    def subjects(seed: int) -> tuple[list[int], list[list[Region]]]:
        """The seed of each prompt's first image that lacks no shape, or of its first, and where things are in it."""
        drawn = [entity_regions(bridge, splits, seed=seeds(seed, [k] * len(splits))) for k in range(TRIES)]
        there = np.stack([pairs.objects(images, judge="second") == 1 for images, _ in drawn])
        first = there.argmax(axis=0).tolist()
        return seeds(seed, first), [drawn[k][1][row] for row, k in enumerate(first)]

    def revised(seed: int, split: bool = True) -> Any:
        noise, regions = subjects(seed)
        if not split:
            regions = [[Region(t, r.where) for r in each] for t, each in zip(pairs.texts, regions, strict=True)]
        return bridge.generate(pairs.texts, using=[IsolatedSubjects(regions)], seed=noise)

    def best(seed: int) -> list[Any]:
        words = clip.embed(texts=pairs.texts)
        drawn = [image(pairs.texts, k=k)(seed) for k in range(EVALUATIONS)]
        return best_of(drawn, lambda images: (clip.embed(images=list(images)) * words).sum(-1))

    several = {
        "isolated": revised,
        "plain": image(pairs.texts),
        f"best of {EVALUATIONS}": best,
        "composed": image(pairs.texts, ComposedGuidance([split.prompts for split in splits], shared=True)),
        "no split": partial(revised, split=False),
    }
    unsplit = [(base, [text] * len(own)) for text, (base, own) in zip(said.texts, parts, strict=True)]
    single = {
        "isolated": image(said.texts, IsolatedAttachments(parts, shared=True)),
        "plain": image(said.texts),
        "composed": image(said.texts, ComposedGuidance([own for _, own in parts], shared=True)),
        "no split": image(said.texts, IsolatedAttachments(unsplit, shared=True)),
    }
    better, control = "isolated > plain, isolated > composed", "no split"
    complete, expect = first_judge_only(pairs.complete), f"{better}, isolated > best of {EVALUATIONS}"
    return [
        lab.compare(several, complete, expect=expect, control=control, texts=pairs.texts),
        lab.compare(single, said.attributes, expect=better, control=control, texts=said.texts),
    ]
