"""Signed distance functions of the world's shapes.

Every function maps coordinates in units of the object's radius (x to the right, y downwards, origin at the
object's centre, rotation undone) to the distance from the outline: negative inside, zero on it, positive
outside. Distances are exact near the outline, which is all that anti-aliasing, rims and outlines need. The
formulae are standard, see https://iquilezles.org/articles/distfunctions2d. Only +, *, sqrt, min, max and
abs are used: they round the same way whatever the batch, so that a batch of one is bit-equal to a row of a
batch of many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from showtell.world.scene import HOLLOW

Array = NDArray[Any]  # float32

_DIAMOND = 0.64  # half width / half height
_OVAL = 0.6  # half height / half width
_STAR = 0.42  # inner radius / outer radius
_ARM = 0.34  # half width of the cross's arms
_SHAFT = 0.34  # half width of the arrow's shaft
_HEAD, _BARB = 0.9, 0.06  # half width of the arrow's head, and the y at which it ends
_BULB = 0.64  # radius of the drop's round part
_BITE, _BITE_X, _SHIFT = 0.80, 0.48, 0.195  # crescent: the cut-off disc; shift that centres the rest
_PETAL, _PETAL_R, _CORE = 0.61, 0.39, 0.58  # distance and radius of the petals; the disc that joins them
_HEART = math.sqrt(2) / 4 + 0.25  # half width of the heart below, in its own units
_HEART_Y = (0.75 + math.sqrt(2) / 4) / 2  # and its middle


def _length(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y)


def _circle(x: Array, y: Array) -> Array:
    return _length(x, y) - 1


def _square(x: Array, y: Array) -> Array:
    return np.maximum(abs(x), abs(y)) - 1


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum((2 * abs(x) - y - 1) * (1 / math.sqrt(5)), y - 1)


def _diamond(x: Array, y: Array) -> Array:
    return (abs(x) + _DIAMOND * abs(y) - _DIAMOND) * (1 / math.hypot(1, _DIAMOND))


def _pentagon(x: Array, y: Array) -> Array:
    x = abs(x)
    upper = math.cos(math.radians(54)) * x - math.sin(math.radians(54)) * y
    lower = math.cos(math.radians(18)) * x + math.sin(math.radians(18)) * y
    return np.maximum(np.maximum(upper, lower), y) - math.cos(math.radians(36))


def _hexagon(x: Array, y: Array) -> Array:
    side = math.sqrt(3) / 2
    y = abs(y)
    return np.maximum(side * abs(x) + 0.5 * y, y) - side


def _star(x: Array, y: Array) -> Array:
    c, s = math.cos(math.radians(36)), math.sin(math.radians(36))
    x, y = abs(x), -y
    fold = 2 * np.maximum(c * x - s * y, 0)
    x, y = x - fold * c, y + fold * s
    fold = 2 * np.maximum(-c * x - s * y, 0)
    x, y = abs(x + fold * c), y + fold * s
    edge_x, edge_y = _STAR * s, _STAR * c - 1
    return ((y - 1) * edge_x - x * edge_y) * (1 / math.hypot(edge_x, edge_y))


def _cross(x: Array, y: Array) -> Array:
    x, y = abs(x), abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - _ARM)


def _heart(x: Array, y: Array) -> Array:
    scale = _HEART
    x, y = abs(x) * scale, _HEART_Y - y * scale
    lobe = _length(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    along = 0.5 * np.maximum(x + y, 0)
    to_notch = x * x + (y - 1) * (y - 1)
    to_edge = (x - along) * (x - along) + (y - along) * (y - along)
    below = np.copysign(np.sqrt(np.minimum(to_notch, to_edge)), x - y)
    return np.where(x + y > 1, lobe, below) * (1 / scale)


def _crescent(x: Array, y: Array) -> Array:
    x = x - _SHIFT
    return np.maximum(_length(x, y) - 1, _BITE - _length(x - _BITE_X, y))


def _arrow(x: Array, y: Array) -> Array:
    x = abs(x)
    side = ((1 + _BARB) * x - _HEAD * (y + 1)) * (1 / math.hypot(1 + _BARB, _HEAD))
    shaft = np.maximum(np.maximum(x - _SHAFT, y - 1), -0.5 - y)
    return np.minimum(np.maximum(side, y - _BARB), shaft)


def _drop(x: Array, y: Array) -> Array:
    s = _BULB / (2 - _BULB)
    c = math.sqrt(1 - s * s)
    x, below = abs(x), y + 1
    bulb = _length(x, y - (1 - _BULB)) - _BULB
    return np.where(s * x + c * below > c * (2 - _BULB), bulb, c * x - s * below)


def _ring(x: Array, y: Array) -> Array:
    hole = HOLLOW["ring"]
    return abs(_length(x, y) - (1 + hole) / 2) - (1 - hole) / 2


def _frame(x: Array, y: Array) -> Array:
    hole = HOLLOW["frame"]
    return abs(np.maximum(abs(x), abs(y)) - (1 + hole) / 2) - (1 - hole) / 2


def _oval(x: Array, y: Array) -> Array:
    # Exact to first order at the outline: (f - 1) / |grad f| for f the ellipse's norm.
    norm = np.sqrt(x * x + (y * y) * (1 / _OVAL**2))
    slope = np.sqrt(x * x + (y * y) * (1 / _OVAL**4))
    return norm * (norm - 1) / np.maximum(slope, 1e-6) - 1e-6


def _flower(x: Array, y: Array) -> Array:
    x = abs(x)
    nearest = x * x + (y + _PETAL) * (y + _PETAL)
    for degrees in (18, -54):
        px, py = _PETAL * math.cos(math.radians(degrees)), -_PETAL * math.sin(math.radians(degrees))
        nearest = np.minimum(nearest, (x - px) * (x - px) + (y - py) * (y - py))
    return np.minimum(np.sqrt(nearest) - _PETAL_R, _length(x, y) - _CORE)


DISTANCE: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "diamond": _diamond,
    "pentagon": _pentagon, "hexagon": _hexagon, "star": _star, "cross": _cross,
    "heart": _heart, "crescent": _crescent, "arrow": _arrow, "drop": _drop,
    "ring": _ring, "frame": _frame, "oval": _oval, "flower": _flower,
}  # fmt: skip
"""Shape -> signed distance in units of the radius, elementwise over float32 arrays of one shape."""


def outlines(shape: str) -> tuple[Array, ...]:
    """A shape's closed outlines, polygons (points, 2) in radii; rings and frames have their hole second."""
    return _OUTLINES[shape]


