"""A `Scene` is the symbol side and the percept side of one thing; everything else in the world is computed from it.

Coordinates are fractions of the canvas: x grows to the right, y grows downwards, both in [0, 1]. Objects are listed in
the order in which language mentions them; `depth` orders them in space (0 is nearest to the viewer).

Facts are what language can say: attributes, counts and relations. Positions are not facts, the relations that they
imply are. `Scene.relations` are the relations that a caption states, `holds()` tests one on another layout.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from showtell.errors import ShowtellError

SHAPES = (
    "circle", "square", "triangle", "diamond", "pentagon", "hexagon", "star", "cross",
    "heart", "crescent", "arrow", "drop", "ring", "frame", "oval", "flower",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
SIZES = ("small", "medium", "large")
TEXTURES = ("solid", "striped", "dotted", "checked")
STATES = ("whole", "halved", "cracked")
ROTATIONS = (0, 90, 180, 270)  # degrees clockwise
BACKGROUNDS = ("white", "grey", "cream", "sky", "meadow", "sand", "dusk", "black")
STYLES = ("flat", "outline", "mosaic", "watercolour", "sepia", "night")
LIGHTS = ("even", "left", "right", "above", "below")  # where the light comes from
CAMERAS = ("still", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out")
MOTIONS = {  # kind -> the values that its `to` may take
    "translate": ("left", "right", "up", "down"),
    "rotate": ("clockwise", "anticlockwise"),
    "grow": ("",),
    "shrink": ("",),
    "fade": ("",),
    "appear": ("",),
    "bounce": ("",),
    "recolour": COLOURS,
}
STEP: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Way -> a step along it, (dx, dy) with y pointing down."""
RELATIONS = ("left of", "right of", "above", "below", "inside", "in front of", "behind", "between")
INVERSE = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
    "in front of": "behind", "behind": "in front of",
}  # fmt: skip

RADIUS = {"small": 0.10, "medium": 0.15, "large": 0.21}  # half of the object's extent, as a fraction of the canvas
HOLLOW = {"ring": 0.62, "frame": 0.62}  # shapes that others fit inside: hole radius / outer radius
TURNABLE = frozenset({"triangle", "heart", "crescent", "arrow", "drop"})  # a quarter turn is visible on these
MAX_OBJECTS = 5
MAX_WORD = 8


class SceneError(ShowtellError):
    """A scene, a constraint or a text that the world cannot mean; the message says what would be right."""


def _check(value: Any, allowed: Any, what: str) -> None:
    if value not in allowed:
        raise SceneError(f"unknown {what} {value!r}; use one of: {', '.join(map(str, allowed))}")


@dataclass(frozen=True, slots=True)
class Motion:
    """What one object does during a clip: `kind` of `MOTIONS`, `to` a direction or colour where the kind takes one."""

    kind: str
    to: str = ""

    def __post_init__(self) -> None:
        _check(self.kind, MOTIONS, "motion")
        _check(self.to, MOTIONS[self.kind], f"target of {self.kind}")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its facts (shape ... motion) and where it is. x, y: centre in [0, 1]; depth: 0 is nearest."""

    shape: str
    colour: str
    size: str = "medium"
    texture: str = "solid"
    state: str = "whole"
    rotation: int = 0
    x: float = 0.5
    y: float = 0.5
    depth: int = 0
    motion: Motion | None = None

    def __post_init__(self) -> None:
        _check(self.shape, SHAPES, "shape")
        _check(self.colour, COLOURS, "colour")
        _check(self.size, SIZES, "size")
        _check(self.texture, TEXTURES, "texture")
        _check(self.state, STATES, "state")
        _check(self.rotation, ROTATIONS, "rotation")
        if self.rotation and self.shape not in TURNABLE:
            raise SceneError(f"a turned {self.shape} looks the same; only these turn: {', '.join(sorted(TURNABLE))}")
        if not (0.0 <= self.x <= 1.0 and 0.0 <= self.y <= 1.0):
            raise SceneError(f"position ({self.x}, {self.y}) is off the canvas; x and y lie in [0, 1]")
        if self.depth < 0:
            raise SceneError(f"depth {self.depth} is negative; 0 is nearest to the viewer")

    @property
    def radius(self) -> float:
        """Half of the extent, as a fraction of the canvas."""
        return RADIUS[self.size]

    @property
    def facts(self) -> tuple[Any, ...]:
        """What language says of the object itself: equal facts make a countable group."""
        return (self.shape, self.colour, self.size, self.texture, self.state, self.rotation, self.motion)


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject` kind `objects`: indices into `Scene.groups`; two objects for "between", one otherwise."""

    kind: str
    subject: int
    objects: tuple[int, ...]


