"""What a clip shows: every object with its motion, tracks, and whether things stay what they are.

`read_clips` carries the judge's way of reading (the network proposes, the renderer disposes) to clips: the first and
the last frame say what is there, then every motion is drawn and the one closest to the clip is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.edits import LOOK, locate
from showtell.measure.judge import Judge
from showtell.measure.scores import match, read
from showtell.pictures import letterbox, to_pil
from showtell.world.draw import Picture, paint
from showtell.world.motion import poses_at, times, tracks, view_at
from showtell.world.raster import drawables
from showtell.world.scene import MAX_OBJECTS, MOTIONS, Motion, Scene, SceneObject

MOMENTS = 5  # frames of each clip that are compared with drawings
SIZE = 64
ABSENT = 0.5  # the tracking error, in canvas units, of a frame in which the object is not seen
_AT_ONCE = 4096  # frames drawn together

EXEMPT = {  # what each motion changes, so that it is no inconsistency
    "translate": (), "rotate": ("rotation",), "grow": ("size",), "shrink": ("size",), "bounce": (),
    "recolour": ("colour",), "fade": ("presence",), "appear": ("presence",),
}  # fmt: skip


# --- reading ---------------------------------------------------------------------------------------------------------


def frames_of(clips: Any, frames: int | None = None) -> list[np.ndarray]:
    """Each clip as uint8 (frames, 64, 64, 3), letterboxed; frames: so many, evenly chosen (all by default).

    clips: a list of clips, each a list of images or an array (frames, h, w, 3); or one array (n, frames, h, w, 3).
    Raises ShowtellError for a clip of no frames.
    """
    out = []
    for clip in clips:
        pictures = to_pil(clip)
        if not pictures:
            raise ShowtellError("a clip has no frames; give at least one")
        rows = range(len(pictures)) if frames is None else _rows(len(pictures), frames)
        out.append(np.stack([np.asarray(letterbox(pictures[i], SIZE)) for i in rows]))
    return out


def _rows(length: int, wanted: int) -> list[int]:
    return sorted({round(i * (length - 1) / max(wanted - 1, 1)) for i in range(wanted)}) if length > 1 else [0]


def read_clips(clips: Any, judge: Judge | str = "first", fast: bool = False) -> list[Scene]:
    """The scene of each clip, with every object's motion (None: at rest). The camera is taken to be still.

    The drawings compared are exact clips, so a motion of an unusual extent is named after the nearest usual one.
    """
    shown = frames_of(clips)
    ends = read([clip[i] for clip in shown for i in (0, -1)], judge, fast)
    drafts = [_candidates(ends[2 * i], ends[2 * i + 1]) for i in range(len(shown))]
    picked = [clip[_rows(len(clip), MOMENTS)] for clip in shown]
    moments = [[times(len(clip))[i] for i in _rows(len(clip), MOMENTS)] for clip in shown]
    for _ in range(2):
        for index in range(2 * MAX_OBJECTS):
            tried = [(i, option) for i, draft in enumerate(drafts) for option in _options(draft, index)]
            _keep_best(drafts, tried, picked, moments)
    return [_scene(draft).canonical() for draft in drafts]


Draft = tuple[Scene, tuple[SceneObject | None, ...], tuple[tuple[SceneObject, ...], ...]]
"""The setting (a scene of any objects), the objects (None: left out), and what each may be instead, itself included."""


def _candidates(first: Scene, last: Scene) -> Draft:
    """Every object of the first frame, at rest, and those of the last that are not of the first, left out as yet."""
    becomes = locate(first.objects, last.objects)
    new = [thing for thing in last.objects if not any(thing is b for b in becomes)]
    choices = [tuple(_moving(thing, later)) for thing, later in zip(first.objects, becomes, strict=True)]
    choices += [(replace(thing, motion=Motion("appear")),) for thing in new]
    return first, (*first.objects, *(None for _ in new)), tuple(choices)


def _moving(thing: SceneObject, later: SceneObject | None) -> Iterator[SceneObject]:
    """The object at rest and in each motion that the last frame does not rule out."""
    yield thing
    for kind, targets in MOTIONS.items():
        if kind == "recolour":
            targets = (later.colour,) if later is not None and later.colour != thing.colour else ()
        yield from (replace(thing, motion=Motion(kind, to)) for to in targets)


def _options(draft: Draft, index: int) -> Iterator[Draft]:
    """The draft with each choice for one object, and without the object where another is left."""
    setting, things, choices = draft
    if index >= len(things):
        return
    others = sum(thing is not None for i, thing in enumerate(things) if i != index)
    possible: list[SceneObject | None] = [] if others == MAX_OBJECTS else list(choices[index])
    if others:
        possible.append(None)
    for option in possible:
        yield setting, (*things[:index], option, *things[index + 1 :]), choices
    if index >= len(setting.objects) and others == 1:  # an empty first frame, of which the judge had to say something
        alone = [choices[index][0] if i == index else None for i in range(len(things))]
        yield setting, tuple(alone), choices


def _scene(draft: Draft) -> Scene:
    return replace(draft[0], objects=tuple(thing for thing in draft[1] if thing is not None))


def _keep_best(
    drafts: list[Draft], tried: list[tuple[int, Draft]], shown: list[np.ndarray], moments: list[list[float]]
) -> None:
    """Replaces each draft by the option whose drawings are closest to its clip."""
    best: dict[int, float] = {}
    step = max(1, _AT_ONCE // MOMENTS)
    for start in range(0, len(tried), step):
        part = tried[start : start + step]
        drawn = draw_at([(_scene(option), t) for i, option in part for t in moments[i]])
        at = 0
        for i, option in part:
            these = drawn[at : at + len(moments[i])].astype(np.float32)
            at += len(moments[i])
            error = float(((these - shown[i]) ** 2).mean())
            if error < best.get(i, np.inf) - 1e-3:
                best[i], drafts[i] = error, option


def draw_at(moments: Sequence[tuple[Scene, float]], size: int = SIZE) -> np.ndarray:
    """(n, size, size, 3) uint8: each scene at its time t in [0, 1] of its motion."""
    out = []
    for start in range(0, len(moments), 128):
        part = moments[start : start + 128]
        views = [view_at(scene, t) for scene, t in part]
        pictures = [Picture(s.background, s.style, s.word, v) for (s, _), v in zip(part, views, strict=True)]
        table = drawables(((i, s, poses_at(s, t)) for i, (s, t) in enumerate(part)), views)
        out.append(paint(pictures, table, size))
    return np.concatenate(out) if out else np.zeros((0, size, size, 3), np.uint8)


# --- scores of one clip ----------------------------------------------------------------------------------------------


def motion(wanted: Scene, seen: Scene) -> float:
    """Share of the wanted objects that are present (see `scores.match`) and move, or rest, as they should."""
    pairs = zip(wanted.objects, match(wanted, seen), strict=True)
    return float(np.mean([b is not None and a.motion == b.motion for a, b in pairs]))


def direction(wanted: Scene, seen: Scene) -> float:
    """As `motion`, of the moving objects alone; nan where none should move."""
    pairs = [(a, b) for a, b in zip(wanted.objects, match(wanted, seen), strict=True) if a.motion is not None]
    return float(np.mean([b is not None and a.motion == b.motion for a, b in pairs])) if pairs else float("nan")


def consistency(frames: Sequence[Scene], exempt: Collection[str] = ()) -> float:
    """How little changes from frame to frame, in [0, 1]: 1 minus the rate of attribute flips.

    Of each two neighbouring frames: the objects found again with their look (shape, colour, size, texture, state,
    rotation, but for the `exempt` ones), divided by the larger number of objects; the mean over all of them. With
    "presence" exempt it is divided by the objects found again instead. nan for a single frame.
    """
    pairs = [_kept(a, b, exempt) for a, b in itertools.pairwise(frames)]
    return float(np.nanmean(pairs)) if any(np.isfinite(pairs)) else float("nan")


def _kept(before: Scene, after: Scene, exempt: Collection[str]) -> float:
    names = [name for name in LOOK if name not in exempt]
    partners = locate(before.objects, after.objects)
    found = [(a, b) for a, b in zip(before.objects, partners, strict=True) if b is not None]
    same = sum(all(getattr(a, name) == getattr(b, name) for name in names) for a, b in found)
    most = len(found) if "presence" in exempt else max(len(before.objects), len(after.objects))
    return same / most if most else float("nan")


def exempt_of(scene: Scene) -> set[str]:
    """What the scene's motions change of their objects, as `consistency` takes it."""
    return {name for thing in scene.objects if thing.motion for name in EXEMPT[thing.motion.kind]}


