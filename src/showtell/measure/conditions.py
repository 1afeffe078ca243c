"""Spatial conditions of the world's scenes, for methods that are controlled by them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from showtell.errors import ShowtellError
from showtell.world import Scene
from showtell.world.draw import edges, masks


def condition(scene: Scene, which: Sequence[int], kind: str, alone: bool) -> np.ndarray:
    """A picture (64, 64, 3) of some of a scene's objects by "edges" or "mask"; alone: as if there were no others."""
    if kind not in ("edges", "mask"):
        raise ShowtellError(f"unknown condition {kind!r}; use 'edges' or 'mask'.")
    part = Scene(tuple(scene.objects[i] for i in which)) if alone else scene
    chosen = list(range(len(which)) if alone else which)
    shown: np.ndarray = (masks(part)[chosen] > 0.5).max(0)
    values = shown.astype(float)
    if kind == "edges":
        near = max_pool2d(torch.from_numpy(values)[None], 3, 1, 1)[0].numpy()  # outlines lie on the rim
        values = edges(part) * near
    return (255 * np.repeat(values[..., None], 3, axis=2)).astype(np.uint8)


def edges_and_masks(scenes: Sequence[Scene], alone: bool, seed: int = 0) -> list[list[np.ndarray]]:
    """Of every scene of two objects one by its "edges", at random which, and the other by its "mask", in this order.

    alone: see `condition`.
    """
    rng = random.Random(seed)
    firsts = [rng.randint(0, 1) for _ in scenes]
    return [
        [condition(scene, [first], "edges", alone), condition(scene, [1 - first], "mask", alone)]
        for scene, first in zip(scenes, firsts, strict=True)
    ]
