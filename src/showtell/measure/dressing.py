"""Scenes taken apart into structure and appearance: the tasks of methods that control one by a picture of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from showtell.world import Scene
from showtell.world.language.english import a
from showtell.world.scene import COLOURS, TEXTURES


def redressed(scenes: Sequence[Scene], seed: int = 0) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """(structure, appearance, wanted) of each scene.

    structure: all objects plain grey where they are. appearance: the same shapes in other colours and textures, left
    and right, top and bottom exchanged. wanted: the colours and textures of the appearance, in the structure's places.
    """
    rng, found = random.Random(seed), []
    for scene in scenes:
        colours = rng.sample([c for c in COLOURS if c not in ("grey", scene.background)], len(scene.objects))
        looks = [(colour, rng.choice(TEXTURES)) for colour in colours]
        plain = [replace(thing, colour="grey", texture="solid") for thing in scene.objects]
        worn = [replace(thing, colour=c, texture=t) for thing, (c, t) in zip(scene.objects, looks, strict=True)]
        moved = [replace(thing, x=1 - thing.x, y=1 - thing.y) for thing in worn]
        found.append(tuple(replace(scene, objects=tuple(things)) for things in (plain, moved, worn)))
    grey, other, wanted = zip(*found, strict=True)
    return list(grey), list(other), list(wanted)


def things_of(scene: Scene) -> str:
    """A scene's things by colour and shape, not where they are nor of what texture: "a red ring and a blue star"."""
    return " and ".join(a({"colour": thing.colour, "shape": thing.shape}) for thing in scene.objects)


def layout_and_look(wanted: Sequence[Scene]) -> Callable[..., np.ndarray]:
    """A metric of images, (n,): the share of objects that lie where they are wanted, times that of right attributes."""
    from showtell.measure import scores

    def metric(images: Any, judge: Any = "first") -> np.ndarray:
        seen = scores.read(images, judge)
        return np.array([scores.placed(a, b) * scores.attributes(a, b) for a, b in zip(wanted, seen, strict=True)])

    metric.__name__ = "layout_and_look"
    return metric
