"""Captions as people may say them who do not think of a generator."""

from __future__ import annotations

import random

from showtell.world.language import english
from showtell.world.language.captions import stated
from showtell.world.scene import Scene


def awkward(scene: Scene, pick: random.Random) -> str:
    """A prompt in English for a scene of two or more things: attributes apart from nouns ("a ring and a star, the
    second blue and the first red"), or by what things are not ("a ring that is not green but red").

    It tells the shape, number and colour of each group of things and the first relation, nothing else of the scene.
    """
    things = [stated(group[0]) for group in scene.groups]
    nouns = [
        english.a({"shape": thing["shape"]}) if len(group) == 1 else f"{len(group)} {thing['shape']}s"
        for thing, group in zip(things, scene.groups, strict=True)
    ]
    first = english.the({"shape": things[0]["shape"]})
    link = f", {first} {scene.relations[0].kind} the other" if scene.relations else ""
    colours = [thing["colour"] for thing in things]
    if len(things) != 2 or pick.random() < 0.4:
        other = pick.choice([c for c in ("red", "green", "blue", "black") if c not in colours])
        each = [f"{noun} that is not {other} but {colour}" for noun, colour in zip(nouns, colours, strict=True)]
        return f"{' and '.join(each)}{link}"
    return f"{nouns[0]} and {nouns[1]}, the second {colours[1]} and the first {colours[0]}{link}"
