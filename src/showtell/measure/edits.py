"""Whether an edit did what was asked, and nothing else: by the judge's reading, and by pixels.

`success`, `preserved` and `edited` are pure functions of an `Edit` and the scene seen afterwards; the functions in
the plural score images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.judge import Judge
from showtell.measure.scores import psnr, read
from showtell.pictures import letterbox, to_pil
from showtell.world.draw import draw
from showtell.world.edits import _PLACES, Edit
from showtell.world.language.parsing import WORD_FLOOR
from showtell.world.language.reference import fitting
from showtell.world.scene import Scene, SceneObject, holds

LOOK = ("shape", "colour", "size", "texture", "state", "rotation")
SETTING = ("background", "style", "light", "word")
STAYED = 0.08  # canvas units, five pixels of 64: what has moved no further is where it was
GHOST = 0.12  # what was removed is still there if its like is seen no further off than this

EditScore = Callable[[Edit, Scene], float]
Found = list[SceneObject | None]


# --- which object is which -------------------------------------------------------------------------------------------


def locate(things: Sequence[SceneObject], seen: Sequence[SceneObject], free: Collection[int] = ()) -> Found:
    """The seen object that each thing has become, or None: the assignment, one to one, of most likeness in total.

    Likeness: 2 for the shape, 2 for the colour, 1/2 for each of size, texture, state and rotation, less 8 times the
    distance (canvas units; once for the `free` ones, which may be anywhere). Pairs of a likeness below 1 are none.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # seen objects taken -> (likeness, choices)
    for i, thing in enumerate(things):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for taken, (total, chosen) in best.items():
            options = [(-1, 0.0)] + [
                (j, _likeness(thing, other, 1.0 if i in free else 8.0)) for j, other in enumerate(seen)
            ]
            for j, likeness in options:
                if j >= 0 and (taken >> j & 1 or likeness < 1):
                    continue
                key, value = taken | (1 << j if j >= 0 else 0), total + likeness
                if key not in longer or value > longer[key][0]:
                    longer[key] = (value, (*chosen, j))
        best = longer
    _, choices = max(best.values(), key=lambda entry: entry[0])
    return [seen[j] if j >= 0 else None for j in choices]


def _likeness(a: SceneObject, b: SceneObject, per_distance: float) -> float:
    weights = {"shape": 2.0, "colour": 2.0}
    return sum(weights.get(n, 0.5) * (getattr(a, n) == getattr(b, n)) for n in LOOK) - per_distance * _distance(a, b)


def _distance(a: SceneObject, b: SceneObject) -> float:
    return float(np.hypot(a.x - b.x, a.y - b.y))


def _targets(edit: Edit) -> list[int]:
    """Indices, in the scene before, of what the instruction refers to."""
    return fitting(edit.before.objects, dict(edit.operation.target)) if edit.operation.target else []


def _removed(edit: Edit) -> list[SceneObject]:
    """The objects of the scene before that the edit takes away."""
    found = _targets(edit)
    if edit.operation.action == "remove":
        return [edit.before.objects[i] for i in found]
    if edit.operation.action == "count":
        return [edit.before.objects[i] for i in found[int(edit.operation.value) :]]
    return []


def _changed(edit: Edit) -> dict[int, int]:
    """Index after -> index before of the objects that the edit changes in look or place."""
    return {i: i for i in _targets(edit)} if edit.operation.action in ("change", "replace", "move") else {}


def _new(edit: Edit) -> list[int]:
    """Indices, in the scene after, of the objects that were not there before."""
    more = len(edit.after.objects) - len(edit.before.objects)
    if more <= 0:
        return []
    first = len(edit.after.objects) - 1 if edit.operation.action == "add" else _targets(edit)[-1] + 1
    return list(range(first, first + more))


def _free(edit: Edit) -> list[int]:
    """Indices, in the scene after, of the objects whose place is not given: the new and the moved."""
    return _new(edit) if edit.operation.action != "move" else _targets(edit)


# --- scores ----------------------------------------------------------------------------------------------------------


