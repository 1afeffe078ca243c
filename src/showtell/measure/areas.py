"""How free and how calm a part of a picture is, as what is to be set there later needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from showtell.measure.judge import Judge
from showtell.measure.scores import objects, read
from showtell.pictures import to_pil
from showtell.steer.regions import Box, mask_on
from showtell.world import Scene
from showtell.world.draw import masks


def covered(images: Any, wanted: Sequence[Scene], areas: Sequence[Box], judge: Judge | str = "first") -> np.ndarray:
    """(n,) in [0, 1]: how much of its area the objects of each image cover, by the judge's reading.

    nan where not all wanted objects are there: losing them is no way to free an area.
    """
    found = []
    for scene, seen, box in zip(wanted, read(images, judge), areas, strict=True):
        area, drawn = mask_on(box, (64, 64)).numpy(), masks(seen).max(axis=0, initial=0.0)
        found.append(float((drawn * area).sum() / area.sum()) if objects(scene, seen) == 1 else np.nan)
    return np.array(found)


def edge_energy(images: Any, areas: Sequence[Box]) -> np.ndarray:
    """(n,): the change from pixel to pixel, across plus down, of colours in [0, 1], mean over each image's area."""
    found = []
    for image, box in zip(to_pil(images), areas, strict=True):
        pixels = np.asarray(image, float) / 255
        across, down = np.abs(np.diff(pixels, axis=1)).mean(-1), np.abs(np.diff(pixels, axis=0)).mean(-1)
        area = mask_on(box, pixels.shape[:2]).numpy()
        found.append((across * area[:, 1:]).sum() / area.sum() + (down * area[1:]).sum() / area.sum())
    return np.array(found)
