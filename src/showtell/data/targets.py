"""Scenes as arrays: what a network that parses images is trained to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from showtell.world.scene import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    MAX_OBJECTS,
    MAX_WORD,
    ROTATIONS,
    SHAPES,
    SIZES,
    STATES,
    STYLES,
    TEXTURES,
    Scene,
)

OBJECT_VALUES: dict[str, Sequence[Any]] = {
    "shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "state": STATES, "rotation": ROTATIONS,
}  # fmt: skip
SCENE_VALUES: dict[str, Sequence[str]] = {"background": BACKGROUNDS, "style": STYLES, "light": LIGHTS}
LETTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_INDEX = {name: {v: i for i, v in enumerate(values)} for name, values in (OBJECT_VALUES | SCENE_VALUES).items()}


def targets(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """present (n, k) bool, place (n, k, 2) in [0, 1], depth (n, k), object attributes (n, k) as indices, overlap
    (n, k, k) bool where the order in depth is visible, scene attributes (n,), word (n, letters); k = MAX_OBJECTS."""
    n, k = len(scenes), MAX_OBJECTS
    out: dict[str, np.ndarray] = {name: np.zeros((n, k), np.int64) for name in OBJECT_VALUES}
    out |= {name: np.zeros(n, np.int64) for name in SCENE_VALUES}
    out |= {"present": np.zeros((n, k), bool), "place": np.zeros((n, k, 2), np.float32)}
    out |= {"depth": np.zeros((n, k), np.int64), "word": np.zeros((n, MAX_WORD), np.int64)}
    radius = np.zeros((n, k), np.float32)
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.objects):
            for name in OBJECT_VALUES:
                out[name][i, j] = _INDEX[name][getattr(thing, name)]
            out["present"][i, j] = True
            out["place"][i, j] = thing.x, thing.y
            out["depth"][i, j] = thing.depth
            radius[i, j] = thing.radius
        for name in SCENE_VALUES:
            out[name][i] = _INDEX[name][getattr(scene, name)]
        for j, letter in enumerate(scene.word):
            out["word"][i, j] = LETTERS.index(letter)
    apart = np.linalg.norm(out["place"][:, :, None] - out["place"][:, None], axis=-1)
    pair = out["present"][:, :, None] & out["present"][:, None] & ~np.eye(k, dtype=bool)
    out["overlap"] = pair & (apart < 0.95 * (radius[:, :, None] + radius[:, None]))
    return out
