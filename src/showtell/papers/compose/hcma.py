"""HCMA: Hierarchical Cross-Modal Alignment for Grounded Text-to-Image Generation.
Wang, Cheng, Lin, Shen, Zhang, 2025, arXiv 2505.06512

A small transformer reads noisy latents: its [CLS] token is brought near the caption's embedding, its patches inside of
each box near the embedding of what the box holds. At every step of the sampling the gradients of both distances move
the latents, first for the whole, then for the boxes; the diffusion model is left as it is.

Faithful: a ViT on the latents, a three-layer MLP from [CLS], boxes with Fourier embeddings fused with the grid of
patches (a patch of 4x4 latents), mean-pooled and sent through an MLP; both losses are 1 - cosine; trained on latents at
random noise levels with the diffusion model frozen; global then local update before each denoising step.
Ours: the released code and the step sizes were not to be had; a step is 0.02 of the latents' norm, an estimate that was
not tuned. Training adds a contrast with the other texts of a batch, as a cosine alone is met by what all texts share.
Texts are the mean of their words' states in the base's own text encoder (the paper: CLIP's sentence embedding), so that
any base can be used; latents are seen at unit variance, for any scheduler. A box's features are the mean over the
patches it covers, beside its Fourier embedding.
Scaled down: 3000 drawn scenes, a ViT of 0.5 M parameters on patches of 2x2 latents. Not measured: FID.

Inconclusive: 0.07 of the things overlap their boxes by more than half, 0.02 plainly, 0.04 towards other boxes, and 0.17
by attention refocusing (24 prompts, 3 seeds); by the second judge the gain over the whole loss alone is not certain.
The direction is right and the step small: it was fixed without a look at results. Completeness has no room (0.85).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.base import Run, Technique, spread
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PromptSet
from showtell.nets.aligner import Aligner
from showtell.steer.boxes import numbered, of_others
from showtell.steer.refocusing import Refocus
from showtell.steer.regions import Box, named_boxes
from showtell.steer.sentences import sentences
from showtell.train import fit
from showtell.train.cosines import contrast, misfit
from showtell.train.noising import Noising
from showtell.train.samples import drawn, latents_of, paired, training_scenes

Boxes = Mapping[str, Box]
SIZE = 0.02
"""Of a step, as a share of the latents' norm."""

EXAMPLE = """
import showtell
from showtell.papers.compose.hcma import Hcma, aligned
from showtell.train.samples import latents_of

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
captions = ["a dog on a lawn", "a cat"]                           # better: tens of thousands of photographs, as in COCO
pictures = bridge.generate(captions, seed=[1, 2])
boxes = [{"dog": (0.1, 0.2, 0.5, 0.9)}, {"cat": (0.5, 0.3, 0.9, 0.8)}]
aligner = aligned(bridge, latents_of(bridge, pictures), captions, boxes, steps=100_000)
where = {"dog": (0.0, 0.3, 0.5, 1.0), "cat": (0.5, 0.3, 1.0, 1.0)}
[image] = bridge.generate("a dog and a cat", using=[Hcma(aligner, where)], seed=0)
"""


