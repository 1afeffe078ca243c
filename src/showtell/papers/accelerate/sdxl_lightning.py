"""SDXL-Lightning: Progressive Adversarial Diffusion Distillation. Lin, Wang, Yang, 2024, arXiv 2402.13929

In each stage a student learns to jump in one step where its teacher, the student before, needed several. First a
discriminator inside the denoiser sees where the jump began and ended, so that the student keeps to the teacher's path
and stays sharp; then one that sees the end alone, as no student can follow the path exactly.

Faithful: the first stage by mean squared error with guidance 6, the others adversarial, conditional and then not; the
features and head of the discriminator, trained too; pure noise at the last level; ends of the stages of 1 and 2 steps
noised to level 10, 250, 500 or 750 first; the model of one step predicts the clean latents; LoRA first, merged, then
all weights. Deviations: student and discriminator step at once instead of in turn; the model of one step turns to its
new prediction by a phase with the squared error; transformers give the features of their first half.
Scaled down: a teacher of 32 steps and guidance 3, stages 8, 4 and 2, few updates without LoRA, the miniature UNet, on
its own images; sets of images are compared by KID, which unlike FID has a term for every image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell.measure.curation import sharpness
from showtell.measure.distribution import kid
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.likeness import pixel_distance
from showtell.train.distillation import (
    Discriminator,
    discriminator_loss,
    few_steps,
    generator_loss,
    jump,
    levels,
    renoised,
)
from showtell.train.lora import add_lora, merge_lora
from showtell.train.networks import frozen, with_denoiser
from showtell.train.noising import Noising
from showtell.train.samples import paired, training_scenes
from showtell.train.trainer import fit

EXAMPLE = """
import torch
import showtell
from showtell.papers.accelerate.sdxl_lightning import lightning
from showtell.train.distillation import few_steps

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
prompts = ["a red ring left of a blue star", "a dog on the table"]
latents = torch.stack(bridge.generate(prompts, seed=0, output_type="latent"))
lightning(bridge, latents, prompts, stages=[(128, 32), (32, 8), (8, 4)], updates=2, batch_size=2)
[image] = bridge.generate("a red ring", seed=0, **few_steps(bridge, 4))
"""

RENOISED = (10, 250, 500, 750)


def phase(
    bridge: Any, teacher: Any, latents: Tensor, prompts: Sequence[str], steps: tuple[int, int], updates: int, *,
    scale: float = 1.0, adversary: str | None = "path", at_random: bool = False, rank: int | None = None,
    batch_size: int = 16, lr: float = 5e-5, seed: int = 0, **options: Any,
) -> None:  # fmt: skip
    """Trains the bridge's denoiser in place to go in one step as far as the teacher, an adapter, does in several.

    latents (n, ...), prompts (n): clean latents and what they show. steps: of the teacher and of the student, from
    noise to image. scale: the teacher's guidance. adversary: "path" sees both ends of a step, "end" where it ends, None
    is the squared error. at_random: it has random features that stay. rank: of a LoRA, trained and merged, instead of
    all weights. options: as for `Noising`.
    """
    noising, student = Noising(bridge, **options), bridge.adapter.denoiser.requires_grad_(rank is None)
    fine, between = levels(noising, steps[0]), steps[0] // steps[1]
    kind = "sample" if steps[1] == 1 and noising.kind == "epsilon" else None
    with torch.no_grad():
        texts, empty = noising.text(prompts), noising.text([""])
    if rank is not None:
        add_lora(bridge, "lightning", rank)
    parts: dict[str, nn.Module] = {"student": student}
    if adversary is not None:
        parts["adversary"] = Discriminator(noising, texts, latents, adversary == "path", at_random)

    def loss(
        model: Any, batch: dict[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clean, text = batch["latents"], texts.rows(batch["row"].long())
        n, device = len(clean), clean.device
        noise = torch.randn(clean.shape, generator=generator, device=device)
        level = between * torch.randint(1, steps[1] + 1, (n,), generator=generator, device=device)
        start = fine.at(level, clean)
        pure = (level == steps[0]).view(-1, *[1] * (clean.ndim - 1))
        start = replace(start, latents=torch.where(pure, noise, start.alpha * clean + start.sigma * noise))
        end = start
        with torch.no_grad():
            for step in range(1, between + 1):
                there = fine.at(level - step, clean)
                end = replace(there, latents=jump(noising, teacher, end, there, text, empty.repeat(n), scale))
        made = jump(noising, bridge.adapter, start, end, text, kind=kind)
        if "adversary" not in model:
            error = (made - end.latents).square().mean()
            return error, {"mse": error.detach()}
        ends = [end, replace(end, latents=made), replace(end, latents=made.detach())]
        if steps[1] <= 2:
            times = torch.tensor(RENOISED, device=device)[torch.randint(4, (n,), generator=generator, device=device)]
            more = torch.randn(clean.shape, generator=generator, device=device)
            ends = [renoised(one, noising, more, times) for one in ends]
        judge = model["adversary"]
        with frozen(judge):
            fooled = generator_loss(judge(ends[1], start, text))
        told = discriminator_loss(judge(ends[0], start, text), judge(ends[2], start, text))
        return fooled + told, {"student": fooled.detach(), "adversary": told.detach()}

    fit(
        nn.ModuleDict(parts), loss, paired(latents, batch_size), steps=updates, lr=lr, schedule="constant", ema=None,
        precision="no", seed=seed, progress=False,
    )  # fmt: skip
    if rank is not None:
        merge_lora(bridge, "lightning")
    student.eval().requires_grad_(False)


def lightning(
    bridge: Any, latents: Tensor, prompts: Sequence[str], updates: int,
    stages: Sequence[tuple[int, int]] = ((128, 32), (32, 8), (8, 4), (4, 2), (2, 1)), guidance: float = 6.0,
    rank: int | None = 64, adversaries: Sequence[str | None] = ("path", "end"), **more: Any,
) -> None:  # fmt: skip
    """All stages, (teacher's steps, student's steps) each, in place; sample with `few_steps`.

    updates: of each phase. guidance: of the first stage, which has no adversary; 1 makes it a stage like the others.
    rank: of the LoRA that every stage begins with, None leaves it out. more: as for `phase`.
    """
    for number, steps in enumerate(stages):
        teacher = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser).requires_grad_(False).eval())
        guided = number == 0 and guidance != 1
        plans: list[str | None] = [None] if guided else [*adversaries]
        if steps[1] == 1 and not guided:
            plans = [None, *plans]  # until it predicts clean latents there is nothing to tell apart
        phases = [(plan, None) for plan in plans] if rank is None else [(plans[0], rank), *((p, None) for p in plans)]
        for adversary, size in phases:
            phase(bridge, teacher, latents, prompts, steps, updates, scale=guidance if guided else 1.0,
                  adversary=adversary, rank=size, **more)  # fmt: skip


UPDATES, IMAGES, TEACHER, GUIDANCE = 60, 256, 32, 3.0


def experiment(lab: Lab) -> list[Comparison]:
    base, prompts = lab.base("unet"), lab.prompts("pairs")
    texts = [scene.caption() for scene in training_scenes(IMAGES)]
    slow = {**few_steps(base, TEACHER), "guidance_scale": GUIDANCE}

    def own() -> dict[str, Tensor]:
        return {"latents": torch.stack(base.generate(texts, output_type="latent", batch_size=64, **slow)).float()}

    def bridge_of(name: str, steps: int, seed: int) -> Any:
        """The base as it is for the teacher's steps, otherwise what was distilled to so many."""
        bridge = lab.base("unet", fresh=True)
        if steps < TEACHER:
            key = "guided" if steps == 8 else f"{name} {steps}"
            state = lab.trained(key, partial(distilled, name, steps), 0 if steps == 8 else seed, updates=UPDATES)
            bridge.adapter.denoiser.load_state_dict(state)
        return bridge

    def distilled(name: str, steps: int, seed: int) -> Any:
        before = TEACHER if steps == 8 else 2 * steps
        bridge, latents = bridge_of(name, before, seed), lab.trained("own images", own, images=IMAGES)["latents"]
        adversaries = {"squared error": (None, None), "end alone": ("end", "end")}.get(name, ("path", "end"))
        lightning(bridge, latents, texts, UPDATES, [(before, steps)], GUIDANCE if steps == 8 else 1.0, None,
                  adversaries, at_random=name == "random features", seed=seed)  # fmt: skip
        return bridge.adapter.denoiser

    @cache
    def made(name: str, steps: int, seed: int) -> list[Any]:
        if name == "teacher":  # with its guidance in few steps too, or it would be too easy to beat
            return base.generate(prompts.texts, seed=seed, **few_steps(base, steps) | {"guidance_scale": GUIDANCE})
        bridge = bridge_of(name, steps, seed)
        return bridge.generate(prompts.texts, seed=seed, **few_steps(bridge, steps))

    def against_teacher(measure: Callable[[Any, Any], Any], *names: str) -> dict[str, Callable[[int], Any]]:
        """Images of two steps and the teacher's of 32 for the same noise, measured."""

        def arm(name: str, seed: int) -> Any:
            return measure(made(name, 2, seed), made("teacher", TEACHER, seed))

        return {name: partial(arm, name) for name in names}

    def crisp(images: list[Any], others: list[Any]) -> np.ndarray:
        """High-frequency energy relative to the others', at most 1, as noise has more than enough."""
        ours, theirs = (sharpness(np.stack([np.asarray(image) for image in one])) for one in (images, others))
        return np.minimum(ours / np.maximum(theirs, 1e-6), 1.0)

    two = ("lightning", "squared error", "teacher", "random features")
    fidelity = {"lightning": partial(made, "lightning", 4), "teacher": partial(made, "teacher", TEACHER),
                "teacher in 4 steps": partial(made, "teacher", 4)}  # fmt: skip
    near = against_teacher(lambda images, others: -pixel_distance(images, others), "lightning", "end alone")
    return [
        lab.compare(against_teacher(crisp, *two), expect="lightning > squared error", control="random features",
                    name="sharpness"),
        lab.compare(against_teacher(lambda images, others: -kid(images, others), *two), name="minus KID",
                    expect="lightning > squared error", control="random features"),
        lab.compare(fidelity, metric=prompts.whole,
                    expect="lightning > teacher - 0.05, lightning > teacher in 4 steps"),
        lab.compare(near, expect="lightning > end alone", name="closeness"),  # the other arm is the control
    ]  # fmt: skip
