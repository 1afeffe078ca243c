"""Edit triples: a scene, an instruction in English, Chinese and Spanish, and the scene after it.

`edits` writes them, `apply` carries out an instruction. Whatever the instruction does not name stays as and
where it was; what is added or moved finds a free place that depends on the scene and the instruction only.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from showtell.world.language import LANGUAGES, module
from showtell.world.language.parsing import WORD_FLOOR, Description, Reader
from showtell.world.language.reference import Said, finished, fitting, missing, placed, refer, the_one
from showtell.world.language.templates import fill, gaps, sentence
from showtell.world.scene import (
    BACKGROUNDS,
    COLOURS,
    HOLLOW,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    TURNABLE,
    Scene,
    SceneError,
    SceneObject,
    _relation,
    holds,
)

KINDS = (
    "add", "remove", "replace", "recolour", "move", "resize", "retexture", "restyle", "count", "background",
)  # fmt: skip
_SIDES = ("left of", "right of", "above", "below")
_CLOSE = ("in front of", "behind", "inside")
_PLACES = {
    f"{row} {column}".strip() or "centre": (i, j)
    for i, row in enumerate(("top", "", "bottom"))
    for j, column in enumerate(("left", "", "right"))
}
_GAP = 0.01  # free space around what is added or moved


@dataclass(frozen=True, slots=True)
class Operation:
    """What an instruction means. target, new, anchor: attributes; value: a style, count, place ..."""

    action: str
    target: tuple[tuple[str, Any], ...] = ()
    new: tuple[tuple[str, Any], ...] = ()
    value: str | int = ""
    relation: str = ""
    anchor: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """kind: one of `KINDS`; instruction: in English; `after` keeps what the instruction does not name."""

    kind: str
    instruction: str
    before: Scene
    after: Scene
    operation: Operation

    def text(self, language: str = "en") -> str:
        """The instruction in one of the languages; `apply` understands them all."""
        return _say(self.before, self.operation, language)


def edits(scene: Scene, rng: random.Random, kinds: Sequence[str] | None = None, n: int = 1) -> list[Edit]:
    """Up to n different edits of the scene, of the kinds (all by default); fewer where it allows no more.

    What is referred to is described as briefly as is unambiguous. SceneError for an unknown kind.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise SceneError(f"unknown kind of edit {kind!r}; use some of: {', '.join(KINDS)}")
    made: dict[str, Edit] = {}
    for _ in range(20 * n):
        if len(made) == n:
            break
        kind = rng.choice(list(kinds or KINDS))
        operation = _PLANS[kind](scene, rng)
        if operation is None:
            continue
        try:
            after = _perform(scene, operation)
        except SceneError:  # no room, or nothing would be left
            continue
        if kind == "resize" and {(o.x, o.y) for o in after.objects} != {(o.x, o.y) for o in scene.objects}:
            continue
        text = _say(scene, operation, "en")
        made.setdefault(text, Edit(kind, text, scene, after, operation))
    return list(made.values())


def apply(scene: Scene, instruction: str) -> Scene:
    """The scene after an instruction in any of the languages; the same input gives the same result.

    SceneError where the instruction cannot be read, the thing it refers to is not there or is ambiguous, or
    no place is free for what it adds, moves or enlarges (what does not fit where it is may shift a little).
    """
    for language in LANGUAGES:
        words = module(language)
        tokens = sentence(instruction, words.LEXICON)
        for action, forms in words.INSTRUCTIONS.items():
            for form in forms:
                parts = gaps(form, tokens, words.LEXICON)
                if parts is not None:
                    readers = [Reader(words.LEXICON.read(" ".join(part))) for part in parts]
                    return _perform(scene, _understand(scene, action, readers, language))
    raise SceneError("cannot read the instruction; say for example 'make the ring green' or 'remove the star'")


# --- instructions -------------------------------------------------------------------------------


