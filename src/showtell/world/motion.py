"""From a `Scene` to its clip: frames, exact optical flow and tracks.

A clip runs from t = 0, the scene as `draw` shows it, to t = 1. Objects follow their `motion` along straight,
evenly timed paths; the camera's own motion lies on top. A word is a subtitle: it stays where it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from showtell.world.draw import CHUNK, Picture, check_size, coverages, paint, topmost
from showtell.world.glyphs import written
from showtell.world.raster import PALETTE, Floats, Pose, View, at_rest, drawables
from showtell.world.scene import COLOURS, STEP, Scene, SceneError, SceneObject
from showtell.world.shapes import turned

TRAVEL = 0.3  # how far an object goes, in canvas units, where the canvas leaves room ...
_LEAST = 0.12  # ... and how far it goes in any case, so that the direction can be seen
_GROWTH = 1.6
_HOP = 0.22  # height of a bounce
_PAN, _ZOOM = 0.22, 1.5  # of the camera, from first to last frame


def draw_clip(scenes: Scene | Sequence[Scene], frames: int = 16, size: int = 64) -> NDArray[np.uint8]:
    """Clips of the scenes, (n, frames, size, size, 3) uint8; n is 1 for a single scene.

    The first frame of a scene without an "appear" is `draw(scene)`, bit for bit.
    Raises SceneError unless frames >= 1 and 16 <= size <= 2048.
    """
    many = [scenes] if isinstance(scenes, Scene) else scenes
    check_size(size)
    moments = [(scene, t) for scene in many for t in times(frames)]
    out = np.empty((len(moments), size, size, 3), np.uint8)
    step = max(1, CHUNK // (size * size))
    for first in range(0, len(moments), step):
        chunk = moments[first : first + step]
        views = [view_at(s, t) for s, t in chunk]
        pictures = [Picture(s.background, s.style, s.word, v) for (s, _), v in zip(chunk, views)]
        table = drawables(((i, s, poses_at(s, t)) for i, (s, t) in enumerate(chunk)), views)
        out[first : first + step] = paint(pictures, table, size)
    return out.reshape(len(many), frames, size, size, 3)


def times(frames: int) -> list[float]:
    """The moments of the frames, evenly from 0 to 1; 0 for a single frame."""
    if frames < 1:
        raise SceneError(f"a clip cannot have {frames} frames; use 1 or more")
    return [i / max(frames - 1, 1) for i in range(frames)]


def view_at(scene: Scene, t: float) -> View:
    """What the camera sees at t in [0, 1]. Panning left, objects move to the right."""
    kind, _, to = scene.camera.partition(" ")
    if kind == "pan":
        dx, dy = STEP[to]
        return View(_PAN * t * dx, _PAN * t * dy, 1.0)
    if kind == "zoom":
        return View(0.0, 0.0, _ZOOM ** (t if to == "in" else -t))
    return View()


def poses_at(scene: Scene, t: float) -> list[Pose]:
    """Where each object is, and how it looks, at t in [0, 1]; before the camera."""
    return [pose_at(thing, t) for thing in scene.objects]


def pose_at(thing: SceneObject, t: float) -> Pose:
    """The object's pose at t in [0, 1]: at rest at t = 0, but what appears begins transparent."""
    rest, motion = at_rest(thing), thing.motion
    if motion is None:
        return rest
    match motion.kind:
        case "translate":
            dx, dy = STEP[motion.to]
            along = thing.x if dx else thing.y
            room = (1 - along if dx + dy > 0 else along) - thing.radius
            far = min(TRAVEL, max(room, _LEAST)) * t
            return rest._replace(x=thing.x + dx * far, y=thing.y + dy * far)
        case "rotate":  # half a turn: slow enough for the direction to be seen on most shapes
            return rest._replace(angle=thing.rotation + (180 if motion.to == "clockwise" else -180) * t)
        case "grow":
            return rest._replace(scale=_GROWTH**t)
        case "shrink":
            return rest._replace(scale=_GROWTH**-t)
        case "fade":
            return rest._replace(alpha=1 - t)
        case "appear":
            return rest._replace(alpha=t)
        case "bounce":  # two hops
            height = min(_HOP, max(thing.y - thing.radius, _LEAST))
            return rest._replace(y=thing.y - height * abs(math.sin(2 * math.pi * t)))
        case _:  # recolour
            target = PALETTE[COLOURS.index(motion.to)]
            return rest._replace(tones=tuple((1 - t) * np.array(rest.tones) + t * target))


