"""AdaIN: places take what they attend to; latents end with a picture's mean and deviation."""

from __future__ import annotations

import torch

from showtell.steer.adain import GlobalAdaIN, attended, normal
from steering import sampled


def test_places_take_what_they_attend_to() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(1, 2, 6, 3, generator=generator) for _ in range(2))
    flat = torch.full((1, 2, 6, 6), 1 / 6)
    moved = attended(own, other, flat)
    assert torch.allclose(moved.mean(2), other.mean(2), atol=1e-5)
    assert torch.allclose(moved.std(2, correction=0), other.std(2, correction=0), atol=1e-4)
    assert torch.allclose(normal(moved), normal(own), atol=1e-4)
    order = torch.randperm(6, generator=generator)
    one = torch.eye(6)[order].expand(1, 2, 6, 6)
    assert torch.allclose(attended(own, other, one), other[:, :, order], atol=1e-3), "no spread around a single place"
    # By hand: a place that sees 0 and 2 half and half has mean 1 and deviation 1.
    found = attended(torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [2.0]]), torch.full((2, 2), 0.5))
    assert torch.allclose(found, torch.tensor([[0.0], [2.0]]))


def test_global_adain() -> None:
    picture = 3 + 2 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    found = sampled("sd", GlobalAdaIN(picture))
    assert torch.allclose(found.mean((2, 3)), picture.mean((2, 3)).expand(2, 4), atol=1e-4)
    assert torch.allclose(found.std((2, 3), correction=0), picture.std((2, 3), correction=0).expand(2, 4), atol=1e-4)
    assert torch.allclose(normal(found.flatten(2).mT), normal(sampled("sd").flatten(2).mT), atol=1e-3)
