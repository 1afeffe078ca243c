"""A reading that may still change, and the changes: from a parser network's probabilities to scenes near them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from showtell.data.targets import HEADS, OBJECT_VALUES, SCENE_VALUES, distinct, found, scenery, thing_at, things
from showtell.world import Scene, SceneObject
from showtell.world.draw import masks
from showtell.world.scene import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    MAX_OBJECTS,
    RADIUS,
    ROTATIONS,
    SHAPES,
    SIZES,
    STATES,
    STYLES,
    TEXTURES,
    TURNABLE,
)

PLAUSIBLE = 0.0005  # values less probable than this are drawn only where the others leave much unexplained
_STEP = 1 / 64
Shown = tuple[tuple[SceneObject, ...], tuple[str, ...]]


@dataclass
class Draft:
    """A reading that may still change: the objects' slots and values, the scene's values, and the probabilities."""

    out: dict[str, np.ndarray]
    slots: list[int]
    things: list[SceneObject]
    rest: dict[str, str]
    word: str

    @classmethod
    def read(cls, out: dict[str, np.ndarray]) -> Draft:
        """The likeliest scene, of one object at least."""
        slots, rest = found(out), scenery(out)
        return cls(out, slots, things(out, slots), rest, rest.pop("word"))

    def scene(self) -> Scene:
        return Scene(tuple(self.things), word=self.word, **self.rest)

    def key(self) -> Shown:
        """What is drawn of it, as something to look up."""
        return tuple(self.things), tuple(self.rest.values())

    def confidence(self) -> float:
        """Product of the network's probabilities of everything that was read, in [0, 1]."""
        present = self.out["present"]
        taken = np.zeros(len(present), bool)
        taken[self.slots] = True
        likely = float(np.where(taken, present, 1 - np.where(present > 0.5, 0.0, present)).prod())
        for slot, thing in zip(self.slots, self.things, strict=True):
            for name in HEADS:
                if name != "rotation" or thing.shape in TURNABLE:
                    likely *= float(self.out[name][slot][OBJECT_VALUES[name].index(getattr(thing, name))])
        for name, value in self.rest.items():
            likely *= float(self.out[name][SCENE_VALUES[name].index(value)])
        return likely * float(self.out["word"].max(axis=-1).prod())


Change = Callable[[Draft], Draft]
Coordinate = Callable[[Draft], Iterator[list[Change]]]
KINDS = [(shape, turn) for shape in SHAPES for turn in (ROTATIONS if shape in TURNABLE else (0,))]


def put(index: int, **facts: Any) -> Change:
    def change(draft: Draft) -> Draft:
        thing = draft.things[index]
        turns = facts.get("shape", thing.shape) in TURNABLE
        new = replace(thing, **(facts if turns else facts | {"rotation": 0}))
        return replace(draft, things=[*draft.things[:index], new, *draft.things[index + 1 :]])

    return change


def _likely(draft: Draft, slot: int, name: str) -> list[Any]:
    return [v for v, p in zip(OBJECT_VALUES[name], draft.out[name][slot], strict=True) if p > PLAUSIBLE]


def _scenery(draft: Draft) -> Iterator[list[Change]]:
    """Backgrounds; styles with lights."""
    likely = {
        name: [v for v, p in zip(values, draft.out[name], strict=True) if p > PLAUSIBLE]
        for name, values in SCENE_VALUES.items()
    }
    yield [partial(scened, background=value) for value in likely["background"]]
    yield [partial(scened, style=style, light=light) for style in likely["style"] for light in likely["light"]]


def scened(draft: Draft, **values: str) -> Draft:
    return replace(draft, rest=draft.rest | values)


