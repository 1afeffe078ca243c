"""Where drafts are drawn and compared with their images, and their places fitted by least squares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from showtell.data.drafts import Draft, moved, shifted
from showtell.world import draw

EXACT = 0.05  # grey levels; a drawing as close as that is the image
_FIT = (0.5, 0.25, 0.1, 0.1)  # pixels by which objects are moved to see what that changes
BATCH = 64  # drawings that stay in cache


@dataclass(frozen=True, eq=False)
class Tried:
    """A draft that was drawn: the root mean squared difference to its image, in grey levels, and the drawing."""

    draft: Draft
    error: float
    shown: np.ndarray


class Easel:
    """Where drafts are drawn and compared with their images, uint8 (n, h, w, 3)."""

    def __init__(self, images: np.ndarray) -> None:
        self.wanted = images.astype(np.float32)

    def draw(self, made: Sequence[tuple[int, Draft]]) -> list[Tried]:
        """Each draft drawn for the image of its number."""
        tried: list[Tried] = []
        for start in range(0, len(made), BATCH):
            rows, drafts = zip(*made[start : start + BATCH], strict=True)
            shown = draw([draft.scene() for draft in drafts], self.wanted.shape[1])
            difference = (shown - self.wanted[list(rows)]).reshape(len(rows), -1)
            errors = np.sqrt(np.einsum("kp,kp->k", difference, difference) / difference.shape[1])
            tried += map(Tried, drafts, errors.tolist(), map(np.copy, shown))
        return tried

    def best(self, row: int, drafts: Iterable[Draft], count: int, only: int | None = None) -> list[Tried]:
        """The `count` closest of different drafts of one image, after their places were fitted, closest first."""
        different = {draft.key(): draft for draft in drafts}.values()
        tried = sorted(self.draw([(row, draft) for draft in different]), key=error_of)[:count]
        return sorted(self.fit([(row, one) for one in tried], only), key=error_of)

    def fit(self, stands: Sequence[tuple[int, Tried]], only: int | None = None) -> list[Tried]:
        """Every draft with its objects (or `only` the one) where they fit best, by the Gauss-Newton method: the drawing
        as a linear function of all places, from drawings with one object moved a little, solved by least squares."""
        fitted, moving = [one for _, one in stands], set(range(len(stands)))
        for step in _FIT:
            going = [(k, stands[k][0]) for k in sorted(moving) if fitted[k].error > EXACT]
            ways = self._ways([(row, fitted[k]) for k, row in going], step, only)
            nearer = [
                (k, row, shifted(fitted[k].draft, share * way))
                for (k, row), way in zip(going, ways, strict=True)
                for share in (1.0, 0.4)
            ]
            here = {(k, fitted[k].draft.key()) for k, _ in going}
            made = list({key: one for one in nearer if (key := (one[0], one[2].key())) not in here}.values())
            moving = set()
            for (k, *_), one in zip(made, self.draw([(row, draft) for _, row, draft in made]), strict=True):
                if one.error < fitted[k].error - 1e-3:
                    fitted[k] = one
                    moving.add(k)
        return fitted

    def _ways(self, stands: Sequence[tuple[int, Tried]], step: float, only: int | None) -> list[np.ndarray]:
        """(objects, 2) pixels by which each draft's objects should move, at most 1.5 along each axis."""
        made, counts = [], []
        for row, one in stands:
            movers = range(len(one.draft.things)) if only is None else (only,)
            made += [(row, moved(one.draft, j, dx, dy)) for j in movers for dx, dy in ((step, 0.0), (0.0, step))]
            counts.append(2 * len(movers))
        shown, ways = [one.shown for one in self.draw(made)], []
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


def error_of(one: Tried) -> float:
    return one.error
