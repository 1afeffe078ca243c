"""From a parser network's probabilities to a scene, and its improvement by drawing it (analysis by synthesis)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from showtell.data.targets import OBJECT_VALUES, SCENE_VALUES, distinct, found, scenery, thing_at, things
from showtell.nets.scene_parser import OBJECT_HEADS
from showtell.world import Scene, SceneObject, draw
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
ADDED = 0.97  # an object that the network did not report must bring the error below this share of it
BELIEVED = 0.97  # as must what the network held impossible
CLEARED = 0.7  # and an object that nothing but the difference speaks for
EXACT = 0.05  # grey levels; a drawing as close as that is the image
NEAR, FAR = 0.01, 0.9  # unexplained shares at which all is tried for an object: in a drawing, and in other pictures
SOFT = 0.1  # a picture that blurring the drawing explains by that share more was not drawn
ROUNDS = 6  # changes of one picture that take several coordinates at once
_STEP = 1 / 64
_FIT = (0.5, 0.25, 0.1, 0.1)  # pixels by which objects are moved to see what that changes
_BATCH = 64  # drawings that stay in cache


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
            for name in OBJECT_HEADS:
                if name != "rotation" or thing.shape in TURNABLE:
                    likely *= float(self.out[name][slot][OBJECT_VALUES[name].index(getattr(thing, name))])
        for name, value in self.rest.items():
            likely *= float(self.out[name][SCENE_VALUES[name].index(value)])
        return likely * float(self.out["word"].max(axis=-1).prod())


# --- improvement -----------------------------------------------------------------------------------------------------

Change = Callable[[Draft], Draft]
Coordinate = Callable[[Draft], Iterator[list[Change]]]


@dataclass(frozen=True, eq=False)
class Tried:
    """A draft that was drawn: the root mean squared difference to its image, in grey levels, and the drawing."""

    draft: Draft
    error: float
    shown: np.ndarray


def improve(drafts: list[Draft], images: np.ndarray, sweeps: int = 2) -> None:
    """Changes each draft in place wherever its drawing comes closer to its image. images: uint8 (n, h, w, 3).

    First one coordinate at a time: places by least squares, of everything else the values that the network holds
    plausible, many images drawn together. A drawing that equals its image is right, and nothing more is tried. Then,
    image by image, what one coordinate at a time cannot reach, see `_deepen`.
    """
    for start in range(0, len(drafts), _BATCH):
        part = slice(start, start + _BATCH)
        _improve(drafts[part], Easel(images[part]), sweeps)


def _improve(drafts: list[Draft], easel: Easel, sweeps: int) -> None:
    stands = easel.draw(list(enumerate(drafts)))
    drawn = [{draft.key()} for draft in drafts]
    for _ in range(sweeps):
        for coordinates in (_OBJECTS, _SCENES):
            _fit_open(easel, stands, drawn)
            for propose in coordinates:
                _sweep(easel, stands, propose, drawn)
    _fit_open(easel, stands, drawn)
    for i, draft in enumerate(drafts):
        _copy(_without_hidden(easel, i, _deepen(easel, i, stands[i])).draft, draft)


def _copy(source: Draft, target: Draft) -> None:
    target.slots, target.things, target.rest = source.slots, source.things, source.rest


def _fit_open(easel: Easel, stands: list[Tried], drawn: list[set[Shown]]) -> None:
    """Moves the objects of all images that are not yet drawn exactly to where they fit best."""
    rows = [i for i, one in enumerate(stands) if one.error > EXACT]
    for i, one in zip(rows, easel.fit([(i, stands[i]) for i in rows]), strict=True):
        stands[i] = one
        drawn[i].add(one.draft.key())


def _sweep(easel: Easel, stands: list[Tried], propose: Coordinate, drawn: list[set[Shown]]) -> None:
    """One coordinate of all images that are not yet drawn exactly."""
    queues = {i: list(propose(one.draft)) for i, one in enumerate(stands) if one.error > EXACT}
    for turn in range(max(map(len, queues.values()), default=0)):
        tried = [(i, change) for i, queue in queues.items() if turn < len(queue) for change in queue[turn]]
        _keep_best(easel, stands, tried, drawn, ADDED if propose is _additions else 1.0)


def _keep_best(
    easel: Easel, stands: list[Tried], tried: list[tuple[int, Change]], drawn: list[set[Shown]], share: float
) -> None:
    """What was drawn once and is not what stands is not drawn again: it would be rejected again, since errors of what
    stands only fall."""
    made = [(i, draft) for i, change in tried if (draft := change(stands[i].draft)).key() not in drawn[i]]
    if share == 1:  # what has to do better than that may yet do well enough elsewhere
        for i, draft in made:
            drawn[i].add(draft.key())
    limits = {i: share * stands[i].error - 1e-3 for i, _ in made}
    for (i, _), one in zip(made, easel.draw(made), strict=True):
        if one.error < limits[i]:
            stands[i], limits[i] = one, one.error


class Easel:
    """Where drafts are drawn and compared with their images, uint8 (n, h, w, 3)."""

    def __init__(self, images: np.ndarray) -> None:
        self.wanted = images.astype(np.float32)

    def draw(self, made: Sequence[tuple[int, Draft]]) -> list[Tried]:
        """Each draft drawn for the image of its number."""
        tried: list[Tried] = []
        for start in range(0, len(made), _BATCH):
            rows, drafts = zip(*made[start : start + _BATCH], strict=True)
            shown = draw([draft.scene() for draft in drafts], self.wanted.shape[1])
            difference = (shown - self.wanted[list(rows)]).reshape(len(rows), -1)
            errors = np.sqrt(np.einsum("kp,kp->k", difference, difference) / difference.shape[1])
            tried += map(Tried, drafts, errors.tolist(), map(np.copy, shown))
        return tried

    def best(self, row: int, drafts: Iterable[Draft], count: int, only: int | None = None) -> list[Tried]:
        """The `count` closest of different drafts of one image, after their places were fitted, closest first."""
        different = {draft.key(): draft for draft in drafts}.values()
        tried = sorted(self.draw([(row, draft) for draft in different]), key=_error)[:count]
        return sorted(self.fit([(row, one) for one in tried], only), key=_error)

    def fit(self, stands: Sequence[tuple[int, Tried]], only: int | None = None) -> list[Tried]:
        """Every draft with its objects (or `only` the one) where they fit best, by the Gauss-Newton method: the drawing
        as a linear function of all places, from drawings with one object moved a little, solved by least squares."""
        fitted, moving = [one for _, one in stands], set(range(len(stands)))
        for step in _FIT:
            going = [(k, stands[k][0]) for k in sorted(moving) if fitted[k].error > EXACT]
            ways = self._ways([(row, fitted[k]) for k, row in going], step, only)
            shifted = [
                (k, row, _shifted(fitted[k].draft, share * way))
                for (k, row), way in zip(going, ways, strict=True)
                for share in (1.0, 0.4)
            ]
            here = {(k, fitted[k].draft.key()) for k, _ in going}
            made = list({key: one for one in shifted if (key := (one[0], one[2].key())) not in here}.values())
            moving = set()
            for (k, *_), one in zip(made, self.draw([(row, draft) for _, row, draft in made]), strict=True):
                if one.error < fitted[k].error - 1e-3:
                    fitted[k] = one
                    moving.add(k)
        return fitted

    def _ways(self, stands: Sequence[tuple[int, Tried]], step: float, only: int | None) -> list[np.ndarray]:
        """(objects, 2) pixels by which each draft's objects should move, at most 1.5 along each axis."""
        moved, counts = [], []
        for row, one in stands:
            movers = range(len(one.draft.things)) if only is None else (only,)
            moved += [(row, _moved(one.draft, j, dx, dy)) for j in movers for dx, dy in ((step, 0.0), (0.0, step))]
            counts.append(2 * len(movers))
        shown, ways = [one.shown for one in self.draw(moved)], []
        for (row, one), count, last in zip(stands, counts, np.cumsum(counts).tolist(), strict=True):
            here = one.shown.astype(np.float32)
            slopes = (np.stack(shown[last - count : last]) - here).reshape(count, -1) / step
            gram = slopes @ slopes.T
            gram[np.diag_indices(count)] += 1e-3 * gram.trace() / count + 1e-6
            best = np.linalg.solve(gram, slopes @ (self.wanted[row] - here).reshape(-1)).clip(-1.5, 1.5).reshape(-1, 2)
            way = np.zeros((len(one.draft.things), 2))
            way[slice(None) if only is None else [only]] = best
            ways.append(way)
        return ways


