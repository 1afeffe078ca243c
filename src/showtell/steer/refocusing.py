"""Attention refocusing (arXiv 2306.05427): gradient steps that draw the attention to things into their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..bridges.base import Run
from ..bridges.layout import Place
from .gradients import AttentionGradient
from .maps import among_words, near
from .regions import Box, cells, grounded

Boxes = Mapping[str, Sequence[Box]]
"""Phrase of the prompt -> a box for each thing that it names."""


def cross_loss(maps: torch.Tensor, words: Sequence[Sequence[int]], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over things: what the best value in each of its boxes lacks of 1, and the best values elsewhere.

    maps: (text tokens, height, width). words, masks: text tokens and boxes, bool (boxes, height, width), per thing.
    """
    total = maps.sum() * 0
    for own, at in zip(masks, words, strict=True):
        word = maps[list(at)].mean(dim=0)
        mine, taken = own.any(dim=0), torch.cat(list(masks)).any(dim=0)
        total = total + sum(1 - word[box].max() for box in own) + len(own) * (word * ~(mine | taken)).max() / 2
        others = [box & ~mine for other in masks if other is not own for box in other]
        total = total + sum((word * box).max() for box in others)
    return total / max(1, len(masks))


def self_loss(attention: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over things of the attention (tokens, tokens) that the pixels of its boxes pay to what is outside."""
    boxes = torch.cat(list(masks)).flatten(1)
    return sum((attention[box].mean(dim=0) * ~box).sum() for box in boxes) / max(1, len(masks))


class Refocus(AttentionGradient):
    """Before a step: latents <- latents - scale * gradient of both losses, on the grid nearest to 16x16.

    boxes: see `Boxes`, the same for all samples or one each; a sample without any stays as it is. scale: at first, and
    in the second half. until: fraction of the sampling. iterations: at most, per step; 0 changes nothing. enough: a
    sample whose loss is at most this is left alone. sharpness: by which attention to words is multiplied before the
    softmax over them; 100 suits models whose start token takes nine tenths of it, about 10 those where it takes little:
    there words are at 0 or 1 with 100, which leaves no gradient. normalised: see `AttentionGradient`.
    """

    def __init__(
        self,
        boxes: Boxes | Sequence[Boxes],
        scale: tuple[float, float] = (4.0, 3.0),
        until: float = 0.3,
        iterations: int = 3,
        enough: float = 0.1,
        sharpness: float = 100.0,
        normalised: bool = False,
    ) -> None:
        super().__init__(
            self.losses,
            size=lambda p: scale[p >= until / 2],
            until=until,
            refinements=iterations,
            enough=enough,
            normalised=normalised,
        )
        self.boxes, self.sharpness = boxes, sharpness

    def start(self, run: Run, latents: torch.Tensor) -> None:
        run.state(self).groups = grounded(run, self.boxes)

    def wants(self, run: Run, place: Place) -> bool:
        return getattr(run.state(self), "maps", None) is not None and place.fold == 1 and near(run, place)

    def attention(self, run: Run, site: Any) -> None:
        seen = site.probabilities("text", "image").float().mean(dim=1)
        for part, span in (("cross", site.text), ("self", site.image_keys)):
            if span is not None:
                run.state(self).maps.append((part, site.grid, seen[..., span]))

    def losses(self, run: Run, maps: Any) -> torch.Tensor:
        grid, cross = maps[0][1], [one for part, _, one in maps if part == "cross"]
        words = torch.stack(cross).mean(dim=0).transpose(1, 2).unflatten(-1, grid)
        words = among_words(words, sharpness=self.sharpness)
        rows = []
        for row, group in enumerate(run.state(self).groups):
            masks = [torch.stack([cells(box, grid) for box in boxes]).to(words.device) for _, boxes in group]
            losses = [self_loss(one[row], masks) for part, _, one in maps if part == "self" and masks]
            total = cross_loss(words[row], [list(each) for each, _ in group], masks)
            rows.append(total + sum(losses) / max(1, len(losses)))
        return torch.stack(rows)
