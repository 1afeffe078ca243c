"""Seeded sampling of scenes, in splits that never share a set of facts.

A scene's split is a hash of its facts (attributes, counts, background, style, light, word, camera), so no prompt of
one split occurs in another. The "unseen" split holds the scenes with at least one of the (shape, colour) pairs that
no other split contains.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from showtell.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    HOLLOW,
    LIGHTS,
    MAX_OBJECTS,
    MOTIONS,
    RELATIONS,
    ROTATIONS,
    SHAPES,
    SIZES,
    STATES,
    STYLES,
    TEXTURES,
    TURNABLE,
    Motion,
    Scene,
    SceneError,
    SceneObject,
)

SPLITS = ("train", "validation", "test", "unseen")
WORDS = (
    "HELLO", "STOP", "OPEN", "LOVE", "PLAY", "GO", "YES", "NO", "SUN", "MOON", "TREE", "FISH", "BIRD", "CAT", "DOG",
    "HOME", "MUSIC", "DANCE", "SMILE", "DREAM", "HAPPY", "LIGHT", "WATER", "FIRE", "EARTH", "WIND", "STAR", "HEART",
    "PEACE", "HOPE", "TIME", "GOLD", "BLUE", "RED", "SALE", "NEW", "ZERO", "ONE", "2026", "42", "EXIT", "TAXI",
    "CAFE", "BOOK", "PARK", "SHOP", "KING", "JAZZ", "QUIZ", "WAVE", "VOTE", "FROG", "MILK", "XRAY", "YOGA", "KIWI",
)  # fmt: skip

_PLAIN = {  # attribute -> (values, weights) of the default distribution: mostly plain, sometimes not
    "size": (SIZES, (25, 50, 25)),
    "texture": (TEXTURES, (70, 10, 10, 10)),
    "state": (STATES, (90, 5, 5)),
    "background": (BACKGROUNDS, (44, 8, 8, 8, 8, 8, 8, 8)),
    "style": (STYLES, (80, 4, 4, 4, 4, 4)),
    "light": (LIGHTS, (88, 3, 3, 3, 3)),
}
_VALUES: dict[str, Sequence[Any]] = {
    "shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "state": STATES, "rotation": ROTATIONS,
    "background": BACKGROUNDS, "style": STYLES, "light": LIGHTS, "camera": CAMERAS, "motion": tuple(MOTIONS),
}  # fmt: skip
_OBJECT = ("shape", "colour", "size", "texture", "state", "rotation")
_CLASH = {"white": "white", "grey": "grey", "black": "black"}  # a background hides objects of its own colour
_COUNTS = ((1, 2, 3, 4, 5), (20, 30, 22, 18, 10))
_MARGIN = 0.015  # free space between objects, and between an object and the border


def sample(
    n: int,
    seed: int = 0,
    split: str = "train",
    objects: int | tuple[int, int] | None = None,
    *,
    skew: Mapping[str, tuple[str, float]] | None = None,
    distinct: str | Iterable[str] = (),
    same: str | Iterable[str] = (),
    relation: str | Iterable[str] | None = None,
    count: int | None = None,
    word: bool | str | Iterable[str] = False,
    **constraints: Any,
) -> list[Scene]:
    """n scenes; scene i depends on (seed, split, i) and the constraints only, so a longer list extends a shorter one.

    objects: how many, or (low, high); 1-5 by default. `split`: one of `SPLITS`.
    Constraints name an attribute and the value or values allowed: shape, colour, size, texture, state, rotation,
    motion (of every object), background, style, light, camera; e.g. `colour=["red", "blue"], style="flat"`.
    distinct / same: attributes in which no two objects / all objects agree. relation: the kind of the first stated
    relation. count: the scene is one group of so many equal objects. word: True, or the words to choose from.
    skew: {attribute: (by, strength)}: with probability `strength` an object's attribute is a fixed function of its
    attribute `by` (shape, colour, ...) instead of drawn.
    Raises SceneError for unknown splits, constraints or values, and where no scene satisfies them all.
    """
    allowed = {name: _listed(name, value) for name, value in constraints.items()}
    low, high = (objects, objects) if isinstance(objects, int) else (objects or (1, MAX_OBJECTS))
    if count is not None:
        low = high = count
    if not 1 <= low <= high <= MAX_OBJECTS:
        raise SceneError(f"objects={objects!r}; use a number or a range within 1-{MAX_OBJECTS}")
    if split not in SPLITS:
        raise SceneError(f"unknown split {split!r}; use one of: {', '.join(SPLITS)}")
    kinds = () if relation is None else _known("relation", _tuple(relation), RELATIONS)
    for attribute, (by, strength) in (skew or {}).items():
        _known("skewed attribute", (attribute, by), _OBJECT)
        if not 0 <= strength <= 1:
            raise SceneError(f"skew strength {strength} of {attribute}; use a probability in [0, 1]")
    plan = _Plan(
        (low, high), allowed, dict(skew or {}), _known("attribute", _tuple(distinct), _OBJECT),
        _known("attribute", _tuple(same), _OBJECT), kinds, count,
        WORDS if word is True else tuple(w.upper() for w in _tuple(word)) if word else (),
    )  # fmt: skip
    return [plan.scene(random.Random(f"{seed}/{split}/{i}"), split) for i in range(n)]


def split_of(scene: Scene) -> str:
    """The split that a scene belongs to, from its facts alone (order and positions do not matter)."""
    return _split(scene.objects, scene.background, scene.style, scene.light, scene.word, scene.camera)


def held_out(shape: str, colour: str) -> bool:
    """Whether the pair occurs in the "unseen" split only (about one pair in ten, spread over shapes and colours)."""
    return (SHAPES.index(shape) * 5 + COLOURS.index(colour) * 7) % 11 == 3


def _split(things: Sequence[SceneObject], *rest: str) -> str:
    if any(held_out(o.shape, o.colour) for o in things):
        return "unseen"
    facts = sorted(f"{o.shape} {o.colour} {o.size} {o.texture} {o.state} {o.rotation} {o.motion}" for o in things)
    bucket = zlib.crc32("/".join((*facts, *rest)).encode()) % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | int) else tuple(value)


def _known(what: str, values: Iterable[Any], known: Sequence[Any]) -> tuple[Any, ...]:
    values = tuple(values)
    for value in values:
        if value not in known:
            raise SceneError(f"unknown {what} {value!r}; use one of: {', '.join(map(str, known))}")
    return values


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if name not in _VALUES:
        names = (*_VALUES, "distinct", "same", "relation", "count", "word", "skew")
        raise SceneError(f"unknown constraint {name!r}; use one of: {', '.join(names)}")
    if name == "motion" and value is True:
        return tuple(MOTIONS)
    values = _known(name, _tuple(value), _VALUES[name])
    if not values:
        raise SceneError(
            f"constraint {name} allows nothing; give at least one of: {', '.join(map(str, _VALUES[name]))}"
        )
    return values


class _Plan:
    """The checked arguments of one `sample` call."""

    def __init__(
        self,
        objects: tuple[int, int],
        allowed: dict[str, tuple[Any, ...]],
        skew: dict[str, tuple[str, float]],
        distinct: tuple[str, ...],
        same: tuple[str, ...],
        relations: tuple[str, ...],
        count: int | None,
        words: tuple[str, ...],
    ) -> None:
        self.objects, self.allowed, self.skew, self.distinct, self.same = objects, allowed, skew, distinct, same
        self.relations, self.count, self.words = relations, count, words

    def scene(self, rng: random.Random, split: str) -> Scene:
        for _ in range(2000):
            background, style, light = (self._pick(rng, name) for name in ("background", "style", "light"))
            camera = self._pick(rng, "camera")
            word = rng.choice(self.words) if self.words else ""
            kind = self._kind(rng)
            things = self._things(rng, kind, background)
            if things is None or _split(things, background, style, light, word, camera) != split:
                continue
            placed = _place(rng, things, kind, floor=0.84 if word else 1.0)
            if placed is None:
                continue
            scene = Scene(tuple(placed), background, style, light, word, camera)
            if not self.relations or (scene.relations and scene.relations[0].kind in self.relations):
                return scene
        raise SceneError(f"found no scene in the {split} split that satisfies all constraints; relax one of them")

    def _kind(self, rng: random.Random) -> str:
        """How the first objects stand to each other: drawn, or as the `relation` constraint wants it."""
        if self.relations:
            return str(rng.choice(self.relations))
        if self.count is not None:
            return "free"
        kinds = ("free", "in front of", "behind", "inside", "between")
        return rng.choices(kinds, (76, 7, 7, 5, 5))[0]

    def _pick(self, rng: random.Random, name: str) -> Any:
        if name in self.allowed:
            return rng.choice(self.allowed[name])
        if name in _PLAIN:
            return rng.choices(*_PLAIN[name])[0]
        return {"camera": "still", "motion": None}[name] if name in ("camera", "motion") else rng.choice(_VALUES[name])

    def _things(self, rng: random.Random, kind: str, background: str) -> list[SceneObject] | None:
        low, high = self.objects
        numbers = [(c, w) for c, w in zip(*_COUNTS, strict=True) if low <= c <= high]
        total = rng.choices(*zip(*numbers, strict=True))[0]
        if total < {"free": 1, "between": 3}.get(kind, 2):
            if self.relations:
                if high > total:
                    return None
                raise SceneError(f"the relation {kind!r} needs more than {total} object(s)")
            kind = "free"
        sizes = [total] if self.count is not None else _group_sizes(rng, total, kind)
        common = {name: self._draw(rng, name, background) for name in self.same}
        groups: list[SceneObject] = []
        for index in range(len(sizes)):
            thing = self._thing(rng, background, common, _forced_size(kind, index), kind == "inside" and index == 1)
            if thing is None or any(thing.facts == other.facts for other in groups):
                return None
            groups.append(thing)
        for name in self.distinct:
            if len({getattr(g, name) for g in groups}) < total:
                return None
        things = [thing for thing, size in zip(groups, sizes, strict=True) for _ in range(size)]
        return things if sum((2 * o.radius + 0.03) ** 2 for o in things) < 0.60 else None

    def _draw(self, rng: random.Random, name: str, background: str) -> Any:
        value = self._pick(rng, name) if name != "rotation" else 0
        return value if name != "colour" or value != _CLASH.get(background) else self._pick(rng, name)

    def _thing(
        self, rng: random.Random, background: str, common: dict[str, Any], size: str | None, hollow: bool
    ) -> SceneObject | None:
        got = {
            name: common.get(name) or self._pick(rng, name) for name in ("shape", "colour", "size", "texture", "state")
        }
        if hollow and got["shape"] not in HOLLOW:
            got["shape"] = rng.choice(tuple(HOLLOW))
        if hollow:
            got["state"] = "whole"
        got["size"] = size or got["size"]
        for name, (by, strength) in self.skew.items():
            if name != "rotation" and rng.random() < strength:
                values = self.allowed.get(name, _VALUES[name])
                got[name] = values[_VALUES[by].index(got[by]) % len(values)]
        if any(name in self.allowed and got[name] not in self.allowed[name] for name in got):
            return None
        if any(got[name] != value for name, value in common.items() if name in got):
            return None
        if got["colour"] == _CLASH.get(background):
            return None
        turns = self.allowed.get("rotation", (0, 0, 0, 0, 0, 0, 90, 180, 270))
        if got["shape"] not in TURNABLE:
            if 0 not in turns:
                return None
            turns = (0,)
        kinds = self.allowed.get("motion")
        motion = None
        if kinds:
            kind = rng.choice(kinds)
            targets = [to for to in MOTIONS[kind] if to != got["colour"]]
            motion = Motion(kind, rng.choice(targets))
        return SceneObject(rotation=rng.choice(turns), motion=motion, **got)


def _group_sizes(rng: random.Random, total: int, kind: str) -> list[int]:
    """How many equal objects each group has: mostly one each, sometimes a counted group."""
    if kind != "free" or total == 1 or rng.random() > 0.2:
        return [1] * total
    first = rng.randint(2, total)
    rest = [1] * (total - first)
    return [first, *rest] if rng.random() < 0.5 else [*rest, first]


def _forced_size(kind: str, index: int) -> str | None:
    return {0: "small", 1: "large"}.get(index) if kind == "inside" else None


def _place(rng: random.Random, things: list[SceneObject], kind: str, floor: float) -> list[SceneObject] | None:
    """Positions and depths for objects with the first relation wanted; None where they do not fit. floor: largest y."""
    for _ in range(12):
        spots: list[tuple[float, float, float]] = []
        depths = list(range(len(things)))
        rng.shuffle(depths)
        start = _first_two(rng, things, kind, floor, spots, depths) if kind not in ("free", *RELATIONS[:4]) else 0
        if start is not None and all(_scatter(rng, o.radius, floor, spots) for o in things[start:]):
            placed = [
                SceneObject(
                    o.shape, o.colour, o.size, o.texture, o.state, o.rotation, round(x, 4), round(y, 4), d, o.motion
                )
                for o, (x, y, _), d in zip(things, spots, depths, strict=True)
            ]
            return placed
    return None


def _first_two(
    rng: random.Random,
    things: list[SceneObject],
    kind: str,
    floor: float,
    spots: list[tuple[float, float, float]],
    depths: list[int],
) -> int | None:
    """Places the objects of the wanted relation; returns how many, or None where it cannot be."""
    if kind == "between":
        if len(things) < 3:
            return 0
        a, b = things[1].radius + _MARGIN, things[2].radius + _MARGIN
        across = rng.uniform(0.3, 0.7) * floor
        ends = (rng.uniform(a, a + 0.08), rng.uniform(1 - b - 0.08, 1 - b))
        if rng.random() < 0.5:
            ends = (ends[1], ends[0])
        if rng.random() < 0.5 and floor == 1.0:
            one, two = (across, ends[0]), (across, ends[1])
        else:
            one, two = (ends[0], across), (ends[1], across)
        middle = ((one[0] + two[0]) / 2, (one[1] + two[1]) / 2)
        for spot, thing in zip((middle, one, two), things, strict=False):
            if not _fits(*spot, thing.radius, floor, spots):
                return None
            spots.append((*spot, thing.radius))
        return 3
    if len(things) < 2 or (kind == "inside" and (things[0].size, things[1].size) != ("small", "large")):
        return 0
    near, far = things[0].radius, things[1].radius
    if not _scatter(rng, far, floor, spots):
        return None
    x, y, _ = spots[0]
    angle = rng.uniform(0, 2 * math.pi)
    reach = (
        rng.uniform(0, 0.02) if kind == "inside" else max(rng.uniform(0.45, 0.65) * (near + far), 0.75 * max(near, far))
    )
    place = (x + reach * math.cos(angle), y + reach * math.sin(angle))
    if not _fits(*place, near, floor, []):
        return None
    spots.insert(0, (*place, near))
    nearer = 0 if kind in ("in front of", "inside") else 1
    depths[:2] = sorted(depths[:2], reverse=bool(nearer))
    return 2


def _fits(x: float, y: float, radius: float, floor: float, spots: list[tuple[float, float, float]]) -> bool:
    if not (radius + _MARGIN <= x <= 1 - radius - _MARGIN and radius + _MARGIN <= y <= floor - radius - _MARGIN):
        return False
    return all((x - u) ** 2 + (y - v) ** 2 > (radius + r + _MARGIN) ** 2 for u, v, r in spots)


def _scatter(rng: random.Random, radius: float, floor: float, spots: list[tuple[float, float, float]]) -> bool:
    """Adds a free spot for one object; False where none was found."""
    edge = radius + _MARGIN
    for _ in range(24):
        x, y = rng.uniform(edge, 1 - edge), rng.uniform(edge, floor - edge)
        if all((x - u) ** 2 + (y - v) ** 2 > (radius + r + _MARGIN) ** 2 for u, v, r in spots):
            spots.append((x, y, radius))
            return True
    return False