def _error(one: Tried) -> float:
    return one.error


def _shifted(draft: Draft, way: np.ndarray) -> Draft:
    for i, (dx, dy) in enumerate(way.tolist()):
        draft = _moved(draft, i, dx, dy) if dx or dy else draft
    return draft


def _set(index: int, **facts: Any) -> Change:
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
    yield [partial(_scened, background=value) for value in likely["background"]]
    yield [partial(_scened, style=style, light=light) for style in likely["style"] for light in likely["light"]]


def _scened(draft: Draft, **values: str) -> Draft:
    return replace(draft, rest=draft.rest | values)


def _places(draft: Draft) -> Iterator[list[Change]]:
    """Moves by a pixel and a half: out of places from which no small move leads on, as patterns have many."""
    moves = [(1.5 * dx, 1.5 * dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    for i in range(len(draft.things)):
        yield [partial(_moved, i=i, dx=dx, dy=dy) for dx, dy in moves]


def _moved(draft: Draft, i: int, dx: float, dy: float) -> Draft:
    thing = draft.things[i]
    x, y = (min(max(v + d * _STEP, 0.0), 1.0) for v, d in ((thing.x, dx), (thing.y, dy)))
    return _set(i, x=round(x, 4), y=round(y, 4))(draft)


def _sizes(draft: Draft) -> Iterator[list[Change]]:
    for i in range(len(draft.things)):
        yield [_set(i, size=size) for size in RADIUS]


def _kinds(draft: Draft) -> Iterator[list[Change]]:
    """Shapes with their rotations."""
    for i, slot in enumerate(draft.slots):
        yield [
            _set(i, shape=shape, rotation=turn)
            for shape in _likely(draft, slot, "shape")
            for turn in (_likely(draft, slot, "rotation") if shape in TURNABLE else [0])
        ]


def _states(draft: Draft) -> Iterator[list[Change]]:
    for i, slot in enumerate(draft.slots):
        yield [_set(i, state=state) for state in _likely(draft, slot, "state")]


def _finishes(draft: Draft) -> Iterator[list[Change]]:
    """Colours with textures: green stripes on white are pale too, and a wrong one of the two hides the other."""
    for i, slot in enumerate(draft.slots):
        textures = _likely(draft, slot, "texture")
        yield [_set(i, colour=c, texture=t) for c in _likely(draft, slot, "colour") for t in textures]


def _absences(draft: Draft) -> Iterator[list[Change]]:
    """Objects that may not be there."""
    for slot in draft.slots:
        if draft.out["present"][slot] < 0.98:
            yield [partial(_without, slot=slot)]


def _additions(draft: Draft) -> Iterator[list[Change]]:
    """Objects that may be there all the same."""
    size = len(draft.out["present"]) // len(OBJECT_VALUES["size"])
    for slot in np.flatnonzero(draft.out["present"] > 0.02).tolist():
        if slot not in draft.slots and all(distinct(draft.out, slot, j, size) for j in draft.slots):
            yield [partial(_with, slot=slot, size=size)]


def _without(draft: Draft, slot: int) -> Draft:
    if len(draft.slots) == 1 or slot not in draft.slots:
        return draft
    keep = [i for i, s in enumerate(draft.slots) if s != slot]
    return replace(draft, slots=[draft.slots[i] for i in keep], things=[draft.things[i] for i in keep])


def _with(draft: Draft, slot: int, size: int) -> Draft:
    if len(draft.slots) == MAX_OBJECTS or slot in draft.slots:
        return draft
    new = thing_at(draft.out, slot, max(o.depth for o in draft.things) + 1, size)
    return replace(draft, slots=[*draft.slots, slot], things=[*draft.things, new])


def _orders(draft: Draft) -> Iterator[list[Change]]:
    """Pairs swapped in depth."""
    for i in range(len(draft.things)):
        for j in range(i):
            yield [partial(_swapped, i=i, j=j)]


def _swapped(draft: Draft, i: int, j: int) -> Draft:
    if max(i, j) >= len(draft.things):
        return draft
    one, two = draft.things[i].depth, draft.things[j].depth
    return _set(j, depth=one)(_set(i, depth=two)(draft))


_OBJECTS: tuple[Coordinate, ...] = (_kinds, _finishes, _places, _sizes, _states, _absences, _additions, _orders)
_SCENES: tuple[Coordinate, ...] = (
    _scenery,
)  # comes last: while objects are wrong, a style that hides them may look closer

# --- several coordinates at once -------------------------------------------------------------------------------------

_KINDS = [(shape, turn) for shape in SHAPES for turn in (ROTATIONS if shape in TURNABLE else (0,))]


def _deepen(easel: Easel, row: int, stand: Tried) -> Tried:
    """Goes on where the drawing is not exact: among all values, those too that the network held impossible, several at
    once, and with what was changed moved to where it fits best before it is judged. A change has to bring the error
    down by a clear share. Cheap attempts come first."""
    for _ in range(ROUNDS):
        for attempt in (_arranged, _nearby, _anew, _merged, _added, _relit):
            if stand.error <= EXACT:
                return stand
            new = _closest(attempt(easel, row, stand), stand)
            if new.error < BELIEVED * stand.error:
                stand = new
                break
        else:
            return stand
    return stand


def _closest(tried: Iterable[Tried], best: Tried) -> Tried:
    """Of these and best, drawn as far as necessary."""
    for one in tried:
        best = min(best, one, key=_error)
        if best.error <= EXACT:
            break
    return best


def _left(easel: Easel, row: int, stand: Tried) -> np.ndarray:
    """(h, w) squared difference that the drawing leaves."""
    return np.square(stand.shown - easel.wanted[row]).mean(-1)


def _doubtful(easel: Easel, row: int, stand: Tried, least: float) -> list[int]:
    """Objects in whose box the drawing leaves more than this share of the variance unexplained, the worst first."""
    wanted, left = easel.wanted[row], _left(easel, row, stand)
    left -= np.median(left)  # noise, which is everywhere
    boxes = [_box(thing.x, thing.y, 1.2 * thing.radius, len(left)) for thing in stand.draft.things]
    shares = np.array([left[box].mean() / _variance(wanted[box]) for box in boxes])
    return [int(i) for i in np.argsort(-shares) if shares[i] > max(least, 0.3 * shares.max())]


def _variance(pixels: np.ndarray) -> float:
    """Of pixels (h, w, 3), and a little: where there is next to nothing to explain, noise is not a doubt."""
    return float(pixels.var(axis=(0, 1)).mean()) + 20


def _box(x: float, y: float, reach: float, size: int) -> tuple[slice, slice]:
    """The rows and columns of pixels no further than that from (x, y)."""
    spans = ((max(at - reach, 0.0) * size, min(at + reach, 1.0) * size) for at in (y, x))
    rows, columns = (slice(int(first), math.ceil(last)) for first, last in spans)
    return rows, columns


def _peak(values: np.ndarray, reach: int) -> tuple[float, float]:
    """Where on the canvas (x, y) the mean of a square of pixels is largest."""
    width = 2 * reach + 1
    sums = np.pad(values, ((reach + 1, reach),) * 2).cumsum(0).cumsum(1)
    means = sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]
    row, column = divmod(int(means.argmax()), len(values))
    return round((column + 0.5) / len(values), 4), round((row + 0.5) / len(values), 4)


def _least(easel: Easel, row: int, stand: Tried) -> float:
    """The share of an object that has to be unexplained before everything is tried for it: small where all else is
    exact, so that the image surely is a drawing; large in images that no drawing will equal."""
    left = _left(easel, row, stand)
    left[_box(*_peak(left, len(left) // 8), 0.25, len(left))] = 0
    return NEAR if left.mean() < 1 and _softness(stand.shown, easel.wanted[row]) < SOFT else FAR


def _softness(shown: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the squared difference that goes when the drawing is blurred as much as suits the image."""
    sharp = shown.astype(np.float32)
    wide = np.pad(sharp, ((1, 1), (1, 1), (0, 0)), mode="edge")
    wide = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    blur = ((wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 16 - sharp).ravel()
    left = (wanted - sharp).ravel()
    return max(float(blur @ left), 0.0) ** 2 / float((blur @ blur) * (left @ left) + 1e-6)


def _arranged(easel: Easel, row: int, stand: Tried) -> list[Tried]:
    """Another order in depth, an object less, another scenery."""
    draft, n = stand.draft, len(stand.draft.things)
    made = [_swapped(draft, i, j) for i in range(n) for j in range(i)]
    made += [_without(draft, slot) for slot in draft.slots if n > 1]
    if _least(easel, row, stand) == NEAR:
        made += _sceneries(draft)
    return easel.best(row, made, 2)


def _sceneries(draft: Draft) -> list[Draft]:
    made = [_scened(draft, style=style, light=light) for style in STYLES for light in LIGHTS]
    return [*made, *(_scened(draft, background=background) for background in BACKGROUNDS)]


def _nearby(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """Another colour and texture, or one other thing about its form, of each object."""
    for i in _doubtful(easel, row, stand, _least(easel, row, stand) / 4):
        draft, thing = stand.draft, stand.draft.things[i]
        made = [_formed(draft, i, *kind, thing.state, thing.size) for kind in _KINDS]
        made += [_formed(draft, i, thing.shape, thing.rotation, state, size) for state in STATES for size in SIZES]
        made += [_set(i, shape=shape, rotation=turn)(draft) for shape, turn in _KINDS]
        yield from easel.best(row, [*made, *_surfaced(draft, i)], 3, i)


def _anew(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """Everything about an object."""
    for i in _doubtful(easel, row, stand, _least(easel, row, stand)):
        yield from _found_anew(easel, row, [stand, *_elsewhere(easel, row, stand, i)], i)


def _elsewhere(easel: Easel, row: int, stand: Tried, i: int) -> list[Tried]:
    """The object moved to where most is unexplained without it."""
    if len(stand.draft.things) == 1:
        return []
    (less,) = easel.draw([(row, _without(stand.draft, stand.draft.slots[i]))])
    x, y = _peak(_left(easel, row, less), len(less.shown) // 8)
    return easel.draw([(row, _set(i, x=x, y=y)(stand.draft))])


def _found_anew(easel: Easel, row: int, beam: list[Tried], i: int) -> list[Tried]:
    """The best looks of one object, in turn its surface and its form, from some starts."""
    for options, width, count in ((_surfaced, 3, 3), (_forms, 2, 6), (_surfaced, 3, 3)):
        made = [draft for one in beam[:width] for draft in options(one.draft, i)]
        beam = easel.best(row, made, count, i)
        if beam[0].error < EXACT:
            break
    return beam


def _surfaced(draft: Draft, i: int) -> list[Draft]:
    return [_set(i, colour=colour, texture=texture)(draft) for colour in COLOURS for texture in TEXTURES]


def _forms(draft: Draft, i: int) -> list[Draft]:
    return [_formed(draft, i, *kind, state, size) for kind in _KINDS for state in STATES for size in SIZES]


def _formed(draft: Draft, i: int, shape: str, turn: int, state: str, size: str) -> Draft:
    """Another form whose visible part has the same middle: that of a half is not where the object's is."""
    old = draft.things[i]
    was, new = _middle(old.shape, old.rotation, old.state), _middle(shape, turn, state)
    x, y = (
        round(min(max(at + old.radius * a - RADIUS[size] * b, 0.0), 1.0), 4)
        for at, a, b in zip((old.x, old.y), was, new, strict=True)
    )
    return _set(i, shape=shape, rotation=turn, state=state, size=size, x=x, y=y)(draft)


@lru_cache(maxsize=len(_KINDS) * len(STATES))
def _middle(shape: str, turn: int, state: str) -> tuple[float, float]:
    """The middle of what is visible, from the object's centre, in radii."""
    thing = SceneObject(shape, "red", "large", state=state, rotation=turn)
    mask, axis = masks(Scene((thing,)), 32)[0], ((np.arange(32) + 0.5) / 32 - 0.5) / thing.radius
    return float(mask.sum(0) @ axis / mask.sum()), float(mask.sum(1) @ axis / mask.sum())


def _merged(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """One object where two were seen."""
    doubtful = _doubtful(easel, row, stand, _least(easel, row, stand))
    for i, j in itertools.permutations(doubtful, 2):
        one, two = stand.draft.things[i], stand.draft.things[j]
        if np.hypot(one.x - two.x, one.y - two.y) < one.radius + two.radius:
            less = easel.draw([(row, _without(stand.draft, stand.draft.slots[j]))])
            k = i - (j < i)
            yield from _found_anew(easel, row, [*less, *_elsewhere(easel, row, less[0], k)], k)


def _added(easel: Easel, row: int, stand: Tried) -> list[Tried]:
    """An object more, where most is unexplained."""
    left = _left(easel, row, stand)
    x, y = _peak(left, len(left) // 8)
    box, i = _box(x, y, 1 / 8, len(left)), len(stand.draft.things)
    unexplained = (left[box].mean() - np.median(left)) / _variance(easel.wanted[row][box])
    if i == MAX_OBJECTS or unexplained < _least(easel, row, stand):
        return []
    made = [draft for more in _with_one_at(stand.draft, x, y) for draft in _surfaced(more, i)]
    guesses = [one for one in easel.best(row, made, 3, i) if one.error < ADDED * stand.error]
    found = _found_anew(easel, row, guesses, i) if guesses else []
    return [one for one in found if one.error < CLEARED * stand.error]


def _with_one_at(draft: Draft, x: float, y: float) -> list[Draft]:
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


def _relit(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """Another style, with everything about the most doubtful object's surface seen in it."""
    for i in _doubtful(easel, row, stand, _least(easel, row, stand))[:1]:
        styles = [_scened(stand.draft, style=style) for style in STYLES]
        yield from easel.best(row, [draft for styled in styles for draft in _surfaced(styled, i)], 3)


def _without_hidden(easel: Easel, row: int, stand: Tried) -> Tried:
    """What makes no difference is not there."""
    for slot in stand.draft.slots if len(stand.draft.slots) > 1 else ():
        (less,) = easel.draw([(row, _without(stand.draft, slot))])
        stand = less if less.error < stand.error + 1e-3 else stand
    return stand