def _arc(x: float, y: float, radius: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Points from `start` to `stop` degrees clockwise, 0 pointing right; 3 degrees apart or less."""
    steps = max(2, math.ceil(abs(stop - start) / 3) + 1)
    angles = (math.radians(start + (stop - start) * i / (steps - 1)) for i in range(steps))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def _regular(count: int, start: float, inner: float = 0.0) -> list[tuple[float, float]]:
    """A regular polygon's corners; with `inner`, a star's."""
    radii = (1.0, inner) if inner else (1.0,)
    turns = [(r, math.radians(start + 360 * (i + j / 2) / count)) for i in range(count) for j, r in enumerate(radii)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in turns]


def _mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The whole outline from its right half, given from top to bottom."""
    return right + [(-x, y) for x, y in reversed(right)]


def _heart_points() -> list[tuple[float, float]]:
    right = [*_arc(0.25, -0.75, math.sqrt(2) / 4, -135, 45), (0.0, 0.0)]
    return _mirrored([(x / _HEART, (y + _HEART_Y) / _HEART) for x, y in right])


def _drop_points() -> list[tuple[float, float]]:
    tangent = -math.degrees(math.asin(_BULB / (2 - _BULB)))
    return _mirrored([(0.0, -1.0), *_arc(0, 1 - _BULB, _BULB, tangent, 90)])


def _crescent_points() -> list[tuple[float, float]]:
    tip_x = (1 - _BITE**2 + _BITE_X**2) / (2 * _BITE_X)
    tip_y = math.sqrt(1 - tip_x**2)
    outer, inner = (math.degrees(math.atan2(tip_y, tip_x - x)) for x in (0.0, _BITE_X))
    return _arc(_SHIFT, 0, 1, outer, 360 - outer) + _arc(_SHIFT + _BITE_X, 0, _BITE, 360 - inner, inner)[1:-1]


def _flower_points() -> list[tuple[float, float]]:
    half = math.radians(36)  # neighbouring petals meet on the bisector of their axes
    meet = _PETAL * math.cos(half) + math.sqrt(_PETAL_R**2 - (_PETAL * math.sin(half)) ** 2)
    reach = math.degrees(math.atan2(meet * math.sin(half), meet * math.cos(half) - _PETAL))
    petal = np.array(_arc(_PETAL, 0, _PETAL_R, -reach, reach))
    return [tuple(p) for i in range(5) for p in petal @ turned(72 * i - 90).T]


def turned(degrees: float) -> Array:
    """(2, 2) float64 matrix that turns (x, y) clockwise as seen on the canvas; exact for quarter turns."""
    c, s = (round(f(math.radians(degrees)), 12) for f in (math.cos, math.sin))
    return np.array([[c, -s], [s, c]])


def clip_left(polygon: Array) -> Array:
    """The part of a polygon (points, 2) with x <= 0: the outline of the halved shape."""
    kept = []
    for (x, y), (u, v) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if x <= 0:
            kept.append((x, y))
        if x * u < 0:
            kept.append((0.0, y + (v - y) * x / (x - u)))
    return np.array(kept).reshape(-1, 2)


_BOX = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
_ROUND = _arc(0, 0, 1, 0, 357)
_POINTS: dict[str, list[list[tuple[float, float]]]] = {
    "circle": [_ROUND],
    "square": [_BOX],
    "triangle": [[(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]],
    "diamond": [[(0.0, -1.0), (_DIAMOND, 0.0), (0.0, 1.0), (-_DIAMOND, 0.0)]],
    "pentagon": [_regular(5, -90)],
    "hexagon": [_regular(6, 0)],
    "star": [_regular(5, -90, _STAR)],
    "cross": [_mirrored([(_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM), (_ARM, 1.0)])],
    "heart": [_heart_points()],
    "crescent": [_crescent_points()],
    "arrow": [_mirrored([(0.0, -1.0), (_HEAD, _BARB), (_SHAFT, _BARB), (_SHAFT, 1.0)])],
    "drop": [_drop_points()],
    "ring": [_ROUND, [(HOLLOW["ring"] * x, HOLLOW["ring"] * y) for x, y in _ROUND]],
    "frame": [_BOX, [(HOLLOW["frame"] * x, HOLLOW["frame"] * y) for x, y in _BOX]],
    "oval": [[(x, _OVAL * y) for x, y in _ROUND]],
    "flower": [_flower_points()],
}
_OUTLINES = {shape: tuple(np.array(part) for part in parts) for shape, parts in _POINTS.items()}