def _say(scene: Scene, operation: Operation, language: str) -> str:
    words = module(language)
    forms = words.INSTRUCTIONS[operation.action]
    target, new, anchor = dict(operation.target), dict(operation.new), dict(operation.anchor)
    count = len(fitting(scene.objects, target))
    the = words.the(target, count)
    if operation.action == "background":
        return fill(forms[0], words.WORDING.name("background", str(operation.value), "terse"))
    if operation.action == "restyle":
        return fill(forms[0], words.styled(operation.value))
    if operation.action == "count":
        return fill(forms[0], words.noun(target, 2), str(operation.value))
    if operation.action == "replace":
        return fill(forms[0], the, words.a(new))
    if operation.action == "change":
        ((name, value),) = operation.new
        said = words.value(name, value, target.get("shape", "thing"), count)
        return _filled(forms[-1] if count > 1 and language == "es" else forms[0], the, said)
    where = words.located(operation.relation, words.the(anchor), "detailed") if operation.relation else ""
    if operation.action == "move":
        return _filled(forms[0], the, where or words.PLACES[operation.value])
    if operation.action == "add":
        said = words.a(new)
        if language == "zh" and where:
            return fill(forms[1], where, said)
        return fill(forms[0], f"{said} {where}")
    return fill(forms[0], the)


def _filled(form: str, *parts: str) -> str:
    """The form with its gaps filled; where it has one gap, the parts stand in it side by side."""
    return fill(form, *parts) if form.count("{}") == len(parts) else fill(form, " ".join(parts))


def _understand(scene: Scene, action: str, parts: list[Reader], language: str) -> Operation:
    first, last = parts[0], parts[-1]
    if action in ("background", "restyle"):
        return _understand_look(action, first)
    if action == "add":
        return _understand_add(scene, parts)
    if action == "change":
        return _understand_change(scene, parts, language)
    thing = first.thing()
    if action == "move":
        return _understand_move(scene, thing, last)
    finished(first)
    if action == "remove":
        return Operation("remove", _targets(scene, thing, language))
    if action == "count":
        number = last.take("count", "article")
        finished(last)
        if number is None or not 1 <= number.value <= MAX_OBJECTS:
            raise SceneError(f"say how many there shall be, 1 to {MAX_OBJECTS}")
        thing.plural = True
        return Operation("count", _targets(scene, thing, language), value=number.value)
    new = last.thing()
    finished(last)
    the_one(scene, thing)
    return Operation("replace", _sorted(thing.said), _sorted(new.said))


def _understand_look(action: str, reader: Reader) -> Operation:
    reader.skip("article", "the")
    symbol = reader.peek()
    known = BACKGROUNDS if action == "background" else STYLES
    kinds = ("background", "colour") if action == "background" else ("style",)
    if reader.take(*kinds) is None or symbol.value not in known:
        what = "background" if action == "background" else "style"
        raise SceneError(f"{symbol.text!r} is no {what}; use one of: {', '.join(known)}")
    finished(reader)
    return Operation(action, value=symbol.value)


def _understand_add(scene: Scene, parts: list[Reader]) -> Operation:
    new = parts[-1].thing()
    for name in ("shape", "colour"):
        if name not in new.said:
            raise SceneError(f"say which {name} {new.text!r} has, as in 'add a red ring'")
    if (new.count or 1) != 1:
        raise SceneError(f"add one thing at a time, not {new.text!r}")
    where = parts[0]
    if where.peek().kind == "end":
        return Operation("add", new=_sorted(new.said))
    return Operation("add", (), _sorted(new.said), "", *_where(scene, where))


def _understand_change(scene: Scene, parts: list[Reader], language: str) -> Operation:
    if len(parts) == 1:  # "the ring green": the last word is what changes
        symbols = parts[0].symbols
        parts = [Reader(symbols[:-1]), Reader(symbols[-1:])]
    thing, symbol = parts[0].thing(), parts[1].peek()
    finished(parts[0])
    if symbol.kind not in ("colour", "size", "texture", "state", "rotation") or len(parts[1].symbols) != 1:
        raise SceneError(f"cannot make something {symbol.text!r}; name a colour, size, texture or state")
    return Operation("change", _targets(scene, thing, language), ((symbol.kind, symbol.value),))


def _understand_move(scene: Scene, thing: Description, where: Reader) -> Operation:
    the_one(scene, thing)
    if place := where.take("place"):
        finished(where)
        return Operation("move", _sorted(thing.said), value=place.value)
    return Operation("move", _sorted(thing.said), (), "", *_where(scene, where))


def _where(scene: Scene, reader: Reader) -> tuple[str, tuple[tuple[str, Any], ...]]:
    where = placed(reader)
    if where is None or where[0] == "between":
        raise SceneError("say where with one relation, as in 'to the left of the star'")
    finished(reader)
    the_one(scene, where[1][0])
    return where[0], _sorted(where[1][0].said)


