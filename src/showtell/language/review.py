"""What a scene that was seen has other than the scene that was wanted, in English sentences."""

from __future__ import annotations

import itertools
from collections import Counter

from showtell.language.results import Mismatch
from showtell.world.language import english
from showtell.world.scene import Scene, SceneObject, holds

_FACTS = ("shape", "colour", "size", "texture", "state", "rotation", "motion")
_WEIGHTS = {"shape": 3, "colour": 3}
_ENOUGH = 3  # things with neither shape nor colour in common are never taken for each other
Pairs = list[SceneObject | None]


def compare(wanted: Scene, seen: Scene) -> tuple[list[Mismatch], list[int]]:
    """The mismatches, and the indices of the wanted objects that they concern.

    Motion and camera are compared only where something moves in `seen`: pictures show neither.
    """
    pairs = _pairs(wanted, seen)
    moving = seen.camera != "still" or any(o.motion for o in seen.objects)
    found: list[Mismatch] = []
    wrong: set[int] = set()
    _numbers(wanted, seen, pairs, found, wrong)
    for i, (thing, other) in enumerate(zip(wanted.objects, pairs, strict=True)):
        for name in _FACTS if moving else _FACTS[:-1]:
            if other is not None and getattr(thing, name) != getattr(other, name):
                found.append(_differs(thing, other, name))
                wrong.add(i)
    _relations(wanted, pairs, found, wrong)
    for name in ("background", "style", "light", "word", *(("camera",) if moving else ())):
        if getattr(wanted, name) != getattr(seen, name):
            found.append(_whole(wanted, seen, name))
    return list(dict.fromkeys(found)), sorted(wrong)


def _likeness(a: SceneObject, b: SceneObject) -> int:
    score = sum(_WEIGHTS.get(name, 1) for name in _FACTS if getattr(a, name) == getattr(b, name))
    return score if a.shape == b.shape or a.colour == b.colour else 0


def _pairs(wanted: Scene, seen: Scene) -> Pairs:
    """For each wanted object the seen one that it is, or None: the assignment with the most facts in common.

    Ties go to the assignment of which more of the wanted relations are true.
    """
    count = max(len(wanted.objects), len(seen.objects))
    padded: Pairs = [*seen.objects, *[None] * (count - len(seen.objects))]
    likeness = [[_likeness(a, b) if b else 0 for b in padded] for a in wanted.objects]
    best: tuple[int, int] = (-1, -1)
    chosen: Pairs = []
    for order in itertools.permutations(range(count), len(wanted.objects)):
        score = sum(likeness[i][j] for i, j in enumerate(order))
        if score < best[0]:
            continue
        pairs = [padded[j] if likeness[i][j] >= _ENOUGH else None for i, j in enumerate(order)]
        told: list[Mismatch] = []
        _relations(wanted, pairs, told, set())
        if (score, -len(told)) > best:
            best, chosen = (score, -len(told)), pairs
    return chosen


def _numbers(wanted: Scene, seen: Scene, pairs: Pairs, found: list[Mismatch], wrong: set[int]) -> None:
    """Missing and additional things, and wrong numbers of those that are there."""
    there = Counter((o.shape, o.colour) for o in seen.objects)
    asked = Counter((o.shape, o.colour) for o in wanted.objects)
    for i, (thing, other) in enumerate(zip(wanted.objects, pairs, strict=True)):
        if other is None:
            key = (thing.shape, thing.colour)
            miscounted = there[key] and there[key] != asked[key]
            found.append(_count(key, there[key], asked[key]) if miscounted else _missing(thing))
            wrong.add(i)
    taken = [id(other) for other in pairs if other is not None]
    for other in seen.objects:
        if id(other) in taken:
            taken.remove(id(other))
            continue
        key = (other.shape, other.colour)
        if asked[key] and there[key] != asked[key]:
            found.append(_count(key, there[key], asked[key]))
            wrong.update(i for i, o in enumerate(wanted.objects) if (o.shape, o.colour) == key)
        else:
            found.append(Mismatch("extra", f"there is {english.a(_name(other))} that was not asked for"))


def _name(thing: SceneObject) -> dict[str, str]:
    return {"shape": thing.shape, "colour": thing.colour}


def _missing(thing: SceneObject) -> Mismatch:
    return Mismatch("missing", f"there is no {english.noun(_name(thing))}")


def _count(key: tuple[str, str], there: int, asked: int) -> Mismatch:
    said = {"shape": key[0], "colour": key[1]}
    are = "is" if there == 1 else "are"
    return Mismatch("count", f"there {are} {there} {english.noun(said, there)} instead of {asked}")


def _differs(thing: SceneObject, other: SceneObject, name: str) -> Mismatch:
    said = {k: v for k, v in _name(thing).items() if k != name}
    values = [getattr(one, name) for one in (other, thing)]
    words = [english.value(name, v) if v is not None else "at rest" for v in values]
    if name == "shape":
        return Mismatch(name, f"the {thing.colour} {thing.shape} is {english.a({'shape': other.shape})}")
    return Mismatch(name, f"{english.the(said)} is {words[0]} instead of {words[1]}")


def _relations(wanted: Scene, pairs: Pairs, found: list[Mismatch], wrong: set[int]) -> None:
    """Adds the stated relations that do not hold between things that are all there."""
    starts = [0, *itertools.accumulate(len(group) for group in wanted.groups)]
    for relation in wanted.relations:
        members = [range(starts[i], starts[i + 1]) for i in (relation.subject, *relation.objects)]
        groups = [tuple(o for i in its if (o := pairs[i]) is not None) for its in members]
        if any(len(group) < len(its) for group, its in zip(groups, members, strict=True)):
            continue
        if holds(relation.kind, *groups):
            continue
        names = [english.the(_name(wanted.objects[its[0]]), len(its)) for its in members]
        verb = "is" if len(members[0]) == 1 else "are"
        text = f"{names[0]} {verb} not {relation.kind} {' and '.join(names[1:])}"
        found.append(Mismatch("relation", text))
        wrong.update(i for its in members for i in its)


def _whole(wanted: Scene, seen: Scene, name: str) -> Mismatch:
    is_, asked = (getattr(scene, name) for scene in (seen, wanted))
    if name == "word":
        text = f"the picture says {is_ or 'nothing'} instead of {asked or 'nothing'}"
        return Mismatch(name, text)
    words = [english.WORDING.name(name, value, "") for value in (is_, asked)]
    if name == "light":
        return Mismatch(name, f"the picture is lit {words[0]} instead of {words[1]}")
    return Mismatch(name, f"the {name} is {words[0]} instead of {words[1]}")