def success(edit: Edit, seen: Scene) -> float:
    """How much of what the instruction asks for is there, in [0, 1], whatever else has happened.

    change, replace: share of the objects referred to that have become what was asked (the object now nearest in look
    and place is asked). remove: share of them that are gone. count: 1 where the number of things that fit the
    description is right. add: 1 where a new object of that look is seen, in the relation asked for. move: 1 where the
    object is in the relation, or the ninth of the canvas, that was asked for. background, restyle: 1 where it is so.
    """
    operation = edit.operation
    if operation.action in ("background", "restyle"):
        return float(getattr(seen, "background" if operation.action == "background" else "style") == operation.value)
    if operation.action == "count":
        return float(len(fitting(seen.objects, dict(operation.target))) == operation.value)
    partners = locate(edit.after.objects, seen.objects, _free(edit))
    if operation.action == "remove":
        others = [thing for thing in seen.objects if not any(thing is partner for partner in partners)]
        return float(np.mean([not _haunts(ghost, others) for ghost in _removed(edit)]))
    if operation.action in ("change", "replace"):
        asked = dict(operation.new)
        mine = [partners[i] for i in _targets(edit)]
        return float(np.mean([p is not None and all(getattr(p, k) == v for k, v in asked.items()) for p in mine]))
    return float(_arrived(edit, partners))


def _haunts(ghost: SceneObject, others: Sequence[SceneObject]) -> bool:
    return any(o.shape == ghost.shape and o.colour == ghost.colour and _distance(o, ghost) < GHOST for o in others)


def _arrived(edit: Edit, partners: Found) -> bool:
    """Whether what was added or moved is where the instruction wants it, with the look it asks for."""
    operation = edit.operation
    index = len(edit.after.objects) - 1 if operation.action == "add" else _targets(edit)[0]
    thing = partners[index]
    asked = dict(operation.new) if operation.action == "add" else {"shape": edit.before.objects[index].shape}
    if thing is None or any(getattr(thing, name) != value for name, value in asked.items()):
        return False
    if operation.relation:
        anchor = partners[fitting(edit.before.objects, dict(operation.anchor))[0]]
        return anchor is not None and holds(operation.relation, (thing,), (anchor,))
    if operation.value:
        floor = WORD_FLOOR if edit.before.word else 1.0
        return (min(int(3 * thing.y / floor), 2), min(int(3 * thing.x), 2)) == _PLACES[str(operation.value)]
    return True


def preserved(edit: Edit, seen: Scene) -> float:
    """Share of what the instruction does not name that is as it was, in [0, 1].

    One item each: every untouched object (same look, within `STAYED` of its place); every changed object (its other
    attributes, and its place unless it was to move); background, style, light and word where not asked for; and every
    object seen that should not be there (always wrong; what should have been removed is counted in `success`).
    """
    new, changed, removed = _new(edit), _changed(edit), _removed(edit)
    after = edit.after.objects
    partners = locate(after, seen.objects, _free(edit))
    right = []
    for i, thing in enumerate(after):
        if i in new:
            continue
        if i in changed:
            names = [name for name in LOOK if getattr(thing, name) == getattr(edit.before.objects[i], name)]
            right.append(_kept(thing, partners[i], names, edit.operation.action != "move"))
        else:
            right.append(_kept(thing, partners[i], LOOK, True))
    asked = {"background": "background", "restyle": "style"}.get(edit.operation.action)
    right += [getattr(seen, name) == getattr(edit.before, name) for name in SETTING if name != asked]
    extra = [thing for thing in seen.objects if not any(thing is partner for partner in partners)]
    right += [False] * max(0, len(extra) - sum(_haunts(ghost, extra) for ghost in removed))
    return float(np.mean(right))


def _kept(thing: SceneObject, partner: SceneObject | None, names: Sequence[str], place: bool) -> bool:
    if partner is None or (place and _distance(thing, partner) > STAYED):
        return False
    return all(getattr(thing, name) == getattr(partner, name) for name in names)


def edited(edit: Edit, seen: Scene) -> float:
    """`success` x `preserved`."""
    return success(edit, seen) * preserved(edit, seen)


def harmonic(edit: Edit, seen: Scene) -> float:
    """Harmonic mean of `success` and `preserved`; 0 where either is 0."""
    one, two = success(edit, seen), preserved(edit, seen)
    return 2 * one * two / (one + two) if one and two else 0.0


