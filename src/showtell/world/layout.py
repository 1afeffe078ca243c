"""Where things go: positions for groups of objects, so that exactly the wanted relations are true of them.

A particle search: many partial layouts grow together, one object at a time; those that break a rule are
replaced by copies of those that do not. It is exact (what it returns has been checked by `Scene.relations`)
and takes well under a millisecond for ordinary scenes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from showtell.world.scene import MAX_OBJECTS, Relation, Scene, SceneError, SceneObject

DIRECTIONS = {"left of": (0, 1.0), "right of": (0, -1.0), "above": (1, 1.0), "below": (1, -1.0)}
"""Relation of a to b -> the axis, 0 of x and 1 of y, and the sign of b's place less a's on it."""
Floats = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Level:
    """How hard to try: particles, separation (in sums of radii), clearness of directions, free border."""

    particles: int
    separation: float
    ratio: float
    gap: float
    border: float


_LEVELS = (
    _Level(48, 1.08, 1.5, 0.08, 1.0),
    _Level(128, 1.05, 1.4, 0.07, 1.0),
    _Level(512, 1.0, 1.3, 0.065, 1.0),
    _Level(2048, 0.92, 1.27, 0.062, 0.95),
    _Level(8192, 0.87, 1.26, 0.061, 0.9),
)


def place(
    groups: Sequence[Sequence[SceneObject]],
    relations: Sequence[Relation] | None,
    rng: random.Random,
    floor: float = 1.0,
) -> tuple[SceneObject, ...]:
    """The objects of all groups in order, with new x, y and depth.

    groups: objects whose positions are ignored; neighbouring groups differ in their facts. relations: what
    `Scene.relations` shall be, exactly; None leaves them to chance. Objects overlap only where one is in
    front of, behind or inside the other. floor: the largest y in use (0.84 leaves room for a written word).
    The same rng state gives the same layout. SceneError where nothing fits.
    """
    objects = [o for group in groups for o in group]
    if not 1 <= len(objects) <= MAX_OBJECTS:
        raise SceneError(f"a scene has 1 to {MAX_OBJECTS} objects, not {len(objects)}")
    depths = _depths(groups, relations or ())
    draw = np.random.default_rng(rng.getrandbits(64))
    for level in _LEVELS:
        for xy in _search(groups, relations, draw, level, floor)[:6]:
            placed = tuple(
                replace(o, x=round(float(p[0]), 4), y=round(float(p[1]), 4), depth=d)
                for o, p, d in zip(objects, xy, depths, strict=True)
            )
            if relations is None or Scene(placed).relations == tuple(relations):
                return placed
    raise SceneError("these objects do not fit on one canvas in that arrangement; use fewer or smaller ones")


def _depths(groups: Sequence[Sequence[SceneObject]], relations: Sequence[Relation]) -> list[int]:
    """0 for the nearest; behind something is one deeper. Relations join neighbours only: no cycles."""
    level = [0] * len(groups)
    for _ in groups:
        for r in relations:
            if r.kind in ("in front of", "inside"):
                level[r.objects[0]] = max(level[r.objects[0]], level[r.subject] + 1)
            elif r.kind == "behind":
                level[r.subject] = max(level[r.subject], level[r.objects[0]] + 1)
    return [level[i] for i, group in enumerate(groups) for _ in group]


def _search(
    groups: Sequence[Sequence[SceneObject]],
    relations: Sequence[Relation] | None,
    draw: np.random.Generator,
    level: _Level,
    floor: float,
) -> Floats:
    """Layouts (found, objects, 2) that satisfy separation and pairwise relations; found may be 0."""
    count = level.particles
    radii = [o.radius for group in groups for o in group]
    starts = np.cumsum([0, *(len(g) for g in groups)])
    members = [list(range(starts[i], starts[i + 1])) for i in range(len(groups))]
    between = relations is not None and any(r.kind == "between" for r in relations)
    kinds = {r.subject: r.kind for r in relations or ()}
    layouts = np.zeros((count, len(radii), 2))
    done: list[int] = []
    for g in [1, 2, 0, *range(3, len(groups))] if between else range(len(groups)):
        known = g - 1 if relations is not None and g > (2 if between else 0) else -1
        kind = kinds.get(known, "") if known >= 0 else ""
        single = known >= 0 and len(members[g]) == len(members[known]) == 1
        for k, j in enumerate(members[g]):
            r = radii[j]
            near = layouts[:, members[known][0]] if known >= 0 else layouts[:, 0]
            if between and g == 0:
                new = _middle(layouts[:, 1], layouts[:, 2], draw)
            elif kind in ("in front of", "behind"):
                new = near + _around(draw, count, 0.45 * (r + radii[j - 1]), 0.66 * (r + radii[j - 1]))
            elif kind == "inside":
                new = near + draw.uniform(-0.02, 0.02, (count, 2))
            elif single:
                new = _beside(near, kind, r, draw, level, floor)
            else:
                new = draw.uniform(r, (1 - r, floor - r), (count, 2))
            edge = r * level.border
            fine = ((new >= edge) & (new <= (1 - edge, floor - edge))).all(1)
            apart = [i for i in done if not (kind in ("in front of", "behind", "inside") and i in members[known])]
            if apart:
                reach = level.separation * (np.array([radii[i] for i in apart]) + r)
                offset = layouts[:, apart] - new[:, None]
                fine &= (np.einsum("kic,kic->ki", offset, offset) >= reach * reach).all(1)
            if between and g == 2:
                offset = new - layouts[:, 1]
                fine &= np.einsum("kc,kc->k", offset, offset) > 0.17
            if known >= 0 and kind not in ("in front of", "behind", "inside"):
                before = layouts[:, members[known]]
                group = np.concatenate([layouts[:, members[g][:k]], new[:, None]], 1)
                last = j == members[g][-1]
                if kind:
                    fine &= _clear(kind, before, group, level.ratio if last else 0.0, level.gap)
                elif last:
                    for other in DIRECTIONS:
                        fine &= ~_clear(other, before, group, 1.22, 0.055)
            alive = np.flatnonzero(fine)
            if not len(alive):
                return layouts[:0]
            if len(alive) < count:
                alive = alive[draw.integers(len(alive), size=count)]
                layouts, new = layouts[alive], new[alive]
            layouts[:, j] = new
            done.append(j)
    return layouts


def _clear(kind: str, a: Floats, b: Floats, ratio: float, gap: float) -> Floats:
    """(particles,) whether a (particles, m, 2) is `kind` b (particles, n, 2), as a `Scene` sees it."""
    axis, sign = DIRECTIONS[kind]
    mean = b.mean(1) - a.mean(1)
    along, across = sign * mean[:, axis], np.abs(mean[:, 1 - axis])
    space = (b[..., axis].min(1) - a[..., axis].max(1)) if sign > 0 else (a[..., axis].min(1) - b[..., axis].max(1))
    return (space > gap) & (along > ratio * across)


def _beside(near: Floats, kind: str, radius: float, draw: np.random.Generator, level: _Level, floor: float) -> Floats:
    """A proposal for b where near is `kind` b; with no kind, on a diagonal, where no direction is clear."""
    count = len(near)
    new = np.empty_like(near)
    axis, sign = DIRECTIONS.get(kind, (0, 1.0))
    if kind:
        far = (floor if axis else 1.0) - radius if sign > 0 else radius
        first = near[:, axis] + sign * level.gap
        new[:, axis] = first + draw.random(count) * (far - first)
        reach = np.abs(new[:, axis] - near[:, axis]) / level.ratio
    else:
        new[:, axis] = draw.uniform(radius, 1 - radius, count)
        reach = np.abs(new[:, axis] - near[:, axis]) * draw.uniform(0.84, 1.19, count)
        new[:, 1 - axis] = near[:, 1 - axis] + reach * draw.choice((-1.0, 1.0), count)
        return new
    new[:, 1 - axis] = near[:, 1 - axis] + draw.uniform(-1, 1, count) * reach
    return new


def _around(draw: np.random.Generator, count: int, least: float, most: float) -> Floats:
    angle = draw.uniform(0, 2 * np.pi, count)
    length = draw.uniform(least, most, count)
    return np.stack([np.cos(angle) * length, np.sin(angle) * length], 1)


def _middle(b: Floats, c: Floats, draw: np.random.Generator) -> Floats:
    """Close to the middle of the segment b-c, within what "between" allows."""
    along = draw.uniform(0.4, 0.6, (len(b), 1))
    across = draw.uniform(-0.07, 0.07, (len(b), 1))
    way = c - b
    return b + along * way + across * way[:, ::-1] * np.array([-1.0, 1.0])
