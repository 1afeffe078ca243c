"""The multi-control encoder of AnyControl (arXiv 2406.18958, section 3.2): any number of pictures read by queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class MultiControlEncoder(ModelMixin, ConfigMixin):
    """Visual tokens of several conditions and a prompt's tokens -> one control embedding.

    side: queries are a side x side grid. levels: depths of the visual encoder that are read, one fusion block each.
    visual: (tokens of a picture, their width). text_width: of the prompt's tokens. out_channels: of the embedding.
    alignment: whether queries and words attend to one another.
    """

    @register_to_config
    def __init__(
        self,
        side: int = 8,
        width: int = 256,
        levels: int = 4,
        heads: int = 4,
        visual: tuple[int, int] = (257, 1024),
        text_width: int = 768,
        out_channels: int = 320,
        alignment: bool = True,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.places = nn.Parameter(0.02 * torch.randn(visual[0], width))  # shared by all conditions
        self.read_visual = nn.ModuleList([nn.Linear(visual[1], width) for _ in range(levels)])
        self.read_text = nn.Linear(text_width, width)
        self.fusion = nn.ModuleList([_Attention(width, heads) for _ in range(levels)])
        self.align = nn.ModuleList([_Attention(width, heads) for _ in range(levels if alignment else 0)])
        self.feed = nn.ModuleList([_feed(width) for _ in range(levels)])
        self.out = nn.Conv2d(width, out_channels, 1)

    def forward(self, visual: Sequence[Tensor], there: Tensor, text: Tensor) -> Tensor:
        """The embedding, (n, out_channels, side, side).

        visual: for every level tokens (n, conditions, tokens, width). there: (n, conditions) bool, which conditions are
        given; of none the queries read nothing. text: (n, words, width).
        """
        n, side = len(text), self.config.side
        words, queries = self.read_text(text), self.queries.expand(n, -1, -1)
        given = there[:, :, None].expand(-1, -1, visual[0].shape[2]).flatten(1)
        some = there.any(1)[:, None, None]
        for level, (read, fuse, feed) in enumerate(zip(self.read_visual, self.fusion, self.feed, strict=True)):
            seen = (read(visual[level]) + self.places).flatten(1, 2)
            queries = queries + torch.where(some, fuse(queries, seen, given | ~there.any(1, keepdim=True)), 0.0)
            if len(self.align):
                both = torch.cat([queries, words], dim=1)
                both = both + self.align[level](both, both)
                queries, words = both.split([side * side, words.shape[1]], dim=1)
            queries = queries + feed(queries)
        return self.out(queries.transpose(1, 2).unflatten(2, (side, side)))


class _Attention(nn.Module):
    """Attention of normalised tokens to others, or to themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, others: Tensor, seen: Tensor | None = None) -> Tensor:
        """(n, tokens, width). seen: (n, others) bool, which of the others are attended to."""
        query = self.q(self.first(tokens))
        key, value = self.kv(self.second(others)).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = None if seen is None else seen[:, None, None]
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(found.transpose(1, 2).flatten(2))


def _feed(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
