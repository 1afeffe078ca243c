"""What makes one scene of another, object by object: the short way to say an edit's result.

for change in changes(before, after): ...
assert changed(before, changes(before, after)).matches(after)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from showtell.world.scene import MAX_OBJECTS, Scene, SceneObject

LOOKS = ("background", "style", "light", "word")


@dataclass(frozen=True, slots=True)
class Change:
    """Object number `index` of the scene before becomes `thing`, or goes (None). Beyond its objects, it is new.
    thing.depth: its rank in the scene after, 0 nearest. Without an index, `look` of the scene becomes `value`.
    """

    index: int | None = None
    thing: SceneObject | None = None
    look: str = ""
    value: str = ""


def changes(before: Scene, after: Scene) -> list[Change]:
    """What is to be done to `before`: its looks first, then its objects in their order. Objects that differ in nothing
    but depth are the same ones, since what comes nearer pushes the others back."""
    made = [Change(look=name, value=getattr(after, name)) for name in LOOKS
            if getattr(after, name) != getattr(before, name)]  # fmt: skip
    old, new = ([(*o.facts, o.x, o.y) for o in scene.objects] for scene in (before, after))
    ranked = ranks(after.objects)
    fresh = len(before.objects)
    for kind, i, last, j, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        pairs = min(last - i, end - j)
        made += [Change(i + k, ranked[j + k]) for k in range(pairs)]
        made += [Change(k) for k in range(i + pairs, last)]
        for k in range(j + pairs, end):
            made.append(Change(fresh, ranked[k]))
            fresh += 1
    return made


def changed(before: Scene, made: Sequence[Change]) -> Scene:
    """The scene after these changes; what is new is mentioned last. Changes of objects that are not there add them, and
    the last object stays whatever is said."""
    looks: dict[str, Any] = {change.look: change.value for change in made if change.look}
    of = {change.index: change.thing for change in made if change.index is not None}
    kept = [(i, o) for i, o in enumerate(ranks(before.objects)) if i not in of]
    placed = sorted(((i, o) for i, o in of.items() if o is not None), key=lambda pair: pair[1].depth)
    far = sorted(kept, key=lambda pair: pair[1].depth)
    for i, thing in placed[: MAX_OBJECTS - len(kept)]:
        far.insert(thing.depth, (i, thing))
    if not far:
        return replace(before, **looks)
    found = {i: replace(thing, depth=rank) for rank, (i, thing) in enumerate(far)}
    return replace(before, objects=tuple(found[i] for i in sorted(found)), **looks)


def ranks(objects: Sequence[SceneObject]) -> list[SceneObject]:
    """The objects with their depths as ranks: 0, 1, 2, ..."""
    near = sorted(range(len(objects)), key=lambda i: objects[i].depth)
    return [replace(o, depth=near.index(i)) for i, o in enumerate(objects)]