# --- scores of many --------------------------------------------------------------------------------------------------


def score_clips(
    score: Any, clips: Any, scenes: Sequence[Scene], judge: Judge | str = "first", fast: bool = False
) -> np.ndarray:
    """(n,) a score of (wanted, seen) scenes, from here or from `scores`, of each clip as `read_clips` reads it."""
    seen = read_clips(clips, judge, fast)
    _same(seen, scenes)
    return np.array([score(a, b) for a, b in zip(scenes, seen, strict=True)], dtype=float)


def read_frames(clips: Any, judge: Judge | str = "first", fast: bool = False) -> list[list[Scene]]:
    """The scene of every frame of every clip, frame by frame."""
    shown = frames_of(clips)
    seen = iter(read([frame for clip in shown for frame in clip], judge, fast))
    return [[next(seen) for _ in clip] for clip in shown]


def clip_consistency(
    clips: Any, scenes: Sequence[Scene] | None = None, judge: Judge | str = "first", fast: bool = False
) -> np.ndarray:
    """(n,) `consistency` of each clip. scenes: what is wanted, whose motions are no inconsistency."""
    seen = read_frames(clips, judge, fast)
    if scenes is not None:
        _same(seen, scenes)
    exempt = [exempt_of(scene) for scene in scenes] if scenes is not None else [set[str]()] * len(seen)
    return np.array([consistency(frames, e) for frames, e in zip(seen, exempt, strict=True)])


