"""The noise that sampling starts from: per-sample seeds, interpolation, choosing among several, optimising it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..bridges.base import Run, Technique
from ..bridges.diffusion import _generators
from ..errors import ShowtellError

Score = Callable[[Run, torch.Tensor], torch.Tensor]
"""Starting noise (n, ...) -> a number per sample, (n,). `run.predict` and `preview` may be used."""


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise (n, *shape), row i what `generate(seed=[...])` draws for seeds[i]. For `latents=`."""
    rows = [torch.randn((1, *shape), generator=g) for g in _generators(list(seeds), None, len(seeds))]
    return torch.cat(rows)


def slerp(first: torch.Tensor, second: torch.Tensor, amount: float) -> torch.Tensor:
    """Spherical interpolation of noise (n, ...), each sample on its own: stays as long as Gaussian noise is."""
    if amount in (0, 1):
        return second if amount else first
    a, b = first.flatten(1), second.flatten(1)
    angle = torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1).acos()[:, None]
    if bool((angle < 1e-4).all()):
        return torch.lerp(first, second, amount)
    weights = ((1 - amount) * angle).sin() / angle.sin(), (amount * angle).sin() / angle.sin()
    return (weights[0] * a + weights[1] * b).view_as(first)


def preview(run: Any, latents: torch.Tensor) -> torch.Tensor:
    """The clean latents that one guided prediction from `latents` implies."""
    return run.clean(run.predict(latents), latents)


class BestNoise(Technique):
    """Starts each sample from the best of `count` noises by a score: its own and count - 1 further ones.

    score: see `Score`; larger is better. The further noises follow from the sample's seed; count 1 changes nothing.
    """

    def __init__(self, score: Score, count: int = 4) -> None:
        if count < 1:
            raise ShowtellError(f"count={count}: use 1 or more.")
        self.score, self.count = score, count

    def start(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        if self.count == 1:
            return None
        best, top = latents, self.score(run, latents)
        for index in range(1, self.count):
            other = further_noise(run, latents, index)
            score = self.score(run, other)
            better = (score > top).view(-1, *[1] * (latents.ndim - 1))
            best, top = torch.where(better, other, best), torch.maximum(score, top)
        return best


def further_noise(run: Any, latents: torch.Tensor, index: int) -> torch.Tensor:
    """The index-th further starting noise of a run, like `latents`; the run's own generators stay as they are."""
    given = run.generators if isinstance(run.generators, list) else [run.generators] * len(latents)
    rows = []
    for row, generator in enumerate(given):
        seed = 0 if generator is None else generator.initial_seed()
        alone = 0 if isinstance(run.generators, list) else row
        own = torch.Generator().manual_seed((seed + 7919 * index + 104729 * alone) % 2**63)
        rows.append(torch.randn(latents.shape[1:], generator=own))
    scale = getattr(run.scheduler, "init_noise_sigma", 1.0)
    return torch.stack(rows).to(latents) * scale


class OptimisedNoise(Technique):
    """Lowers a loss over the starting noise by gradient descent (Adam), keeping each sample's norm.

    loss: see `Score`; smaller is better, and a sample's loss may not depend on other samples. steps 0 changes nothing.
    """

    def __init__(self, loss: Score, steps: int = 10, size: float = 0.05) -> None:
        self.loss, self.steps, self.size = loss, steps, size

    def start(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        if self.steps == 0:
            return None
        norm = latents.flatten(1).norm(dim=1).view(-1, *[1] * (latents.ndim - 1))
        with torch.enable_grad():
            noise = latents.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([noise], lr=self.size)
            for _ in range(self.steps):
                optimizer.zero_grad()
                [noise.grad] = torch.autograd.grad(self.loss(run, noise).sum(), noise)
                optimizer.step()
                with torch.no_grad():
                    noise.mul_(norm / noise.flatten(1).norm(dim=1).view_as(norm))
        return noise.detach()