Group = tuple[SceneObject, ...]


def _gaps(a: Group, b: Group, axis: Literal["x", "y"]) -> tuple[float, float]:
    """(distance of the means, smallest distance) of b after a along the axis."""
    first = [getattr(o, axis) for o in a]
    second = [getattr(o, axis) for o in b]
    return sum(second) / len(second) - sum(first) / len(first), min(second) - max(first)


def _overlap(a: SceneObject, b: SceneObject, slack: float) -> bool:
    return ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 < slack * (a.radius + b.radius)


def _inside(a: SceneObject, b: SceneObject, slack: float) -> bool:
    if b.shape not in HOLLOW or a.size != "small" or b.size != "large":
        return False
    return ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 < slack * HOLLOW[b.shape] * b.radius


def _between(a: SceneObject, b: SceneObject, c: SceneObject, slack: float) -> bool:
    """a lies near the middle of the segment b-c."""
    dx, dy = c.x - b.x, c.y - b.y
    length2 = dx * dx + dy * dy
    if length2 < 0.16:
        return False
    along = ((a.x - b.x) * dx + (a.y - b.y) * dy) / length2
    across = abs((a.x - b.x) * dy - (a.y - b.y) * dx) / length2
    return abs(along - 0.5) < slack and across < slack * 0.75


def _direction(kind: str, a: Group, b: Group, ratio: float, margin: float) -> bool:
    axis: Literal["x", "y"] = "x" if kind in ("left of", "right of") else "y"
    if kind in ("right of", "below"):
        a, b = b, a
    mean, gap = _gaps(a, b, axis)
    across = abs(_gaps(a, b, "y" if axis == "x" else "x")[0])
    return gap > margin and mean > ratio * across


