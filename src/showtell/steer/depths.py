"""Attention layer by layer: maps of words weighed by their layer, and self-attention that refines them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bridges.base import Run, Technique
from ..bridges.layout import Place


class AttentionByDepth(Technique):
    """Adds up what every layer attends to, the mean over its heads, over all evaluations. Images do not change.

    The run's state holds `words`, depth -> (n, text tokens, height, width), and, of the layers on the largest grid,
    `places`, depth -> (n, places, places).
    """

    def start(self, run: Run, latents: Tensor) -> None:
        run.state(self).words, run.state(self).places = {}, {}

    def wants(self, run: Run, place: Place) -> bool:
        return place.fold == 1 and (place.text is not None or self._largest(run, place))

    def _largest(self, run: Any, place: Place) -> bool:
        grids = getattr(run, "grids", [place.grid])
        return place.image_keys is not None and max(place.grid) == max(max(grid) for grid in grids)

    def attention(self, run: Run, site: Any) -> None:
        state, maps = run.state(self), site.probabilities("text", "image").float().mean(dim=1)
        if site.text is not None:
            words = maps[..., site.text].transpose(1, 2).unflatten(2, site.grid)
            state.words[site.depth] = state.words.get(site.depth, 0) + words
        if self._largest(run, site.place):
            state.places[site.depth] = state.places.get(site.depth, 0) + maps[..., site.image_keys]


def across_depths(words: dict[int, Tensor], places: dict[int, Tensor], spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """(maps (n, tokens, height, width), attention (n, places, places)) of what `AttentionByDepth` found, on the largest
    grid. Each place's row of the attention says what refines a map there: maps.flatten(2) @ attention.mT.

    Maps are weighted by a Gaussian of `spread` layers around the layers of the smallest grid; attention is the product
    of the mean over the layers after these (all, where none comes after) and the mean over all (arXiv 2506.09740).
    """
    depths, grid = sorted(words), max((one.shape[-2:] for one in words.values()), key=max)
    smallest = min(max(one.shape[-2:]) for one in words.values())
    middle = [i for i, depth in enumerate(depths) if max(words[depth].shape[-2:]) == smallest]
    offsets = torch.arange(len(depths)) - sum(middle) / len(middle)
    bell = torch.exp(-(offsets**2) / (2 * spread**2))
    resized = torch.stack([F.interpolate(words[depth], tuple(grid), mode="bilinear") for depth in depths])
    maps = torch.einsum("d,d...->...", (bell / bell.sum()).to(resized), resized)
    later = [one for depth, one in places.items() if depth > depths[middle[-1]]] or list(places.values())
    every, after = (torch.stack(some).mean(dim=0) for some in (list(places.values()), later))
    return maps, after @ every
