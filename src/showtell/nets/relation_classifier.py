"""A transformer over attention maps that tells how two things lie to each other (arXiv 2509.02295, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from torch import Tensor, nn

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.98)
"""The shares of the sampling at which it reads maps."""


class RelationClassifier(nn.Module):
    """Maps (n, 2, channels, side, side) and numbers of `levels` (n,) -> logits (n, relations).

    channels: of the maps, such as the heads of all layers. Each object's maps go through two layers with an embedding
    of the level before each, and a learned query pools them into one map; both maps go through two more.
    """

    def __init__(
        self,
        channels: int,
        side: int = 16,
        width: int = 256,
        levels: Sequence[float] = LEVELS,
        dropout: float = 0.3,
        relations: int = 4,
    ) -> None:
        super().__init__()
        self.channels, self.side, self.levels = channels, side, tuple(levels)

        def layers(heads: int) -> nn.ModuleList:
            make = partial(nn.TransformerEncoderLayer, width, heads, 128, dropout, batch_first=True, norm_first=True)
            return nn.ModuleList(make() for _ in range(2))

        self.given, self.time = nn.Linear(side**2, width), nn.Embedding(len(levels), width)
        place = get_1d_sincos_pos_embed_from_grid(width, torch.arange(channels), output_type="pt")
        self.register_buffer("place", place.float(), persistent=False)
        self.extract, self.query = layers(2), nn.Parameter(torch.randn(1, 1, width))
        self.pool, self.map = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, side**2)
        self.both, self.relate, self.late = nn.Linear(2 * side**2, width), layers(4), nn.Embedding(len(levels), 16)
        sizes, parts = [width + 16, 256, 128], []
        for less, more in pairwise(sizes):
            parts += [nn.Linear(less, more), nn.LayerNorm(more), nn.LeakyReLU(0.1), nn.Dropout(dropout)]
        self.head = nn.Sequential(*parts, nn.Linear(sizes[-1], relations))

    def forward(self, maps: Tensor, level: Tensor) -> Tensor:
        states = self.given(maps.flatten(0, 1).flatten(2)) + self.place
        time = self.time(level).repeat_interleave(2, dim=0)[:, None]
        for layer in self.extract:
            states = layer(states + time)
        pooled, _ = self.pool(self.query.expand(len(states), -1, -1), states, states, need_weights=False)
        states = self.both(self.map(pooled[:, 0]).view(len(maps), -1))[:, None]
        for layer in self.relate:
            states = layer(states)
        return self.head(torch.cat([states[:, 0], self.late(level)], dim=1))