def _targets(scene: Scene, thing: Description, language: str) -> tuple[tuple[str, Any], ...]:
    """The description of one thing, or in the plural of several; SceneError where it fits others too."""
    found = fitting(scene.objects, thing.said)
    if not found:
        raise SceneError(missing(thing.text))
    equal = len({scene.objects[i].facts for i in found}) == 1
    if len(found) > 1 and not (equal and (thing.plural or language == "zh")):
        raise SceneError(f"{len(found)} things fit {thing.text!r}; say which")
    return _sorted(thing.said)


def _sorted(said: Said) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(said.items()))


# --- carrying out -------------------------------------------------------------------------------


def _perform(scene: Scene, operation: Operation) -> Scene:
    """The scene after the operation; every draw depends on the scene and the operation only."""
    objects = list(scene.objects)
    found = fitting(objects, dict(operation.target)) if operation.target else []
    rng = random.Random(f"{scene.to_json()} {operation}")
    floor = WORD_FLOOR if scene.word else 1.0
    if operation.action == "background":
        return replace(scene, background=str(operation.value))
    if operation.action == "restyle":
        return replace(scene, style=str(operation.value))
    if operation.action == "remove":
        if len(found) == len(objects):
            raise SceneError("nothing would be left; a scene has at least one object")
        objects = [o for i, o in enumerate(objects) if i not in found]
    elif operation.action in ("change", "replace"):
        for i in found:
            objects[i] = _changed(objects[i], dict(operation.new))
        objects = _with_room(scene, objects, rng, floor)
    elif operation.action == "count":
        objects = _counted(scene, found, int(operation.value), rng, floor)
    else:
        objects = _located(objects, operation, found, rng, floor)
    return replace(scene, objects=tuple(objects))


def _with_room(scene: Scene, objects: list[SceneObject], rng: random.Random, floor: float) -> list[SceneObject]:
    """The objects, what has grown shifted a little where it would leave the canvas or meet another.

    SceneError where that is not possible, or where a stated relation would no longer be true.
    """
    for i, (old, new) in enumerate(zip(scene.objects, objects, strict=True)):
        if new.radius == old.radius:
            continue
        apart = [o for k, o in enumerate(objects) if k != i and not _touch(old, scene.objects[k])]
        for step in range(300):
            x, y = (rng.gauss(at, step * 0.0005) for at in (old.x, old.y)) if step else (old.x, old.y)
            if not (0 <= x <= 1 and 0 <= y <= 1):
                continue
            objects[i] = replace(new, x=round(x, 4), y=round(y, 4))
            if _fits(objects[i], apart, floor) and not _broken(scene, objects):
                break
        else:
            raise SceneError(f"no room to make it {new.size} where it is")
    if broken := _broken(scene, objects):
        raise SceneError(f"something would then no longer be {broken[0]} another")
    return objects


def _broken(scene: Scene, objects: list[SceneObject]) -> list[str]:
    """The relations that the scene states and that are not true of the new objects (one per old one)."""
    ends = list(itertools.accumulate(len(g) for g in scene.groups))
    groups = [tuple(objects[end - len(g) : end]) for end, g in zip(ends, scene.groups, strict=True)]
    told = [(r.kind, [groups[k] for k in (r.subject, *r.objects)]) for r in scene.relations]
    return [kind for kind, members in told if not holds(kind, *members)]


def _touch(a: SceneObject, b: SceneObject) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius


def _fits(thing: SceneObject, others: Sequence[SceneObject], floor: float) -> bool:
    """Whether the thing lies on the canvas and apart from the others."""
    if not (thing.radius <= thing.x <= 1 - thing.radius and thing.radius <= thing.y <= floor - thing.radius):
        return False
    return not any(_touch(thing, o) for o in others)


def _changed(thing: SceneObject, new: Said) -> SceneObject:
    if "shape" in new and new["shape"] not in TURNABLE:
        new = {"rotation": 0, **new}
    return replace(thing, **new)


def _counted(scene: Scene, found: list[int], count: int, rng: random.Random, floor: float) -> list[SceneObject]:
    """The objects without the last of those found, or with more of them where stated relations stay true."""
    total = len(scene.objects) - len(found) + count
    if total > MAX_OBJECTS:
        raise SceneError(f"that makes {total} objects; a scene has 1 to {MAX_OBJECTS}")
    if count <= len(found):
        return [o for i, o in enumerate(scene.objects) if i not in found[count:]]
    for _ in range(8):
        objects = list(scene.objects)
        for _ in range(count - len(found)):
            thing = replace(objects[found[0]], depth=max(o.depth for o in objects) + 1)
            objects.insert(found[-1] + 1, _free(thing, objects, rng, floor))
        if _still_true(scene, objects, found[-1] + 1, count - len(found)):
            return objects
    raise SceneError("no free place that keeps what the scene says of the others")