def clip_identity(
    clips: Any, scenes: Sequence[Scene] | None = None, judge: Judge | str = "first", fast: bool = False
) -> np.ndarray:
    """(n,) `consistency` of the first and the last frame alone: whether things end as what they began as.

    Reads two frames of each clip, at which exact clips are easiest to read. scenes: as in `clip_consistency`.
    """
    return clip_consistency([clip[[0, -1]] for clip in frames_of(clips)], scenes, judge, fast)


def per_frame(
    score: Any, clips: Any, scenes: Sequence[Scene], judge: Judge | str = "first", fast: bool = False
) -> np.ndarray:
    """(n,) the mean over a clip's frames of a score of `showtell.measure.scores`, such as `scores.binding`."""
    seen = read_frames(clips, judge, fast)
    _same(seen, scenes)
    return np.array([np.mean([score(a, b) for b in frames]) for a, frames in zip(scenes, seen, strict=True)])


def track_error(clips: Any, scenes: Sequence[Scene], judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
    """(n,) mean distance, in canvas units, of the moving objects' centres to their exact tracks, over the frames.

    Where none moves, of all objects. A frame in which the object is not seen counts as `ABSENT`. Only for clips whose
    layout was given (by a first frame, boxes or a path): the scenes' own positions are the truth.
    """
    seen = read_frames(clips, judge, fast)
    _same(seen, scenes)
    return np.array([_track_error(frames, scene) for frames, scene in zip(seen, scenes, strict=True)])


def _track_error(frames: Sequence[Scene], wanted: Scene) -> float:
    centres, visible = tracks(wanted, len(frames))
    which = [k for k, thing in enumerate(wanted.objects) if thing.motion] or list(range(len(wanted.objects)))
    errors = []
    for t, seen in enumerate(frames):
        moved = zip(wanted.objects, centres[:, t], strict=True)
        here = replace(wanted, objects=tuple(_at(thing, centre) for thing, centre in moved))
        partners = locate(here.objects, seen.objects, range(len(here.objects)))
        for k in which:
            partner = partners[k]
            if visible[k][t] < 0.1:
                continue
            errors.append(ABSENT if partner is None else np.hypot(*(centres[k][t] - (partner.x, partner.y))))
    return float(np.mean(errors)) if errors else float("nan")


def _at(thing: SceneObject, centre: np.ndarray) -> SceneObject:
    x, y = (float(v) for v in centre.clip(0, 1))
    return replace(thing, x=x, y=y)


def first_frame_psnr(clips: Any, images: Any) -> np.ndarray:
    """(n,) PSNR in dB, at most 60, of each clip's first frame and the image that it was to start from."""
    from showtell.measure.scores import psnr

    shown, given = frames_of(clips), [np.asarray(letterbox(picture, SIZE)) for picture in to_pil(images)]
    _same(shown, given)
    return np.array([psnr(clip[0], image) for clip, image in zip(shown, given, strict=True)])


def flicker(clips: Any) -> np.ndarray:
    """(n,) mean absolute second difference of pixels over time, in [0, 2] of the range; lower is steadier.

    0 where every pixel changes evenly; nan below three frames. No judge: it also rises with real motion, so compare
    only clips of the same prompts.
    """
    found = []
    for clip in frames_of(clips):
        values = clip.astype(np.float32) / 255
        found.append(np.abs(values[2:] - 2 * values[1:-1] + values[:-2]).mean() if len(values) > 2 else np.nan)
    return np.array(found, dtype=float)


def _same(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    if len(found) != len(wanted):
        raise ShowtellError(f"{len(found)} clips but {len(wanted)} scenes or images; give one clip for each")