@dataclass(frozen=True)
class Scene:
    """Background, style, light, camera, a written word and one to five objects. Immutable; equality is exact.

    Raises SceneError for words outside the vocabulary, positions off the canvas and more than `MAX_OBJECTS` objects.
    """

    objects: tuple[SceneObject, ...]
    background: str = "white"
    style: str = "flat"
    light: str = "even"
    word: str = ""
    camera: str = "still"

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise SceneError(f"a scene has 1 to {MAX_OBJECTS} objects, not {len(self.objects)}")
        _check(self.background, BACKGROUNDS, "background")
        _check(self.style, STYLES, "style")
        _check(self.light, LIGHTS, "light")
        _check(self.camera, CAMERAS, "camera")
        if self.word and not (len(self.word) <= MAX_WORD and self.word.isascii() and self.word.isalnum()
                              and self.word == self.word.upper()):  # fmt: skip
            raise SceneError(f"cannot write {self.word!r}; a word has 1 to {MAX_WORD} of the letters A-Z and 0-9")

    # --- symbols ---------------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs of consecutive objects with the same facts: what a caption counts ("three red circles")."""
        return tuple(tuple(run) for _, run in itertools.groupby(self.objects, key=lambda o: o.facts))

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """The relations that a caption states, between consecutive groups; a pair with no clear relation is skipped."""
        groups, stated, first = self.groups, [], 1
        single = [len(g) == 1 for g in groups]
        if len(groups) >= 3 and all(single[:3]) and _between(groups[0][0], groups[1][0], groups[2][0], 0.15):
            stated.append(Relation("between", 0, (1, 2)))
            first = 3
        for i in range(first, len(groups)):
            kind = _relation(groups[i - 1], groups[i])
            if kind:
                stated.append(Relation(kind, i - 1, (i,)))
        return tuple(stated)

    def canonical(self) -> Scene:
        """The same scene with its objects mentioned from left to right (equal ones together): one order per image."""
        keyed: dict[tuple[Any, ...], list[SceneObject]] = {}
        for thing in sorted(self.objects, key=lambda o: (o.x, o.y)):
            keyed.setdefault(thing.facts, []).append(thing)
        return replace(self, objects=tuple(o for run in keyed.values() for o in run))

    def matches(self, other: Scene) -> bool:
        """Same facts, exact positions aside: equal attributes and counts; every relation self states holds in other.

        Relations that self does not state (it may come from a caption, whose layout is one of many) are not compared.
        """
        mine = (self.background, self.style, self.light, self.word, self.camera)
        if mine != (other.background, other.style, other.light, other.word, other.camera):
            return False
        return any(self._holds_all(pick) for pick in _assignments(self.groups, other.objects))

    def told_by(self, text: str) -> bool:
        """Whether a caption means this scene: it parses, and what it states is true of it."""
        try:
            return self.parse(text).matches(self)
        except SceneError:
            return False

    def _holds_all(self, groups: tuple[Group, ...]) -> bool:
        return all(holds(r.kind, *(groups[i] for i in (r.subject, *r.objects))) for r in self.relations)

    # --- JSON ------------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The scene as one JSON object; `from_json` inverts it exactly."""
        record = {name: getattr(self, name) for name in ("background", "style", "light", "word", "camera")}
        return json.dumps(record | {"objects": [asdict(o) for o in self.objects]})

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Scene:
        """Inverts `to_json`; raises SceneError naming the field that is wrong."""
        try:
            record = dict(json.loads(text) if isinstance(text, str) else text)
            things = tuple(
                SceneObject(**{**o, "motion": Motion(**o["motion"]) if o.get("motion") else None})
                for o in record.pop("objects")
            )
            return cls(objects=things, **record)
        except SceneError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SceneError(f"not a scene in JSON: {error}") from None

    # --- language --------------------------------------------------------------------------------------------------

    def caption(self, language: str = "en", style: str = "plain") -> str:
        """The scene in words; see `showtell.world.language` for languages and styles."""
        from showtell.world.language import caption

        return caption(self, language, style)

    @classmethod
    def parse(cls, text: str) -> Scene:
        """The scene that a caption means, laid out so that every relation it states holds; raises SceneError."""
        from showtell.world.language import parse

        return parse(text)


def _relation(a: Group, b: Group) -> str:
    """The relation that a caption states between two groups, or "" where none is clear."""
    if len(a) == len(b) == 1:
        one, two = a[0], b[0]
        if _inside(one, two, 0.55):
            return "inside"
        if _overlap(one, two, 0.72) and one.depth != two.depth:
            return "in front of" if one.depth < two.depth else "behind"
    for kind in ("left of", "right of", "above", "below"):
        if _direction(kind, a, b, ratio=1.25, margin=0.06):
            return kind
    return ""


def holds(kind: str, a: Group, b: Group, c: Group | None = None) -> bool:
    """Whether the relation is true of these objects; looser than what a caption states, so that small errors of a
    generator or a judge do not turn a true relation into a false one."""
    _check(kind, RELATIONS, "relation")
    if kind == "between":
        return c is not None and _between(a[0], b[0], c[0], 0.27)
    if kind == "inside":
        return _inside(a[0], b[0], 0.9)
    if kind in ("in front of", "behind"):
        near, far = (a[0], b[0]) if kind == "in front of" else (b[0], a[0])
        return _overlap(near, far, 0.88) and near.depth < far.depth
    return _direction(kind, a, b, ratio=0.75, margin=0.0)


def _assignments(groups: tuple[Group, ...], objects: tuple[SceneObject, ...]) -> Iterator[tuple[Group, ...]]:
    """Every way to give each group as many of the objects with its facts as it has members; none left over."""
    if len(objects) != sum(map(len, groups)):
        return
    if not groups:
        yield ()
        return
    same = [i for i, o in enumerate(objects) if o.facts == groups[0][0].facts]
    for pick in itertools.combinations(same, len(groups[0])):
        rest = tuple(o for i, o in enumerate(objects) if i not in pick)
        for tail in _assignments(groups[1:], rest):
            yield (tuple(objects[i] for i in pick), *tail)
