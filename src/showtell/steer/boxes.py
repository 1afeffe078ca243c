"""Boxes of the things of a picture: with a margin, cut out, by phrase, softly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..language.results import Layout
from ..world.language.english import without_article
from .regions import Box


def grown(box: Box, by: float) -> Box:
    """The box with a margin at every side, in fractions of the picture's sides, cut off at its edges."""
    return max(0.0, box[0] - by), max(0.0, box[1] - by), min(1.0, box[2] + by), min(1.0, box[3] + by)


def cut(image: Any, box: Box) -> Any:
    """The part of a PIL image in a box, to whole pixels."""
    sides = (image.width, image.height) * 2
    return image.crop([round(side * at) for side, at in zip(sides, box, strict=True)])


def bell(box: Box, spread: float = 0.5, floor: float = 0.0, size: int = 64) -> torch.Tensor:
    """A Gaussian on a box, (size, size) in [0, 1]: 1 in its middle, its deviations `spread` of the box's sides, 0 where
    it is below `floor`."""
    at = (torch.arange(size) + 0.5) / size
    x, y = ((at - (low + high) / 2) / (spread * (high - low)) for low, high in (box[0::2], box[1::2]))
    mask = torch.exp(-(x[None] ** 2 + y[:, None] ** 2) / 2)
    return torch.where(mask < floor, 0.0, mask)


def nearest(boxes: Sequence[Box], size: int = 64) -> torch.Tensor:
    """The index of the box that each place of a picture is nearest to, (size, size); where boxes overlap, of the one
    whose middle is."""
    at = (torch.arange(size) + 0.5) / size

    def away(box: Box) -> torch.Tensor:
        x, y = ((low - at).clamp(min=0) + (at - high).clamp(min=0) for low, high in (box[0::2], box[1::2]))
        inside = torch.maximum((at - (box[0] + box[2]) / 2).abs()[None], (at - (box[1] + box[3]) / 2).abs()[:, None])
        return torch.hypot(x[None], y[:, None]) + 1e-3 * inside

    return torch.stack([away(box) for box in boxes]).argmin(dim=0)


def numbered(boxes: Sequence[Mapping[str, Box]]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """(all phrases, sorted; boxes (n, m, 4), the whole picture where a sample has fewer than m; the number of each
    box's phrase, (n, m), -1 where there is none) of each sample's phrase -> box."""
    names, most = sorted({name for one in boxes for name in one}), max(1, *map(len, boxes))
    where, label = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(boxes), most, 1), torch.full((len(boxes), most), -1)
    for row, one in enumerate(boxes):
        for k, (name, box) in enumerate(one.items()):
            where[row, k], label[row, k] = torch.tensor(box), names.index(name)
    return names, where, label


def of_others(boxes: Sequence[Any]) -> list[Any]:
    """For each prompt the boxes of the next one that has as many, going round; its own where no other has. A control:
    layouts as good as the right ones, that say nothing of their prompt."""
    order = range(len(boxes))
    turned = [[*order[i + 1 :], *order[: i + 1]] for i in order]
    return [boxes[next(j for j in turned[i] if len(boxes[j]) == len(boxes[i]))] for i in order]


def boxes_of(layout: Layout, chosen: Sequence[bool] | None = None) -> dict[str, list[Box]]:
    """Phrase, without its article -> boxes, as `refocusing.Refocus` takes them. chosen: which objects; None: all."""
    found: dict[str, list[Box]] = {}
    for one, wanted in zip(layout.placed, chosen or [True] * len(layout.placed), strict=True):
        if wanted:
            found.setdefault(without_article(one.phrase), []).append(one.box)
    return found
