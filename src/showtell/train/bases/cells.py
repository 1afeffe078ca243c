"""What each cell of a picture shows, read off a network while it learns something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.train.bases.pool import CELLS

CELL_WEIGHT = 0.5


class CellReader(nn.Sequential):
    """A linear head for each of `pool.CELLS` on features of cells; it guides training and is not kept.

    Networks that learn what is in a picture beside how it looks learn both many times faster (arXiv 2410.06940); here
    what is in it is known.
    """

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, sum(CELLS.values())))

    def forward(self, features: Tensor) -> list[Tensor]:  # type: ignore[override]
        """features (n, cells, width) -> logits (n, cells, values) of each kind of fact."""
        return list(super().forward(features).split(list(CELLS.values()), dim=-1))


def cell_loss(shown: list[Tensor], cells: Tensor) -> Tensor:
    """Cross entropy of what every cell shows, on average over the kinds of facts. cells: (n, side, side, kinds)."""
    wanted = cells.flatten(1, 2)
    each = [F.cross_entropy(one.float().flatten(0, 1), wanted[..., i].flatten()) for i, one in enumerate(shown)]
    return torch.stack(each).mean()
