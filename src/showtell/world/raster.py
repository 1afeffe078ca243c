"""From objects to pixels on local crops: what still pictures, masks and clips share.

Everything visible is a table of drawables, one row per object or shadow. Rows of one crop size are rasterised
together: coordinates, signed distance per shape, coverage `clip(0.5 - distance * size, 0, 1)`, texture, rim.
No number depends on the other rows, so a batch of one is bit-equal to a row of a batch of many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from showtell.world.scene import COLOURS, SHAPES, STATES, STEP, TEXTURES, Scene, SceneObject
from showtell.world.shapes import DISTANCE

Floats = NDArray[Any]  # float32: everything per pixel
Table = NDArray[Any]  # float64: everything per object

RGB = {
    "red": (222, 36, 40), "orange": (246, 134, 28), "yellow": (250, 218, 40), "green": (36, 156, 66),
    "cyan": (40, 206, 216), "blue": (38, 78, 222), "purple": (136, 48, 188), "pink": (250, 138, 192),
    "brown": (126, 76, 36), "black": (26, 26, 28), "white": (250, 250, 250), "grey": (132, 135, 140),
}  # fmt: skip
"""Colour -> the red, green and blue of its solid surface, 0 to 255."""

RIM = 0.012  # width of an object's rim, in canvas units (at scale 1, like the lengths below)
PERIOD = 0.094  # of every texture: two fit into the smallest object
_STROKE = 0.036  # width of the outline style's stroke
_WOBBLE = 0.035  # how far watercolour's edges stray, in radii: a circle must not look like a hexagon
_SHADOW = (0.036, 0.04, 0.38)  # offset, softness, opacity
_SHADE = 46.0  # brightness that light adds on one side and takes on the other, of 255
_TOWARDS = {"left": STEP["left"], "right": STEP["right"], "above": STEP["up"], "below": STEP["down"]}


def _palette() -> Table:
    """(colours, 9): surface, second tone of textures and rim of each colour."""
    rows = []
    for name in COLOURS:
        surface = np.array(RGB[name], float)
        bright = surface @ (0.3, 0.59, 0.11)
        tone = 0.5 * surface if bright > 125 else surface + 0.62 * (255 - surface)
        rim = (0.5 if bright > 200 else 0.62) * surface if bright > 40 else surface + 0.36 * (255 - surface)
        rows.append(np.concatenate([surface, tone, rim]))
    return np.array(rows)


PALETTE = _palette()
_BLACK = (0.0,) * 9
_TONES = [tuple(row) for row in PALETTE.tolist()]
_SHAPE, _COLOUR = ({name: i for i, name in enumerate(names)} for names in (SHAPES, COLOURS))
_TEXTURE, _STATE = ({name: i for i, name in enumerate(names)} for names in (TEXTURES, STATES))
_HAND = {"outline": 1, "watercolour": 2}  # styles that change how an object is drawn

# Columns of a table of drawables, far before near within a picture.
(
    PICTURE, OWNER, KIND, X, Y, EXTENT, SCALE, ANGLE,
    TEXTURE, STATE, ALPHA, SOFT, HAND, LIGHT_X, LIGHT_Y, SHADOW,
) = range(16)  # fmt: skip
TONES = slice(16, 25)
Row = tuple[float, ...]


class View(NamedTuple):
    """Where the camera looks: how far the picture's middle is from the canvas's, and the magnification."""

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0


_STILL = View()


class Pose(NamedTuple):
    """An object at one moment. `scale` is relative to its size at rest, `angle` in degrees clockwise."""

    x: float
    y: float
    scale: float
    angle: float
    alpha: float
    tones: tuple[float, ...]  # surface, second tone and rim, a row of `PALETTE`


class Crop(NamedTuple):
    """One drawable on its part of the canvas; `colour` is premultiplied by `coverage`."""

    rows: slice
    columns: slice
    coverage: Floats  # (h, w) in [0, 1]
    colour: Floats  # (3, h, w) in [0, 255]
    distance: Floats  # (h, w) signed, in canvas units


# --- drawables


def stacking(scene: Scene) -> list[int]:
    """Indices into `scene.objects` from far to near; of equal depths the one listed later is nearer."""
    return sorted(range(len(scene.objects)), key=lambda i: -scene.objects[i].depth)


def at_rest(thing: SceneObject) -> Pose:
    return Pose(thing.x, thing.y, 1.0, thing.rotation, 1.0, _TONES[_COLOUR[thing.colour]])


def drawables(moments: Iterable[tuple[int, Scene, Sequence[Pose] | None]], views: Sequence[View] = ()) -> Table:
    """(k, 25) float64: the shadows and objects of each (picture number, scene, poses), from far to near.

    poses: one per object, None for at rest. views: what the camera sees in each picture, default all.
    """
    rows: list[Row] = []
    for picture, scene, poses in moments:
        things = scene.objects
        view = views[picture] if views else None
        hand = _HAND.get(scene.style, 0)
        soft = 0.026 if hand == 2 else 0.0
        light = _TOWARDS.get(scene.light)
        for i in stacking(scene) if len(things) > 1 else (0,):
            thing = things[i]
            x, y, scale, angle, alpha, tones = poses[i] if poses else at_rest(thing)
            if view is not None and view != _STILL:
                x, y = 0.5 + (x - 0.5 - view.x) * view.zoom, 0.5 + (y - 0.5 - view.y) * view.zoom
                scale *= view.zoom
            radius = thing.radius * scale
            form = (scale, angle, _TEXTURE[thing.texture], _STATE[thing.state])
            if light:
                lx, ly = light
                offset, blur, opacity = _SHADOW
                dx, dy = x - lx * offset * scale, y - ly * offset * scale
                rows.append((picture, i, _SHAPE[thing.shape], dx, dy, radius, *form, alpha * opacity,
                             blur * scale, 0, 0, 0, 1, *_BLACK))  # fmt: skip
            else:
                lx = ly = 0.0
            rows.append((picture, i, _SHAPE[thing.shape], x, y, radius, *form, alpha,
                         soft * scale, hand, lx, ly, 0, *tones))  # fmt: skip
    return np.array(rows, np.float64).reshape(len(rows), 25)


# --- rasterising


def rasterise(table: Table, size: int) -> list[Crop | None]:
    """Every drawable's crop, in the table's order; None where it lies outside the canvas."""
    crops: list[Crop | None] = [None] * len(table)
    sides = _sides(table, size)
    order = np.lexsort((table[:, KIND], sides))
    cuts = np.flatnonzero(np.diff(sides[order])) + 1
    for members in np.split(order, cuts) if len(order) else []:
        _rasterise(table[members], size, int(sides[members[0]]), members.tolist(), crops)
    return crops


def _sides(table: Table, size: int) -> NDArray[np.int64]:
    """Width in pixels of the square crop that holds each drawable, rounded up to few distinct values."""
    turned = np.where(table[:, ANGLE] % 90 == 0, 1.0, math.sqrt(2))
    stray = np.where(table[:, HAND] == 2, 2 * _WOBBLE, 0.0) * table[:, EXTENT]
    reach = table[:, EXTENT] * turned + np.maximum(table[:, SOFT] / 2, 0.5 / size) + stray
    sides = np.ceil(2 * reach * size + 1).astype(np.int64)
    step = np.maximum(4, 2 ** np.floor(np.log2(sides)).astype(np.int64) // 4)
    return -(-sides // step) * step


def _rasterise(table: Table, size: int, side: int, members: list[int], crops: list[Crop | None]) -> None:
    """Rasterises rows of one crop width, sorted by shape, into `crops` at `members`."""
    left, top = (np.round(table[:, axis] * size - side / 2) for axis in (X, Y))
    radius, scale = _column(table[:, EXTENT]), _column(table[:, SCALE])
    u = _offsets(left, table[:, X], table[:, EXTENT], side, size)
    v = _offsets(top, table[:, Y], table[:, EXTENT], side, size)
    du, dv = _wobble(table, left, top, side, size)
    x, y = _turn(table[:, ANGLE], u, v, du, dv)
    distance = _distances(table, x, y)
    distance *= radius
    _cut(table, distance, x, y, radius, scale)
    sharp = _column(1 / np.maximum(1 / size, table[:, SOFT]))
    coverage = np.clip(0.5 - distance * sharp, 0, 1)
    _fade(table, coverage)
    colour = _colour(table, distance, coverage, x, y, sharp)
    _shade(table, colour, coverage, u, v)
    x0, y0 = left.astype(int).tolist(), top.astype(int).tolist()
    for i, member in enumerate(members):
        a, b = x0[i], y0[i]
        if a >= 0 and b >= 0 and a + side <= size and b + side <= size:
            rows, columns = slice(b, b + side), slice(a, a + side)
            crops[member] = Crop(rows, columns, coverage[i], colour[i], distance[i])
        elif a < size and b < size and a + side > 0 and b + side > 0:
            rows, columns = slice(max(b, 0), min(b + side, size)), slice(max(a, 0), min(a + side, size))
            part = (slice(rows.start - b, rows.stop - b), slice(columns.start - a, columns.stop - a))
            crops[member] = Crop(rows, columns, coverage[i][part], colour[i][:, *part], distance[i][part])


def _column(values: Table) -> Floats:
    return values.astype(np.float32)[:, None, None]


def _offsets(start: Table, centre: Table, radius: Table, side: int, size: int) -> Floats:
    """(k, side) distances of the pixel centres from the object's centre along one axis, in radii."""
    first = (start + 0.5 - centre * size).astype(np.float32)
    unit = (1 / (radius * size)).astype(np.float32)
    return (first[:, None] + np.arange(side, dtype=np.float32)) * unit[:, None]


