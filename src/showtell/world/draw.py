"""From a `Scene` to its picture, masks, boxes, depth, edges and layers, at any resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from showtell.world.glyphs import area_weights, written
from showtell.world.raster import (
    OWNER,
    PICTURE,
    SHADOW,
    Floats,
    Table,
    View,
    drawables,
    over,
    rasterise,
    stacking,
)
from showtell.world.scene import MAX_OBJECTS, Scene, SceneError
from showtell.world.shapes import clip_left, outlines, turned

_CELLS = 32  # the mosaic's cells across
CHUNK = 128 * 64 * 64  # pixels worked on at once: many share each call, yet they stay in cache
_STILL = View()


class Picture(NamedTuple):
    """What one image shows besides its drawables."""

    background: str
    style: str
    word: str
    view: View


def draw(scenes: Scene | Sequence[Scene], size: int = 64) -> NDArray[np.uint8]:
    """Pictures of the scenes, (n, size, size, 3) uint8; n is 1 for a single scene. No motion, no camera.

    Raises SceneError unless 16 <= size <= 2048.
    """
    many = [scenes] if isinstance(scenes, Scene) else scenes
    check_size(size)
    out = np.empty((len(many), size, size, 3), np.uint8)
    step = max(1, CHUNK // (size * size))
    for first in range(0, len(many), step):
        chunk = many[first : first + step]
        pictures = [Picture(s.background, s.style, s.word, _STILL) for s in chunk]
        table = drawables((i, s, None) for i, s in enumerate(chunk))
        out[first : first + step] = paint(pictures, table, size)
    return out


def check_size(size: int) -> None:
    if not 16 <= size <= 2048:
        raise SceneError(f"size {size} is out of range; use 16 to 2048 pixels")


# --- pictures


def paint(pictures: Sequence[Picture], table: Table, size: int) -> NDArray[np.uint8]:
    """(n, size, size, 3) uint8: the table's drawables on the pictures' backgrounds, in their styles."""
    mosaic = [i for i, p in enumerate(pictures) if p.style == "mosaic"]
    canvas = _compose(pictures, table, size, range(len(pictures)))
    if mosaic:
        canvas[mosaic] = _mosaic(_compose([pictures[i] for i in mosaic], table, 2 * _CELLS, mosaic), size)
    write(pictures, canvas)
    for style, finish in _FINISH.items():
        rows = [i for i, p in enumerate(pictures) if p.style == style]
        if rows:
            canvas[rows] = finish(canvas[rows], size)
    return to_bytes(canvas)


def _compose(pictures: Sequence[Picture], table: Table, size: int, rows: Sequence[int]) -> Floats:
    """(n, 3, size, size): backgrounds and the drawables of the given picture numbers."""
    position = {row: i for i, row in enumerate(rows)}
    table = table[np.isin(table[:, PICTURE], rows)] if len(pictures) else table[:0]
    canvas = backgrounds(pictures, size)
    for row, crop in zip(table[:, PICTURE].astype(int).tolist(), rasterise(table, size)):
        if crop is not None:
            over(canvas[position[row]], crop)
    return canvas


def to_bytes(canvas: Floats) -> NDArray[np.uint8]:
    """(n, c, h, w) in [0, 255] to (n, h, w, c) uint8."""
    planes = (canvas + 0.5).astype(np.uint8)
    out = np.empty((*canvas.shape[:1], *canvas.shape[2:], canvas.shape[1]), np.uint8)
    for channel in range(canvas.shape[1]):  # three times faster than one transposed copy
        out[..., channel] = planes[:, channel]
    return out


def write(pictures: Sequence[Picture], canvas: Floats) -> None:
    """Writes each picture's word onto its (3, h, w) canvas in place: dark ink in a light halo."""
    size = canvas.shape[-1]
    for i, picture in enumerate(pictures):
        if picture.word:
            top, halo, ink = written(picture.word, size)
            under = canvas[i, :, top : top + len(halo)]
            under *= 1 - halo
            under += 252 * halo - 236 * ink


def backgrounds(pictures: Sequence[Picture], size: int) -> Floats:
    """(n, 3, size, size) float32 in [0, 255]."""
    canvas = np.empty((len(pictures), 3, size, size), np.float32)
    for i, picture in enumerate(pictures):
        cached = size <= 512 and picture.view == _STILL
        canvas[i] = (_kept_background if cached else _background)(picture.background, size, picture.view)
    return canvas


_PLAIN = {"white": (255, 255, 255), "grey": (182, 184, 188), "cream": (250, 236, 200), "black": (16, 16, 20)}
_FADES = {"sky": ((104, 176, 246), (214, 238, 255)), "dusk": ((74, 50, 116), (248, 158, 104))}