def score_edits(
    score: EditScore, images: Any, edits: Sequence[Edit], judge: Judge | str = "first", fast: bool = False
) -> np.ndarray:
    """(n,) the score of each edited image. Raises ShowtellError where the numbers differ."""
    seen = read(images, judge, fast)
    _same(seen, edits)
    return np.array([score(edit, scene) for edit, scene in zip(edits, seen, strict=True)], dtype=float)


# --- by pixels -------------------------------------------------------------------------------------------------------


def alone(edit: Edit) -> tuple[Scene, Scene]:
    """The scenes before and after with nothing in them but the objects that change, on white.

    For edits that neither add nor remove; their captions say what is edited and not what is to stay.
    """
    pairs = zip(edit.before.objects, edit.after.objects, strict=True)
    before, after = zip(*[(a, b) for a, b in pairs if a != b], strict=True)
    return (
        replace(edit.before, objects=before, background="white"),
        replace(edit.after, objects=after, background="white"),
    )


def edit_mask(edit: Edit, size: int = 64, margin: int = 2) -> np.ndarray:
    """(size, size) bool: where the exact pictures before and after differ, and `margin` pixels around."""
    one, two = draw([edit.before, replace(edit.after, camera=edit.before.camera)], size).astype(int)
    mask = np.abs(one - two).max(axis=-1) > 2
    for _ in range(margin):
        grown = mask.copy()
        grown[1:], grown[:-1] = grown[1:] | mask[:-1], grown[:-1] | mask[1:]
        grown[:, 1:], grown[:, :-1] = grown[:, 1:] | mask[:, :-1], grown[:, :-1] | mask[:, 1:]
        mask = grown
    return mask


def outside_psnr(images: Any, edits: Sequence[Edit], size: int = 64) -> np.ndarray:
    """(n,) PSNR in dB, at most 60, of image and picture before where the edit should change nothing.

    nan where it changes nearly everything (less than one pixel in a hundred is left). Images are compared at `size`.
    """
    pictures = [np.asarray(letterbox(picture, size)) for picture in to_pil(images)]
    _same(pictures, edits)
    sources = draw([edit.before for edit in edits], size)
    out = np.full(len(edits), np.nan)
    for i, (picture, source, edit) in enumerate(zip(pictures, sources, edits, strict=True)):
        outside = ~edit_mask(edit, size)
        if outside.mean() >= 0.01:
            out[i] = psnr(picture, source, outside)
    return out


def changed_outside(before: Any, after: Any, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """(n,) mean absolute change, in [0, 1], of pictures of one size outside of a box in each; nan where nothing is.

    boxes: left, top, right, bottom in fractions of the sides.
    """
    changes = []
    for one, two, (left, top, right, bottom) in zip(to_pil(before), to_pil(after), boxes, strict=True):
        change = np.abs(np.asarray(one, dtype=float) - np.asarray(two, dtype=float)).mean(axis=-1) / 255
        y, x = ((np.arange(side) + 0.5) / side for side in change.shape)
        inside = ((top <= y) & (y <= bottom))[:, None] & ((left <= x) & (x <= right))
        changes.append(float("nan") if inside.all() else change[~inside].mean())
    return np.array(changes)


def rebuilt_psnr(images: Any, originals: Any) -> np.ndarray:
    """(n,) PSNR in dB, at most 60, between images, brought to their size, and the pictures they should give back."""
    pairs = zip(to_pil(images), to_pil(originals), strict=True)
    return np.array([psnr(image.resize(original.size), original) for image, original in pairs])


def kept_pixels(images: Any, edits: Sequence[Edit], low: float = 10.0, high: float = 40.0) -> np.ndarray:
    """(n,) `outside_psnr` rescaled to [0, 1]: 0 at `low` dB and below, 1 at `high` dB and above."""
    return ((outside_psnr(images, edits) - low) / (high - low)).clip(0, 1)


def _same(found: Sequence[Any], edits: Sequence[Edit]) -> None:
    if len(found) != len(edits):
        raise ShowtellError(f"{len(found)} images but {len(edits)} edits; give one image per edit")