def _places(draft: Draft) -> Iterator[list[Change]]:
    """Moves by a pixel and a half: out of places from which no small move leads on, as patterns have many."""
    moves = [(1.5 * dx, 1.5 * dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    for i in range(len(draft.things)):
        yield [partial(moved, i=i, dx=dx, dy=dy) for dx, dy in moves]


def moved(draft: Draft, i: int, dx: float, dy: float) -> Draft:
    thing = draft.things[i]
    x, y = (min(max(v + d * _STEP, 0.0), 1.0) for v, d in ((thing.x, dx), (thing.y, dy)))
    return put(i, x=round(x, 4), y=round(y, 4))(draft)


def shifted(draft: Draft, way: np.ndarray) -> Draft:
    for i, (dx, dy) in enumerate(way.tolist()):
        draft = moved(draft, i, dx, dy) if dx or dy else draft
    return draft


def _sizes(draft: Draft) -> Iterator[list[Change]]:
    for i in range(len(draft.things)):
        yield [put(i, size=size) for size in RADIUS]


def _kinds(draft: Draft) -> Iterator[list[Change]]:
    """Shapes with their rotations."""
    for i, slot in enumerate(draft.slots):
        yield [
            put(i, shape=shape, rotation=turn)
            for shape in _likely(draft, slot, "shape")
            for turn in (_likely(draft, slot, "rotation") if shape in TURNABLE else [0])
        ]


def _states(draft: Draft) -> Iterator[list[Change]]:
    for i, slot in enumerate(draft.slots):
        yield [put(i, state=state) for state in _likely(draft, slot, "state")]


def _finishes(draft: Draft) -> Iterator[list[Change]]:
    """Colours with textures: green stripes on white are pale too, and a wrong one of the two hides the other."""
    for i, slot in enumerate(draft.slots):
        textures = _likely(draft, slot, "texture")
        yield [put(i, colour=c, texture=t) for c in _likely(draft, slot, "colour") for t in textures]


def _absences(draft: Draft) -> Iterator[list[Change]]:
    """Objects that may not be there."""
    for slot in draft.slots:
        if draft.out["present"][slot] < 0.98:
            yield [partial(without, slot=slot)]


def additions(draft: Draft) -> Iterator[list[Change]]:
    """Objects that may be there all the same."""
    size = len(draft.out["present"]) // len(OBJECT_VALUES["size"])
    for slot in np.flatnonzero(draft.out["present"] > 0.02).tolist():
        if slot not in draft.slots and all(distinct(draft.out, slot, j, size) for j in draft.slots):
            yield [partial(with_slot, slot=slot, size=size)]


def without(draft: Draft, slot: int) -> Draft:
    if len(draft.slots) == 1 or slot not in draft.slots:
        return draft
    keep = [i for i, s in enumerate(draft.slots) if s != slot]
    return replace(draft, slots=[draft.slots[i] for i in keep], things=[draft.things[i] for i in keep])


def with_slot(draft: Draft, slot: int, size: int) -> Draft:
    if len(draft.slots) == MAX_OBJECTS or slot in draft.slots:
        return draft
    new = thing_at(draft.out, slot, max(o.depth for o in draft.things) + 1, size)
    return replace(draft, slots=[*draft.slots, slot], things=[*draft.things, new])


def _orders(draft: Draft) -> Iterator[list[Change]]:
    """Pairs swapped in depth."""
    for i in range(len(draft.things)):
        for j in range(i):
            yield [partial(swapped, i=i, j=j)]


def swapped(draft: Draft, i: int, j: int) -> Draft:
    if max(i, j) >= len(draft.things):
        return draft
    one, two = draft.things[i].depth, draft.things[j].depth
    return put(j, depth=one)(put(i, depth=two)(draft))


OBJECTS: tuple[Coordinate, ...] = (_kinds, _finishes, _places, _sizes, _states, _absences, additions, _orders)
SCENES: tuple[Coordinate, ...] = (
    _scenery,
)  # comes last: while objects are wrong, a style that hides them may look closer


def sceneries(draft: Draft) -> list[Draft]:
    made = [scened(draft, style=style, light=light) for style in STYLES for light in LIGHTS]
    return [*made, *(scened(draft, background=background) for background in BACKGROUNDS)]


def surfaced(draft: Draft, i: int) -> list[Draft]:
    return [put(i, colour=colour, texture=texture)(draft) for colour in COLOURS for texture in TEXTURES]


def forms(draft: Draft, i: int) -> list[Draft]:
    return [formed(draft, i, *kind, state, size) for kind in KINDS for state in STATES for size in SIZES]


def formed(draft: Draft, i: int, shape: str, turn: int, state: str, size: str) -> Draft:
    """Another form whose visible part has the same middle: that of a half is not where the object's is."""
    old = draft.things[i]
    was, new = _middle(old.shape, old.rotation, old.state), _middle(shape, turn, state)
    x, y = (
        round(min(max(at + old.radius * a - RADIUS[size] * b, 0.0), 1.0), 4)
        for at, a, b in zip((old.x, old.y), was, new, strict=True)
    )
    return put(i, shape=shape, rotation=turn, state=state, size=size, x=x, y=y)(draft)


@lru_cache(maxsize=len(KINDS) * len(STATES))
def _middle(shape: str, turn: int, state: str) -> tuple[float, float]:
    """The middle of what is visible, from the object's centre, in radii."""
    thing = SceneObject(shape, "red", "large", state=state, rotation=turn)
    mask, axis = masks(Scene((thing,)), 32)[0], ((np.arange(32) + 0.5) / 32 - 0.5) / thing.radius
    return float(mask.sum(0) @ axis / mask.sum()), float(mask.sum(1) @ axis / mask.sum())


def with_one_at(draft: Draft, x: float, y: float) -> list[Draft]:
    """With one more object, of each size, behind and before all others."""
    distance = np.linalg.norm(draft.out["place"] - (x, y), axis=-1)
    distance[draft.slots] = np.inf
    slots = [*draft.slots, int(distance.argmin())]
    last = max(o.depth for o in draft.things) + 1
    further = [replace(o, depth=o.depth + 1) for o in draft.things]
    return [
        replace(draft, slots=slots, things=[*others, SceneObject("circle", "grey", size, x=x, y=y, depth=depth)])
        for others, depth in ((draft.things, last), (further, 0))
        for size in SIZES
    ]