def _background(name: str, size: int, view: View) -> Floats:
    """What the camera sees of it, float32 in [0, 255], broadcastable to (3, size, size)."""
    pixel = (np.arange(size) + 0.5) / size - 0.5
    x, y = (0.5 + view.x + pixel / view.zoom)[None], (0.5 + view.y + pixel / view.zoom)[:, None]
    if name in _PLAIN:
        planes = np.array(_PLAIN[name], float)[:, None, None]
    elif name in _FADES:
        planes = _mix(*_FADES[name], y.clip(0, 1))
    elif name == "meadow":
        ridge = 0.60 + 0.02 * np.sin(2 * math.pi * (x + 0.1))
        grass = np.clip(0.5 + (y - ridge) * size * view.zoom, 0, 1)
        above = _mix((150, 204, 250), (214, 238, 255), (y / 0.6).clip(0, 1))
        below = _mix((156, 208, 96), (92, 164, 66), ((y - 0.6) / 0.4).clip(0, 1))
        planes = above + (below - above) * grass
    else:  # sand
        waves = np.sin(2 * math.pi * (7 * y + 0.35 * np.sin(2 * math.pi * (x + 0.2))))
        planes = _mix((226, 196, 142), (240, 216, 168), 0.5 + 0.5 * waves)
    return planes.astype(np.float32)


_kept_background = lru_cache(maxsize=32)(_background)


def _mix(first: Sequence[float], second: Sequence[float], share: Table) -> Table:
    a, b = (np.array(c, float)[:, None, None] for c in (first, second))
    return a + (b - a) * share


# --- other percepts of the same scene


def masks(scene: Scene, size: int = 64, full: bool = False) -> Floats:
    """(objects, size, size) float32 in [0, 1]: how much of each pixel shows each object.

    full: also where nearer objects cover it (amodal). Shadows and words do not count; `> 0.5` is a hard mask.
    """
    check_size(size)
    return coverages(drawables([(0, scene, None)]), len(scene.objects), size, full)


def coverages(table: Table, count: int, size: int, full: bool = False) -> Floats:
    """(count, size, size): the masks of one picture's drawables, by owner."""
    shown = np.zeros((count, size, size), np.float32)
    table = table[table[:, SHADOW] == 0]
    for owner, crop in zip(table[:, OWNER].astype(int).tolist(), rasterise(table, size)):
        if crop is not None:
            if not full:
                shown[:, crop.rows, crop.columns] *= 1 - crop.coverage
            shown[owner, crop.rows, crop.columns] = crop.coverage
    return shown


def boxes(scene: Scene) -> NDArray[np.float64]:
    """(objects, 4): x0, y0, x1, y1 of each whole (amodal) object, clipped to the canvas, in [0, 1]."""
    found = []
    for thing in scene.objects:
        parts = [clip_left(part) if thing.state == "halved" else part for part in outlines(thing.shape)]
        points = np.concatenate(parts) @ turned(thing.rotation).T
        centre = np.array([thing.x, thing.y])
        found.append([*(centre + thing.radius * points.min(0)), *(centre + thing.radius * points.max(0))])
    return np.clip(np.array(found), 0, 1)


def depth(scene: Scene, size: int = 64) -> Floats:
    """(size, size) float32: 0 for the nearest plane of objects, 0.2 for the next, 1 for the background."""
    ranks = {d: i for i, d in enumerate(sorted({o.depth for o in scene.objects}))}
    planes = np.array([ranks[o.depth] / MAX_OBJECTS for o in scene.objects] + [1.0], np.float32)
    return planes[topmost(masks(scene, size))]


def topmost(shown: Floats) -> NDArray[np.int64]:
    """(h, w) index of the object that fills most of each pixel, -1 for the background; from visible masks."""
    rest = 1 - shown.sum(0, keepdims=True)
    winner = np.concatenate([shown, rest]).argmax(0)
    return np.where(winner == len(shown), -1, winner)


def edges(scene: Scene, size: int = 64) -> Floats:
    """(size, size) float32 in [0, 1]: the visible outlines of the objects, thin lines of 1 on 0."""
    check_size(size)
    half = max(0.5 / size, 0.005)
    lines = np.zeros((size, size), np.float32)
    table = drawables([(0, scene, None)])
    for crop in rasterise(table[table[:, SHADOW] == 0], size):
        if crop is not None:
            here = lines[crop.rows, crop.columns]
            here *= 1 - crop.coverage
            np.maximum(here, np.clip(0.5 + (half - abs(crop.distance)) * size, 0, 1), out=here)
    return lines


