"""Conditions left out of some training rows, so that sampling can be guided by each of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from showtell.bridges.base import Text


def dropped(text: Text, empty: Text, name: str, generator: torch.Generator | None = None, share: float = 0.05) -> Text:
    """`text` with its picture (`text.extra[name]`, zeros) left out of `share` of the rows, the words (those of `empty`,
    one row) of as many, and both of as many (arXiv 2211.09800, section 3.2.1; arXiv 2308.06721)."""
    chance = torch.rand(len(text), generator=generator, device=text.tokens.device)
    blank = chance < 2 * share
    blind = (chance >= share) & (chance < 3 * share)

    def without(values: Tensor, others: Tensor | float, rows: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (values.ndim - 1)), others, values)

    pooled = None if text.pooled is None or empty.pooled is None else without(text.pooled, empty.pooled, blank)
    mask = None if text.mask is None or empty.mask is None else without(text.mask, empty.mask, blank)
    picture = without(text.extra[name], 0.0, blind)
    tokens = without(text.tokens, empty.tokens, blank)
    return replace(text, tokens=tokens, pooled=pooled, mask=mask, extra={**text.extra, name: picture})
