"""Boxes of the things of a picture: with a margin, cut out, by phrase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..language.results import Layout
from .regions import Box


def grown(box: Box, by: float) -> Box:
    """The box with a margin at every side, in fractions of the picture's sides, cut off at its edges."""
    return max(0.0, box[0] - by), max(0.0, box[1] - by), min(1.0, box[2] + by), min(1.0, box[3] + by)


def cut(image: Any, box: Box) -> Any:
    """The part of a PIL image in a box, to whole pixels."""
    sides = (image.width, image.height) * 2
    return image.crop([round(side * at) for side, at in zip(sides, box, strict=True)])


def boxes_of(layout: Layout, chosen: Sequence[bool] | None = None) -> dict[str, list[Box]]:
    """Phrase, without its article -> boxes, as `refocusing.Refocus` takes them. chosen: which objects; None: all."""
    found: dict[str, list[Box]] = {}
    for one, wanted in zip(layout.placed, chosen or [True] * len(layout.placed), strict=True):
        if wanted:
            found.setdefault(one.phrase.removeprefix("a ").removeprefix("an "), []).append(one.box)
    return found