def aligned(
    bridge: Any, latents: Tensor, captions: Sequence[str], boxes: Sequence[Boxes], steps: int = 1500,
    batch_size: int = 64, lr: float = 1e-3, weight: float = 1.0, seed: int = 0, **sizes: Any,
) -> Aligner:  # fmt: skip
    """An `Aligner` trained on clean latents (n, ...), their captions and what is in which box.

    weight: of the boxes' losses (lambda). sizes: patch, width and layers of the `Aligner`.
    Raises ShowtellError where the numbers differ.
    """
    if not len(latents) == len(captions) == len(boxes):
        counts = f"{len(latents)} latents, {len(captions)} captions, {len(boxes)} sets of boxes"
        raise ShowtellError(f"{counts}: give one each.")
    noising, (names, where, label) = Noising(bridge), numbered(boxes)
    told, labels = sentences(bridge, captions), sentences(bridge, names)

    def loss(model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        at, there = noising.noised(batch["latents"], generator), batch["label"] >= 0
        whole, parts = model(at.latents / torch.hypot(at.alpha, at.sigma), batch["where"].float())
        caption, own, parts = told.to(whole)[batch["row"]], labels.to(whole)[batch["label"][there]], parts[there]
        near = misfit(whole, caption).mean() + weight * misfit(parts, own).mean()
        apart = contrast(whole, caption, model.scale) + weight * contrast(parts, own, model.scale)
        return near + apart, {"near": near, "apart": apart}

    torch.manual_seed(seed)
    model = Aligner(latents.shape[1], latents.shape[2:], told.shape[1], **sizes)
    data = paired(latents, batch_size, where=where.numpy(), label=label.numpy())
    return fit(model, loss, data, steps=steps, lr=lr, seed=seed, progress=False).model.requires_grad_(False)


class Hcma(Technique):
    """Before every step the latents follow the gradient for the caption, then that for the boxes.

    boxes: phrase -> box, the same for all samples or one mapping each. sizes: of the two steps, as shares of the
    latents' norm; 0 takes none. until: fraction of the sampling.
    """

    def __init__(
        self, aligner: Aligner, boxes: Boxes | Sequence[Boxes], sizes: Sequence[float] = (SIZE, SIZE),
        until: float = 1.0,
    ) -> None:  # fmt: skip
        self.aligner, self.boxes, self.sizes, self.until = aligner, boxes, sizes, until

    def start(self, run: Run, latents: Tensor) -> None:
        state = run.state(self)
        names, where, label = numbered(spread(self.boxes, len(run.prompts), "boxes"))
        there = label >= 0
        state.where, state.there = where.to(latents.device), there.float().to(latents.device)
        state.caption = sentences(run, run.prompts)
        state.labels = state.caption[:, None].repeat(1, label.shape[1], 1)
        if names:
            state.labels[there] = sentences(run, names)[label[there]]

    def losses(self, run: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Omega of the whole and of the boxes, (n,) each; 0 where a sample has no box."""
        state, (alpha, sigma) = run.state(self), run.noise_level()
        whole, parts = self.aligner(latents.float() / (alpha**2 + sigma**2) ** 0.5, state.where)
        local = (misfit(parts, state.labels) * state.there).sum(dim=1) / state.there.sum(dim=1).clamp(min=1)
        return misfit(whole, state.caption), local

    def before(self, run: Run, latents: Tensor) -> Tensor | None:
        if run.progress >= self.until or not any(self.sizes):
            return None
        shape = (-1, *[1] * (latents.ndim - 1))
        for part, size in enumerate(self.sizes):
            if size:
                with torch.enable_grad():
                    given = latents.detach().requires_grad_()
                    [slope] = torch.autograd.grad(self.losses(run, given)[part].sum(), given)
                way = F.normalize(slope.flatten(1).float(), dim=1).view_as(slope)
                latents = latents - (size * latents.flatten(1).norm(dim=1).view(shape) * way).to(latents)
        return latents


PICTURES, STEPS = 3000, 1200
SIZES: dict[str, Any] = {"patch": 2, "width": 96, "layers": 4}


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("objects-3-4", min(lab.n, 24))

    def named(told: Any, boxes: Sequence[Any]) -> list[Boxes]:
        return [named_boxes(*pair) for pair in zip(told.phrases, boxes, strict=True)]

    def train() -> Aligner:
        told = PromptSet.of("training", training_scenes(PICTURES), 0, "train")
        latents = latents_of(bridge, drawn(told.scenes))
        return aligned(bridge, latents, told.texts, named(told, told.boxes), STEPS, **SIZES)

    @cache
    def aligner() -> Aligner:
        state = lab.trained("aligner", train, shared=True, pictures=PICTURES, steps=STEPS)
        shape = latents_of(bridge, drawn(training_scenes(1))).shape
        model = Aligner(shape[1], shape[2:], sentences(bridge, ["a ring"]).shape[1], **SIZES)
        model.load_state_dict(state)
        return model.eval().requires_grad_(False)

    def steered(where: Sequence[Boxes], sizes: Sequence[float], seed: int) -> list[Any]:
        return bridge.generate(prompts.texts, using=[Hcma(aligner(), where, sizes)], seed=seed)

    own, others = (named(prompts, boxes) for boxes in (prompts.boxes, of_others(prompts.boxes)))
    refocus = Refocus([{name: [box] for name, box in one.items()} for one in own])
    arms: dict[str, Any] = {
        "hcma": partial(steered, own, (SIZE, SIZE)),
        "plain": lambda seed: bridge.generate(prompts.texts, seed=seed),
        "whole only": partial(steered, own, (SIZE, 0.0)),
        "boxes only": partial(steered, own, (0.0, SIZE)),
        "attention refocusing": lambda seed: bridge.generate(prompts.texts, using=[refocus], seed=seed),
        "boxes of others": partial(steered, others, (SIZE, SIZE)),
    }
    expect, attributes = "hcma > plain, hcma > whole only", "hcma > plain, hcma > boxes only"
    return [
        lab.compare(arms, prompts.placed, expect=expect, control="boxes of others", name="placed"),
        lab.compare(arms, prompts.complete, expect=attributes, name="complete"),
    ]
