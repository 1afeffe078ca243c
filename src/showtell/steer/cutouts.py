"""Pictures as an encoder is to see them while they are optimised for it: many distorted cutouts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Inside(torch.autograd.Function):
    """Clamps to [0, 1]; gradients pass where following them does not lead further outside."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        context.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (values,) = context.saved_tensors
        return slope * (slope * (values - values.clamp(0, 1)) >= 0)


def cutouts(
    pixels: Tensor, count: int, generator: torch.Generator, augmented: bool = True, noise: float = 0.1
) -> Tensor:
    """`count` views of each image, (n x count, 3, h, w) of (n, 3, h, w) in [0, 1]: squares of 50 to 100 % of the side,
    flipped, turned, tilted, more or less saturated, with noise; or the image itself, `count` times."""
    views = pixels.repeat_interleave(count, dim=0)
    if not augmented:
        return views

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(views), *shape, generator=generator)

    share, angle = uniform(0.5, 1.0), uniform(-0.5, 0.5)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    turned = torch.zeros(len(views), 3, 3)
    turned[:, 0, 0], turned[:, 0, 1] = flip * share * angle.cos(), -share * angle.sin()
    turned[:, 1, 0], turned[:, 1, 1] = flip * share * angle.sin(), share * angle.cos()
    turned[:, :2, 2] = uniform(-1, 1, 2) * (1 - share)[:, None]  # no part of the square itself is outside
    turned[:, 2, :2], turned[:, 2, 2] = uniform(-0.15, 0.15, 2), 1.0
    plane = F.affine_grid(torch.eye(2, 3)[None], [1, 3, *pixels.shape[-2:]], align_corners=False)[0]
    grid = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1) @ turned[:, None].transpose(-1, -2)
    views = F.grid_sample(views, grid[..., :2] / grid[..., 2:], padding_mode="reflection", align_corners=False)
    grey, most = views.mean(1, keepdim=True), uniform(0, noise, 1, 1, 1)
    views = grey + (views - grey) * uniform(0.9, 1.1, 1, 1, 1)
    return views + most * torch.randn(views.shape, generator=generator)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """The great-circle distance of unit vectors, squared and halved."""
    return 2 * ((one - other).norm(dim=-1) / 2).clamp(max=1 - 1e-6).arcsin().square()
