"""Where maps of words lie and how much of each other's place they take."""

from __future__ import annotations

import torch


def shares(maps: torch.Tensor) -> torch.Tensor:
    """Maps (..., height, width) >= 0, each made to sum to one."""
    return maps / maps.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-12)


def centroids(maps: torch.Tensor) -> torch.Tensor:
    """The centres of mass of maps (..., height, width) >= 0, (..., 2): x and y as fractions of the width and height."""
    height, width = maps.shape[-2:]
    own = shares(maps)
    x = (torch.arange(width, device=maps.device) + 0.5) / width
    y = (torch.arange(height, device=maps.device) + 0.5) / height
    return torch.stack([(own.sum(dim=-2) * x).sum(dim=-1), (own.sum(dim=-1) * y).sum(dim=-1)], dim=-1)


def pairwise_overlap(maps: torch.Tensor) -> torch.Tensor:
    """What every two maps of (k, height, width) share, as a part of both together, (k (k - 1) / 2,) in [0, 1/2]."""
    a, b = torch.triu_indices(len(maps), len(maps), 1, device=maps.device)
    both = (maps[a] + maps[b]).sum(dim=(1, 2))
    return torch.minimum(maps[a], maps[b]).sum(dim=(1, 2)) / both.clamp(min=1e-12)


def overlapping(masks: torch.Tensor, tolerated: float) -> bool:
    """Whether two of the masks, bool (k, height, width), have an intersection over union above `tolerated`."""
    a, b = torch.triu_indices(len(masks), len(masks), 1, device=masks.device)
    common, both = (masks[a] & masks[b]).sum(dim=(1, 2)), (masks[a] | masks[b]).sum(dim=(1, 2))
    return bool((common > tolerated * both).any())


def translated(maps: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Maps (n, k, height, width) moved by (n, 2), x and y in fractions of the sides; bilinear, zeros come in."""
    moves = torch.eye(2, 3, device=maps.device).repeat(len(maps), 1, 1)
    moves[:, :, 2] = -2 * by  # the grid says where each cell's value comes from, in sides of 2
    grid = torch.nn.functional.affine_grid(moves, list(maps.shape), align_corners=False)
    return torch.nn.functional.grid_sample(maps.float(), grid, align_corners=False).to(maps)
