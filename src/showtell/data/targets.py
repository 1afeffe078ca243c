"""Scenes as arrays, and back: what a network that parses images is trained to predict, and what its answer means."""

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
    TURNABLE,
    Scene,
    SceneObject,
)

OBJECT_VALUES: dict[str, Sequence[Any]] = {
    "shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "state": STATES, "rotation": ROTATIONS,
}  # fmt: skip
SCENE_VALUES: dict[str, Sequence[str]] = {"background": BACKGROUNDS, "style": STYLES, "light": LIGHTS}
HEADS = tuple(name for name in OBJECT_VALUES if name != "size")  # a slot has its size already
LETTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CLAIMS = 48  # slots that are looked at, the likeliest
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
    gaps = np.linalg.norm(out["place"][:, :, None] - out["place"][:, None], axis=-1)
    pair = out["present"][:, :, None] & out["present"][:, None] & ~np.eye(k, dtype=bool)
    out["overlap"] = pair & (gaps < 0.95 * (radius[:, :, None] + radius[:, None]))
    return out


def found(out: dict[str, np.ndarray], least: int = 1) -> list[int]:
    """The slots (size class x cell) that hold an object, likeliest first, at least `least`. out: one image's
    probabilities, see `nets.scene_parser.SceneParser.forward`.

    An object on the border of two cells is claimed by both, each with a part of the probability, and so is one that may
    be of two sizes: an object is there where all claims to it (same place, sizes that cannot lie inside one another)
    amount to 0.5, and the likeliest of them says where.
    """
    present, size = out["present"], len(out["present"]) // len(SIZES)
    open_claims = [int(i) for i in np.argsort(-present)[:CLAIMS]]
    slots: list[int] = []
    while open_claims and len(slots) < MAX_OBJECTS:
        best = open_claims[0]
        claims = [i for i in open_claims if i == best or not distinct(out, i, best, size)]
        open_claims = [i for i in open_claims if i not in claims]
        if len(slots) < least or present[claims].sum() >= 0.5:
            slots.append(best)
    return sorted(slots, key=lambda i: -present[i])


def things(out: dict[str, np.ndarray], slots: Sequence[int]) -> list[SceneObject]:
    """The likeliest objects of these slots, ranked in depth."""
    size = len(out["present"]) // len(SIZES)
    ranks = np.argsort(np.argsort([out["depth"][i] for i in slots]))
    return [thing_at(out, i, int(rank), size) for i, rank in zip(slots, ranks, strict=True)]


def scenery(out: dict[str, np.ndarray]) -> dict[str, str]:
    """The likeliest background, style, light and word."""
    rest = {name: values[int(out[name].argmax())] for name, values in SCENE_VALUES.items()}
    return rest | {"word": "".join(LETTERS[i] for i in out["word"].argmax(axis=-1)).split(" ")[0]}


def distinct(out: dict[str, np.ndarray], i: int, j: int, size: int) -> bool:
    """Whether two slots are two objects: of sizes that may be inside one another, or further apart than one object."""
    gap = float(np.linalg.norm(out["place"][i] - out["place"][j]))
    small, large = sorted((i // size, j // size))
    return gap > 0.06 if (small, large) != (0, 2) else True


def thing_at(out: dict[str, np.ndarray], slot: int, rank: int, size: int) -> SceneObject:
    facts: dict[str, Any] = {name: OBJECT_VALUES[name][int(out[name][slot].argmax())] for name in HEADS}
    if facts["shape"] not in TURNABLE:
        facts["rotation"] = 0
    x, y = (round(float(v), 4) for v in np.clip(out["place"][slot], 0, 1))
    return SceneObject(x=x, y=y, depth=rank, size=OBJECT_VALUES["size"][slot // size], **facts)
