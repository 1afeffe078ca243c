"""The improvement of what a parser network read, by drawing it (analysis by synthesis)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from showtell.data.drafts import (
    KINDS,
    OBJECTS,
    SCENES,
    Change,
    Coordinate,
    Draft,
    Shown,
    additions,
    formed,
    forms,
    put,
    scened,
    sceneries,
    surfaced,
    swapped,
    with_one_at,
    without,
)
from showtell.data.easel import BATCH, EXACT, Easel, Tried, error_of
from showtell.world.scene import MAX_OBJECTS, SIZES, STATES, STYLES

ADDED = 0.97  # an object that the network did not report must bring the error below this share of it
BELIEVED = 0.97  # as must what the network held impossible
CLEARED = 0.7  # and an object that nothing but the difference speaks for
NEAR, FAR = 0.01, 0.9  # unexplained shares at which all is tried for an object: in a drawing, and in other pictures
SOFT = 0.1  # a picture that blurring the drawing explains by that share more was not drawn
ROUNDS = 6  # changes of one picture that take several coordinates at once


def improve(drafts: list[Draft], images: np.ndarray, sweeps: int = 2) -> None:
    """Changes each draft in place wherever its drawing comes closer to its image. images: uint8 (n, h, w, 3).

    First one coordinate at a time: places by least squares, of everything else the values that the network holds
    plausible, many images drawn together. A drawing that equals its image is right, and nothing more is tried. Then,
    image by image, what one coordinate at a time cannot reach, see `_deepen`.
    """
    for start in range(0, len(drafts), BATCH):
        part = slice(start, start + BATCH)
        _improve(drafts[part], Easel(images[part]), sweeps)


def _improve(drafts: list[Draft], easel: Easel, sweeps: int) -> None:
    stands = easel.draw(list(enumerate(drafts)))
    drawn = [{draft.key()} for draft in drafts]
    for _ in range(sweeps):
        for coordinates in (OBJECTS, SCENES):
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
        _keep_best(easel, stands, tried, drawn, ADDED if propose is additions else 1.0)


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
        best = min(best, one, key=error_of)
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
    made = [swapped(draft, i, j) for i in range(n) for j in range(i)]
    made += [without(draft, slot) for slot in draft.slots if n > 1]
    if _least(easel, row, stand) == NEAR:
        made += sceneries(draft)
    return easel.best(row, made, 2)


def _nearby(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """Another colour and texture, or one other thing about its form, of each object."""
    for i in _doubtful(easel, row, stand, _least(easel, row, stand) / 4):
        draft, thing = stand.draft, stand.draft.things[i]
        made = [formed(draft, i, *kind, thing.state, thing.size) for kind in KINDS]
        made += [formed(draft, i, thing.shape, thing.rotation, state, size) for state in STATES for size in SIZES]
        made += [put(i, shape=shape, rotation=turn)(draft) for shape, turn in KINDS]
        yield from easel.best(row, [*made, *surfaced(draft, i)], 3, i)


def _anew(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """Everything about an object."""
    for i in _doubtful(easel, row, stand, _least(easel, row, stand)):
        yield from _found_anew(easel, row, [stand, *_elsewhere(easel, row, stand, i)], i)


def _elsewhere(easel: Easel, row: int, stand: Tried, i: int) -> list[Tried]:
    """The object moved to where most is unexplained without it."""
    if len(stand.draft.things) == 1:
        return []
    (less,) = easel.draw([(row, without(stand.draft, stand.draft.slots[i]))])
    x, y = _peak(_left(easel, row, less), len(less.shown) // 8)
    return easel.draw([(row, put(i, x=x, y=y)(stand.draft))])


def _found_anew(easel: Easel, row: int, beam: list[Tried], i: int) -> list[Tried]:
    """The best looks of one object, in turn its surface and its form, from some starts."""
    for options, width, count in ((surfaced, 3, 3), (forms, 2, 6), (surfaced, 3, 3)):
        made = [draft for one in beam[:width] for draft in options(one.draft, i)]
        beam = easel.best(row, made, count, i)
        if beam[0].error < EXACT:
            break
    return beam


def _merged(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """One object where two were seen."""
    doubtful = _doubtful(easel, row, stand, _least(easel, row, stand))
    for i, j in itertools.permutations(doubtful, 2):
        one, two = stand.draft.things[i], stand.draft.things[j]
        if np.hypot(one.x - two.x, one.y - two.y) < one.radius + two.radius:
            less = easel.draw([(row, without(stand.draft, stand.draft.slots[j]))])
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
    made = [draft for more in with_one_at(stand.draft, x, y) for draft in surfaced(more, i)]
    guesses = [one for one in easel.best(row, made, 3, i) if one.error < ADDED * stand.error]
    found = _found_anew(easel, row, guesses, i) if guesses else []
    return [one for one in found if one.error < CLEARED * stand.error]


def _relit(easel: Easel, row: int, stand: Tried) -> Iterator[Tried]:
    """Another style, with everything about the most doubtful object's surface seen in it."""
    for i in _doubtful(easel, row, stand, _least(easel, row, stand))[:1]:
        styles = [scened(stand.draft, style=style) for style in STYLES]
        yield from easel.best(row, [draft for styled in styles for draft in surfaced(styled, i)], 3)


def _without_hidden(easel: Easel, row: int, stand: Tried) -> Tried:
    """What makes no difference is not there."""
    for slot in stand.draft.slots if len(stand.draft.slots) > 1 else ():
        (less,) = easel.draw([(row, without(stand.draft, slot))])
        stand = less if less.error < stand.error + 1e-3 else stand
    return stand