def _still_true(scene: Scene, objects: list[SceneObject], end: int, more: int) -> bool:
    """Whether what is stated of the group that ends at `end` holds with `more` objects inserted there."""
    ends = list(itertools.accumulate(len(g) for g in scene.groups))
    k, groups = ends.index(end), list(scene.groups)
    groups[k] = (*groups[k], *objects[end : end + more])
    mine = [r for r in scene.relations if k in (r.subject, *r.objects)]
    return all(r.kind in _SIDES and holds(r.kind, groups[r.subject], groups[r.objects[0]]) for r in mine)


def _located(
    objects: list[SceneObject], operation: Operation, found: list[int], rng: random.Random, floor: float
) -> list[SceneObject]:
    """Objects with one added, or one moved, to where the operation says."""
    anchor = objects[fitting(objects, dict(operation.anchor))[0]] if operation.relation else None
    if operation.action == "add":
        thing, index = (
            SceneObject(**dict(operation.new), depth=max(o.depth for o in objects) + 1),
            len(objects),
        )
        if index == MAX_OBJECTS:
            raise SceneError(f"the scene has {MAX_OBJECTS} objects already; remove one first")
        others = objects
    else:
        index = found[0]
        thing, others = objects[index], objects[:index] + objects[index + 1 :]
    if anchor is thing:
        raise SceneError("a thing cannot be moved to a place beside itself")
    if anchor and operation.relation in _CLOSE:
        if operation.relation != "behind" and anchor.depth == 0:
            others, anchor = [replace(o, depth=o.depth + 1) for o in others], replace(anchor, depth=1)
        thing = replace(thing, depth=anchor.depth + (1 if operation.relation == "behind" else -1))
    thing = _free(thing, others, rng, floor, operation.relation, anchor, str(operation.value))
    return [*others[:index], thing, *others[index:]]


def _free(
    thing: SceneObject, others: list[SceneObject], rng: random.Random, floor: float, relation: str = "",
    anchor: SceneObject | None = None, place: str = "",
) -> SceneObject:  # fmt: skip
    """The thing at a free position in the relation to the anchor, or in the named ninth of the canvas."""
    close = anchor if relation in _CLOSE else None
    if relation == "inside" and close and not _can_hold(close, thing):
        raise SceneError("only a small thing fits inside a large ring or frame")
    low, right, bottom = thing.radius, 1 - thing.radius, floor - thing.radius
    circles = [(o.x, o.y, thing.radius + o.radius + _GAP) for o in others if o != close]
    for _ in range(400):
        x, y = _near(close, thing, relation, rng) if close else (rng.uniform(low, right), rng.uniform(low, bottom))
        if not (low <= x <= right and low <= y <= bottom):
            continue
        if place and (int(3 * y / floor), int(3 * x)) != _PLACES[place]:
            continue
        if any(math.hypot(x - u, y - v) < reach for u, v, reach in circles):
            continue
        moved = replace(thing, x=round(x, 4), y=round(y, 4))
        if not anchor or _relation((moved,), (anchor,)) == relation:
            return moved
    raise SceneError("no free place for it there")


def _can_hold(outer: SceneObject, inner: SceneObject) -> bool:
    return outer.shape in HOLLOW and (inner.size, outer.size) == ("small", "large")


def _near(anchor: SceneObject, thing: SceneObject, relation: str, rng: random.Random) -> tuple[float, float]:
    """A position that overlaps the anchor by about a third, or inside it."""
    reach = rng.uniform(0, 0.02) if relation == "inside" else rng.uniform(0.5, 0.8) * (thing.radius + anchor.radius)
    angle = rng.uniform(0, 2 * math.pi)
    return anchor.x + reach * math.cos(angle), anchor.y + reach * math.sin(angle)


# --- planning -----------------------------------------------------------------------------------


def _group(scene: Scene, rng: random.Random, single: bool = False) -> Said | None:
    """What refers to a random group, or a random single object; None where nothing short does."""
    starts, at = [], 0
    for group in scene.groups:
        if len(group) == 1 or not single:
            starts.append((at, len(group)))
        at += len(group)
    if not starts:
        return None
    first, size = rng.choice(starts)
    return refer(scene.objects, range(first, first + size))


