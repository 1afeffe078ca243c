"""Noise is drawn, mixed, chosen and optimised as said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.steer.noise import BestNoise, OptimisedNoise, preview, seeded_noise, slerp
from steering import FAMILIES, PROMPTS, sampled


class Start(Technique):
    def __init__(self) -> None:
        self.noise: Any = None

    def start(self, run: Any, latents: torch.Tensor) -> None:
        self.noise = latents


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_are_those_of_generate(name: str) -> None:
    noise = seeded_noise([7, 8], (4, 8, 8))
    assert torch.equal(sampled(name, latents=noise), sampled(name, seed=[7, 8]))


def test_slerp() -> None:
    a, b = seeded_noise([1, 2], (4, 8, 8)), seeded_noise([3, 4], (4, 8, 8))
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    quarter = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.allclose(slerp(*quarter, 0.5), torch.full((1, 2), 0.5**0.5))
    norms = [slerp(a, b, t).flatten(1).norm(dim=1) for t in (0.0, 0.5, 1.0)]
    assert (norms[1] - (norms[0] + norms[2]) / 2).abs().max() < 0.05 * norms[0].min()
    assert torch.allclose(slerp(a, a, 0.3), a)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_best_noise_wins(name: str) -> None:
    scores: list[torch.Tensor] = []

    def score(run: Any, noise: torch.Tensor) -> torch.Tensor:
        scores.append(noise.mean(dim=(1, 2, 3)))
        return scores[-1]

    start, first, alone = Start(), Start(), Start()
    sampled(name, BestNoise(score, 4), start)
    assert len(scores) == 4 and torch.stack(scores).std(dim=0).min() > 0
    assert torch.equal(start.noise.mean(dim=(1, 2, 3)), torch.stack(scores).amax(dim=0))
    assert torch.equal(scores[0], (sampled(name, first), first.noise)[1].mean(dim=(1, 2, 3)))
    sampled(name, BestNoise(score, 4), alone, prompts=PROMPTS[:1])
    assert torch.equal(alone.noise[0], start.noise[0])  # whatever the batch
    assert torch.equal(sampled(name, BestNoise(score, 1)), sampled(name))
    with pytest.raises(ShowtellError, match="1 or more"):
        BestNoise(score, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_optimised_noise_lowers_the_loss(name: str) -> None:
    def loss(run: Any, noise: torch.Tensor) -> torch.Tensor:
        values = preview(run, noise)[:, 0].pow(2).mean(dim=(1, 2))
        losses.append(values.detach())
        return values

    losses: list[torch.Tensor] = []
    before, after = Start(), Start()
    sampled(name, before, OptimisedNoise(loss, steps=4), after)
    assert (losses[-1] < losses[0]).all()
    assert torch.allclose(after.noise.flatten(1).norm(dim=1), before.noise.flatten(1).norm(dim=1), rtol=1e-5)
    assert not after.noise.requires_grad
    assert torch.equal(sampled(name, OptimisedNoise(loss, steps=0)), sampled(name))
