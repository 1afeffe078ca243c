"""Referring to things: the shortest description that fits some objects and no others, and back."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from showtell.world.language.lexicon import Symbol
from showtell.world.language.parsing import Description, Reader
from showtell.world.scene import Scene, SceneError, SceneObject

Said = dict[str, Any]


class ReferenceFailed(SceneError):
    """A text refers to one thing of a scene, and none or several fit: the text is readable, the scene is another."""


_ORDER = ("shape", "colour", "size", "texture", "state", "rotation", "motion")


def refer(objects: Sequence[SceneObject], targets: Collection[int], without: str = "") -> Said | None:
    """The fewest attributes that fit exactly the targets (indices), or None; shape and colour first.

    without: an attribute that must not be named (what a question asks for, for example).
    """
    thing = objects[min(targets)]
    names = [n for n in _ORDER if n != without and getattr(thing, n) not in (None, 0)]
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            if chosen[0] not in ("shape", "colour") or (without != "shape" and chosen[0] != "shape"):
                continue
            said = {name: getattr(thing, name) for name in chosen}
            if fitting(objects, said) == sorted(targets):
                return said
    return None


def fitting(objects: Sequence[SceneObject], said: Said) -> list[int]:
    """Indices of the objects that have all these attributes."""
    return [i for i, o in enumerate(objects) if all(getattr(o, name) == value for name, value in said.items())]


def the_one(scene: Scene, thing: Description) -> int:
    """The index of the one object that fits; ReferenceFailed where none or several do."""
    found = fitting(scene.objects, thing.said)
    if len(found) != 1:
        several = f"{len(found)} things fit {thing.text!r}; say which"
        raise ReferenceFailed(several if found else missing(thing.text))
    return found[0]


def missing(text: str) -> str:
    return f"nothing in the scene fits {text!r}"


def placed(reader: Reader) -> tuple[str, list[Description]] | None:
    """Reads "left of the star", or in Chinese order "星星的左边": the relation and its one or two objects."""
    if found := reader.take("relation"):
        things = [reader.thing()]
        if found.value == "between" and reader.take("and"):
            things.append(reader.thing())
    else:
        reader.skip("at")
        if reader.peek().kind == "end":
            return None
        things = [reader.thing()]
        if reader.take("and"):
            things.append(reader.thing())
        found = reader.take("relation")
    if found is None or (found.value == "between") != (len(things) == 2):
        return None
    return str(found.value), things


def finished(reader: Reader) -> None:
    """SceneError where symbols are left over."""
    left: Symbol = reader.peek()
    if left.kind != "end":
        raise SceneError(f"cannot read {left.text!r} here")