def _turn(angle: Table, u: Floats, v: Floats, du: Floats | None, dv: Floats | None) -> tuple[Floats, Floats]:
    """(k, side, side) coordinates in the object's own, unrotated frame."""
    turn = np.radians(angle)
    c, s = (np.round(f(turn), 12).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    x = (c * u)[:, None, :] + (s * v)[:, :, None]
    y = (c * v)[:, :, None] - (s * u)[:, None, :]
    if du is not None and dv is not None:
        c, s = c[:, None], s[:, None]
        x += c * du + s * dv
        y += c * dv - s * du
    return x, y


def _wobble(table: Table, left: Table, top: Table, side: int, size: int) -> tuple[Floats | None, Floats | None]:
    """How far a watercolour's coordinates stray at each pixel, in radii: a fixed smooth field."""
    wet = table[:, HAND] == 2
    if not wet.any():
        return None, None
    along = np.arange(side) + 0.5
    px, py = (2 * math.pi * (start[:, None] + along) / size for start in (left, top))
    depth = (wet * _WOBBLE)[:, None, None]

    def field(*waves: tuple[float, float, float]) -> Floats:
        down = (np.sin(fy * py + phase)[:, :, None] for _, fy, phase in waves)
        across = (np.sin(fx * px + phase)[:, None, :] for fx, _, phase in waves)
        return (depth * sum(a * b for a, b in zip(down, across))).astype(np.float32)

    return field((3.0, 4.1, 0.3), (7.3, 5.9, 1.9)), field((4.3, 2.7, 2.2), (6.1, 7.7, 0.8))


def _distances(table: Table, x: Floats, y: Floats) -> Floats:
    """(k, side, side) signed distances in radii; rows are sorted by shape, so each shape is one slice."""
    distance = np.empty_like(x)
    kinds = table[:, KIND]
    cuts = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for first, last in itertools.pairwise(cuts):
        distance[first:last] = DISTANCE[SHAPES[int(kinds[first])]](x[first:last], y[first:last])
    return distance


def _cut(table: Table, distance: Floats, x: Floats, y: Floats, radius: Floats, scale: Floats) -> None:
    """Takes the right half off what is halved, and a zigzag gap out of what is cracked."""
    half = np.flatnonzero(table[:, STATE] == 1)
    if half.size:
        distance[half] = np.maximum(distance[half], x[half] * radius[half])
    cracked = np.flatnonzero(table[:, STATE] == 2)
    if cracked.size:
        gap = 0.008 * scale[cracked] + 0.075 * radius[cracked]
        apart = _zigzag(x[cracked], y[cracked]) * radius[cracked]
        distance[cracked] = np.maximum(distance[cracked], gap - apart)


def _zigzag(x: Floats, y: Floats) -> Floats:
    """Distance, in radii, from a zigzag line that falls to the right through the origin."""
    along, across = 0.82 * x + 0.57 * y, 0.82 * y - 0.57 * x
    teeth = along * 0.75 + 0.25
    teeth = abs(teeth - np.floor(teeth) - 0.5) - 0.25  # a triangle wave in [-0.25, 0.25], of slope 0.75
    return abs(across - 1.3 * teeth) * 0.72


def _fade(table: Table, coverage: Floats) -> None:
    faint = np.flatnonzero(table[:, ALPHA] < 1)
    if faint.size:
        coverage[faint] *= _column(table[faint, ALPHA])


def _colour(table: Table, distance: Floats, coverage: Floats, x: Floats, y: Floats, sharp: Floats) -> Floats:
    """(k, 3, side, side) colour times coverage: rim, surface and texture."""
    surface, tone, rim = np.split(table[:, TONES].astype(np.float32)[:, :, None, None], 3, axis=1)
    inner = np.clip(0.5 - (distance + _column(RIM * table[:, SCALE])) * sharp, 0, 1)
    inner *= _column(table[:, ALPHA])
    colour = (surface - rim) * inner[:, None]
    colour += rim * coverage[:, None]
    core = _core(table, distance, sharp)
    if core is not None:
        pale = 0.28 * surface + 0.72 * 255
        colour += (pale - surface) * core[:, None]
    patterned = np.flatnonzero((table[:, TEXTURE] > 0) & (table[:, SHADOW] == 0))
    if patterned.size:
        second = _texture(table[patterned], x[patterned], y[patterned], sharp[patterned])
        change = (tone - surface)[patterned]
        colour[patterned] += change * (second * inner[patterned])[:, None]
        if core is not None:  # on the pale fill the pattern is a little darker than the fill
            faint = (0.45 * tone + 0.55 * surface - pale)[patterned] - change
            colour[patterned] += faint * (second * core[patterned])[:, None]
    return colour


def _core(table: Table, distance: Floats, sharp: Floats) -> Floats | None:
    """(k, side, side) coverage by the pale fill of the outline style; None where nothing has one."""
    hollow = (table[:, HAND] == 1) & (table[:, SHADOW] == 0)
    if not hollow.any():
        return None
    within = distance + _column(_STROKE * table[:, SCALE])
    return np.clip(0.5 - within * sharp, 0, 1) * _column(hollow * table[:, ALPHA])


def _texture(table: Table, x: Floats, y: Floats, sharp: Floats) -> Floats:
    """Share of the second tone at each pixel, in [0, 1]; moves, turns and grows with the object."""
    unit = table[:, SCALE] * PERIOD
    periods = _column(table[:, EXTENT] / unit)
    pixels = sharp * _column(unit)  # per period
    share = np.empty_like(x)
    for kind, pattern in ((1, _stripes), (2, _dots), (3, _checks)):
        rows = np.flatnonzero(table[:, TEXTURE] == kind)
        if rows.size:
            share[rows] = pattern(x[rows] * periods[rows], y[rows] * periods[rows], pixels[rows])
    return share


def _stripes(x: Floats, y: Floats, pixels: Floats) -> Floats:
    across = (x + y) * math.sqrt(0.5)
    return np.clip(0.5 + (0.25 - abs(across - np.floor(across) - 0.5)) * pixels, 0, 1)


def _dots(x: Floats, y: Floats, pixels: Floats) -> Floats:
    x, y = x - np.round(x), y - np.round(y)
    return np.clip(0.5 - (np.sqrt(x * x + y * y) - 0.3) * pixels, 0, 1)


def _checks(x: Floats, y: Floats, pixels: Floats) -> Floats:
    x, y = (np.clip((0.25 - abs(a - np.floor(a) - 0.5)) * pixels, -0.5, 0.5) for a in (x, y))
    return 0.5 - 2 * x * y


def _shade(table: Table, colour: Floats, coverage: Floats, u: Floats, v: Floats) -> None:
    """Brightens the side that faces the light and darkens the other."""
    lit = np.flatnonzero((table[:, LIGHT_X] != 0) | (table[:, LIGHT_Y] != 0))
    if lit.size:
        lx, ly = ((_SHADE * table[lit, c]).astype(np.float32)[:, None] for c in (LIGHT_X, LIGHT_Y))
        light = (lx * u[lit])[:, None, :] + (ly * v[lit])[:, :, None]
        full = coverage[lit][:, None]
        colour[lit] = np.clip(colour[lit] + light[:, None] * full, 0, 255 * full)


def over(canvas: Floats, crop: Crop) -> None:
    """Composites the crop over a (3, h, w) canvas in place."""
    under = canvas[:, crop.rows, crop.columns]
    under *= 1 - crop.coverage
    under += crop.colour