def _one(scene: Scene, said: Said) -> SceneObject:
    return scene.objects[fitting(scene.objects, said)[0]]


def _plan_change(name: str, values: Sequence[str]) -> Callable[[Scene, random.Random], Operation | None]:
    def plan(scene: Scene, rng: random.Random) -> Operation | None:
        said = _group(scene, rng, single=name == "size")
        if said is None:
            return None
        old = getattr(_one(scene, said), name)
        new = rng.choice([v for v in values if v != old and (name != "colour" or v != scene.background)])
        return Operation("change", _sorted(said), ((name, new),))

    return plan


def _plan_replace(scene: Scene, rng: random.Random) -> Operation | None:
    said = _group(scene, rng, single=True)
    if said is None:
        return None
    old = _one(scene, said)
    shapes = [s for s in SHAPES if s != old.shape and (s in TURNABLE or not old.rotation)]
    return Operation("replace", _sorted(said), (("shape", rng.choice(shapes)),))


def _plan_remove(scene: Scene, rng: random.Random) -> Operation | None:
    said = _group(scene, rng)
    return Operation("remove", _sorted(said)) if said else None


def _plan_count(scene: Scene, rng: random.Random) -> Operation | None:
    said = _group(scene, rng)
    if said is None or "shape" not in said:
        return None
    now = len(fitting(scene.objects, said))
    counts = [k for k in range(1, MAX_OBJECTS - len(scene.objects) + now + 1) if k != now]
    return Operation("count", _sorted(said), value=rng.choice(counts)) if counts else None


def _plan_add(scene: Scene, rng: random.Random) -> Operation | None:
    new: Said = {
        "shape": rng.choice(SHAPES),
        "colour": rng.choice([c for c in COLOURS if c != scene.background]),
    }
    if rng.random() < 0.6:
        new["size"] = rng.choice(("small", "large"))
    if rng.random() < 0.3:
        return Operation("add", new=_sorted(new))
    anchor = _group(scene, rng, single=True)
    return (
        Operation("add", (), _sorted(new), "", _where_to(scene, rng, new, anchor), _sorted(anchor)) if anchor else None
    )


def _plan_move(scene: Scene, rng: random.Random) -> Operation | None:
    said, anchor = _group(scene, rng, single=True), _group(scene, rng, single=True)
    if said is None:
        return None
    thing = _one(scene, said)
    if anchor is None or anchor == said or rng.random() < 0.3:
        floor = WORD_FLOOR if scene.word else 1.0
        here = (int(3 * thing.y / floor), int(3 * thing.x))
        place = rng.choice([name for name, cell in _PLACES.items() if cell != here])
        return Operation("move", _sorted(said), value=place)
    relation = _where_to(scene, rng, {"size": thing.size}, anchor)
    if holds(relation, (thing,), (_one(scene, anchor),)):
        return None
    return Operation("move", _sorted(said), (), "", relation, _sorted(anchor))


def _where_to(scene: Scene, rng: random.Random, new: Said, anchor: Said) -> str:
    """A relation to the anchor: mostly a side, sometimes behind, in front, or inside where that can be."""
    other = _one(scene, anchor)
    if new.get("size") == "small" and other.size == "large" and other.shape in HOLLOW and rng.random() < 0.4:
        return "inside"
    close = ("behind", "in front of") if other.depth else ("behind",)
    return rng.choice(close if rng.random() < 0.15 else _SIDES)


def _plan_look(name: str, values: Sequence[str]) -> Callable[[Scene, random.Random], Operation | None]:
    def plan(scene: Scene, rng: random.Random) -> Operation | None:
        taken = {getattr(scene, name), *(o.colour for o in scene.objects)}
        return Operation("background" if name == "background" else "restyle",
                         value=rng.choice([v for v in values if v not in taken]))  # fmt: skip

    return plan


_PLANS: dict[str, Callable[[Scene, random.Random], Operation | None]] = {
    "add": _plan_add, "remove": _plan_remove, "replace": _plan_replace, "move": _plan_move,
    "count": _plan_count,
    "recolour": _plan_change("colour", COLOURS), "resize": _plan_change("size", SIZES),
    "retexture": _plan_change("texture", TEXTURES), "restyle": _plan_look("style", STYLES),
    "background": _plan_look("background", BACKGROUNDS),
}  # fmt: skip
