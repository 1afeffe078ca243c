"""Norms put into a decoder that has none at these places (arXiv 2405.09818, section 2.3): over each head's queries or
keys, and after a block instead of before it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadNorm(nn.Module):
    """A projection whose output is normalised head by head, each head with scales and shifts of its own."""

    def __init__(self, projection: nn.Linear, size: int) -> None:
        super().__init__()
        self.projection, shape = projection, (projection.out_features // size, size)
        like = projection.weight
        self.weight = nn.Parameter(torch.ones(shape, device=like.device, dtype=like.dtype))
        self.bias = nn.Parameter(torch.zeros(shape, device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.projection(x).unflatten(-1, self.weight.shape)
        return (F.layer_norm(heads, heads.shape[-1:]) * self.weight + self.bias).flatten(-2)


class NormedAfter(nn.Module):
    """A block (attention or feed-forward) with a norm after it."""

    def __init__(self, block: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.block, self.norm = block, norm

    def forward(self, *inputs: Any, **named: Any) -> Any:
        made = self.block(*inputs, **named)
        return self.norm(made) if isinstance(made, Tensor) else (self.norm(made[0]), *made[1:])