def tracks(scene: Scene, frames: int = 16) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(centres, visibility) of the objects through the clip.

    centres: (objects, frames, 2), x and y in canvas units as the camera sees them, outside [0, 1] off the
    canvas. visibility: (objects, frames) in [0, 1], the share of the object's area that is on the canvas and
    not covered by nearer objects, times its opacity.
    """
    centres, seen = [], []
    for t in times(frames):
        view, poses = view_at(scene, t), poses_at(scene, t)
        centres.append([_seen_at(view, pose.x, pose.y) for pose in poses])
        seen.append(_visibility(scene, view, poses))
    return np.array(centres).transpose(1, 0, 2), np.array(seen).T


def _seen_at(view: View, x: float, y: float) -> tuple[float, float]:
    return 0.5 + (x - 0.5 - view.x) * view.zoom, 0.5 + (y - 0.5 - view.y) * view.zoom


def _visibility(scene: Scene, view: View, poses: list[Pose]) -> NDArray[np.float64]:
    """(objects,) shares, measured on a canvas three times as wide, so that nothing is cut off."""
    size = 64
    wide = view._replace(zoom=view.zoom / 3)
    table = drawables([(0, scene, poses)], [wide])
    shown = coverages(table, len(poses), 3 * size)[:, size : 2 * size, size : 2 * size]
    opaque = [pose._replace(alpha=1.0) for pose in poses]
    whole = coverages(drawables([(0, scene, opaque)], [wide]), len(poses), 3 * size, full=True)
    return shown.sum((1, 2), dtype=float) / np.maximum(whole.sum((1, 2), dtype=float), 1e-9)


def flow(scene: Scene, frames: int = 16, size: int = 64) -> Floats:
    """(frames - 1, size, size, 2) float32: how many pixels to the right and down what each pixel of a
    frame shows has moved by the next frame.

    Exact for the surfaces of objects and for the background under the camera; 0 on a written word. A pixel
    belongs to the object that fills most of it. Raises SceneError unless 16 <= size <= 2048.
    """
    check_size(size)
    moments = times(frames)
    pixel = (np.arange(size) + 0.5) / size
    here = np.stack(np.meshgrid(pixel, pixel), -1)
    out = np.zeros((frames - 1, size, size, 2), np.float32)
    for i, (t, following) in enumerate(itertools.pairwise(moments)):
        view, poses = view_at(scene, t), poses_at(scene, t)
        owner = topmost(coverages(drawables([(0, scene, poses)], [view]), len(poses), size))
        later = view_at(scene, following)
        out[i] = (_background_moves(here, view, later) - here) * size
        for k, (pose, then) in enumerate(zip(poses, poses_at(scene, following))):
            mine = owner == k
            out[i][mine] = (_object_moves(here[mine], view, pose, later, then) - here[mine]) * size
        if scene.word:
            top, halo, _ = written(scene.word, size)
            out[i, top : top + len(halo)][halo > 0.5] = 0
    return out


def _background_moves(points: NDArray[np.float64], view: View, later: View) -> NDArray[np.float64]:
    """Where points (..., 2) of the background are seen in the next frame."""
    looked, looks = np.array([view.x, view.y]), np.array([later.x, later.y])
    return 0.5 + ((points - 0.5) / view.zoom + looked - looks) * later.zoom


def _object_moves(points: NDArray[np.float64], view: View, pose: Pose, later: View, then: Pose) -> NDArray[np.float64]:
    """Where points (n, 2) of an object's surface are seen in the next frame."""
    start, end = (np.array(_seen_at(v, p.x, p.y)) for v, p in ((view, pose), (later, then)))
    growth = then.scale * later.zoom / (pose.scale * view.zoom)
    return end + growth * (points - start) @ turned(then.angle - pose.angle).T