def layers(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """(objects + 1, size, size, 4) RGBA uint8, straight alpha, from the bottom up: the background, then the
    objects in the order of `stacking(scene)`, each with its shadow; one more on top where a word is written.

    Composited alpha-over they equal `draw` to within rounding, before the styles that treat the finished
    picture (mosaic, the paper of watercolour, sepia, night).
    """
    check_size(size)
    word = [scene.word] if scene.word else []
    stack = np.zeros((len(scene.objects) + 1 + len(word), 4, size, size), np.float32)
    stack[0, :3] = backgrounds([Picture(scene.background, scene.style, "", _STILL)], size)[0]
    stack[0, 3] = 255
    place = {owner: i + 1 for i, owner in enumerate(stacking(scene))}
    table = drawables([(0, scene, None)])
    for owner, crop in zip(table[:, OWNER].astype(int).tolist(), rasterise(table, size)):
        if crop is not None:
            solid = np.concatenate([crop.colour, 255 * crop.coverage[None]])
            over(stack[place[owner]], crop._replace(colour=solid))
    if word:
        top, halo, ink = written(scene.word, size)
        stack[-1, :, top : top + len(halo)] = np.stack([252 * halo - 236 * ink] * 3 + [255 * halo])
    alpha = np.round(stack[:, 3:])
    stack[:, :3] = np.clip(stack[:, :3] * (255 / np.maximum(alpha, 1)), 0, 255)
    stack[:, 3:] = alpha
    return to_bytes(stack)


# --- styles of the finished picture


def _sepia(canvas: Floats, size: int) -> Floats:
    bright = 0.3 * canvas[:, :1] + 0.59 * canvas[:, 1:2] + 0.11 * canvas[:, 2:]
    return 0.4 * canvas + 0.6 * (bright * _planes(0.94, 0.76, 0.52) + _planes(14, 9, 3))


def _night(canvas: Floats, size: int) -> Floats:
    return canvas * _planes(0.54, 0.54, 0.70) + _planes(2, 6, 34)


def _planes(*values: float) -> Floats:
    return np.array(values, np.float32)[:, None, None]


def _watercolour(canvas: Floats, size: int) -> Floats:
    """Pigment of uneven density on cream paper."""
    return _planes(255, 250, 236) - (255 - canvas) * (_blotches(size) * _planes(0.98, 0.96, 0.90))


@lru_cache(maxsize=8)
def _blotches(size: int) -> Floats:
    """(size, size) density of pigment in [0.68, 1]: smooth fixed noise."""
    y, x = np.meshgrid(*[2 * math.pi * (np.arange(size) + 0.5) / size] * 2, indexing="ij")
    waves = ((1.1, 1.9, 0.5), (2.3, 1.2, 1.7), (1.7, 3.1, 2.9), (4.3, 3.7, 4.1), (5.9, 2.7, 5.3))
    noise = sum(np.sin(fx * x + p + np.sin(fy * y)) * np.sin(fy * y + 2 * p) for fx, fy, p in waves)
    return (0.84 + 0.16 * np.clip(noise / 2, -1, 1)).astype(np.float32)


def _mosaic(canvas: Floats, size: int) -> Floats:
    """Tiles on grey grout, each the mean of two by two pixels, a little lighter or darker."""
    rows = canvas[..., ::2, :] + canvas[..., 1::2, :]
    cells = 0.25 * (rows[..., ::2] + rows[..., 1::2])
    cells = np.clip(cells * _jitter(), 0, 255) - _GROUT
    tile = _tiles(size)
    return np.matmul(np.matmul(tile, cells), tile.T) + _GROUT


_GROUT = np.float32(120)


@lru_cache(maxsize=8)
def _tiles(size: int) -> Floats:
    """(size, cells): the share of each pixel row in each cell's tile, without the grout right and below."""
    fine = area_weights(8 * _CELLS, size).reshape(size, _CELLS, 8)
    return np.ascontiguousarray(fine[..., :7].sum(-1))


@lru_cache(maxsize=1)
def _jitter() -> Floats:
    """(cells, cells) brightness factors from a fixed hash."""
    i = np.arange(_CELLS * _CELLS, dtype=np.uint32)
    h = (i + 1) * np.uint32(2654435761)
    h ^= h >> np.uint32(15)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    return (0.93 + 0.14 * (h.astype(np.float64) / 2**32)).astype(np.float32).reshape(_CELLS, _CELLS)


_FINISH = {"sepia": _sepia, "night": _night, "watercolour": _watercolour}
