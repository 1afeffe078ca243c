"""Things in another colour: scenes with one, and whether colours are there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from showtell.world import Scene
from showtell.world.scene import COLOURS


def recoloured(scene: Scene, among: Sequence[str] = COLOURS) -> Scene:
    """The scene with a colour for its first object that nothing there has, drawn by its caption. among: colours."""
    first, *others = scene.objects
    free = [one for one in among if one not in {scene.background, *(thing.colour for thing in scene.objects)}]
    return replace(scene, objects=(replace(first, colour=random.Random(scene.caption()).choice(free)), *others))


def colours(wanted: Scene, seen: Scene) -> float:
    """The share in [0, 1] of the wanted objects' colours that occur, on whatever; a score for `PromptSet.score`."""
    return sum(thing.colour in {one.colour for one in seen.objects} for thing in wanted.objects) / len(wanted.objects)
