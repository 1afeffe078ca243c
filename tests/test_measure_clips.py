"""Clips: motions read from exact clips, wrong and broken ones told apart, consistency and tracks by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from showtell.errors import ShowtellError
from showtell.measure import clips as measures
from showtell.measure import scores
from showtell.measure.prompts import prompt_set
from showtell.world import Motion, Scene, SceneObject, draw
from showtell.world.motion import draw_clip

RING = SceneObject("ring", "red", x=0.3, y=0.5)
STAR = SceneObject("star", "blue", x=0.7, y=0.5)
LEFT, GROW = Motion("translate", "left"), Motion("grow")


def moving(thing: SceneObject, motion: Motion | None) -> SceneObject:
    return replace(thing, motion=motion)


def test_motion_by_hand() -> None:
    wanted = Scene((moving(RING, LEFT), STAR))
    assert measures.motion(wanted, wanted) == measures.direction(wanted, wanted) == 1
    other = Scene((moving(RING, Motion("translate", "right")), STAR))
    assert measures.motion(wanted, other) == 0.5 and measures.direction(wanted, other) == 0
    both = Scene((moving(RING, LEFT), moving(STAR, LEFT)))  # what should rest moves
    assert measures.motion(wanted, both) == 0.5 and measures.direction(wanted, both) == 1
    assert measures.motion(wanted, Scene((STAR,))) == 0.5
    assert np.isnan(measures.direction(Scene((RING,)), wanted))


def test_consistency_by_hand() -> None:
    a, green = Scene((RING, STAR)), Scene((replace(RING, colour="green"), STAR))
    assert measures.consistency([a, a, a]) == 1
    assert measures.consistency([a, green, a]) == 0.5 and measures.consistency([a, green], {"colour"}) == 1
    assert measures.consistency([a, Scene((RING,))]) == 0.5
    assert measures.consistency([a, Scene((RING,))], {"presence"}) == 1
    assert np.isnan(measures.consistency([a]))
    assert measures.exempt_of(Scene((moving(RING, GROW), moving(STAR, Motion("recolour", "pink"))))) == {
        "size", "colour",
    }  # fmt: skip


def test_flicker_by_hand() -> None:
    steady = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 51, 102)])
    jump = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 51, 0)])
    assert measures.flicker([steady, jump]).tolist() == pytest.approx([0, 0.4])
    assert np.isnan(measures.flicker([steady[:2]])[0])


def test_every_motion_is_read_from_exact_clips() -> None:
    prompts = prompt_set("motion", 8, 21, "validation")
    clips = prompts.clips()
    assert prompts.motion(clips).mean() >= 0.9
    still = [[clip[0]] * 8 if s.objects[0].motion.kind != "appear" else [clip[-1]] * 8 for clip, s in
             zip(clips, prompts.scenes, strict=True)]  # fmt: skip
    assert prompts.score(scores.objects, [clip[-1] for clip in still]).mean() > 0.85
    moved = measures.score_clips(measures.direction, still, prompts.scenes)
    assert moved.mean() <= 0.1  # nothing moves there
    backwards = measures.score_clips(measures.direction, [clip[::-1] for clip in clips], prompts.scenes)
    opposite = [s.objects[0].motion.kind in ("translate", "rotate", "grow", "shrink", "fade", "appear", "recolour")
                for s in prompts.scenes]  # fmt: skip
    assert backwards[opposite].mean() <= 0.1


def test_tracks_identity_and_first_frames() -> None:
    scenes = [Scene((moving(RING, Motion("translate", "right")),)), Scene((moving(STAR, LEFT),), background="sand")]
    clips = draw_clip(scenes, 4)
    assert measures.track_error(clips, scenes).max() < 0.03
    still = np.stack([clip[[0, 0, 0, 0]] for clip in clips])
    assert measures.track_error(still, scenes).min() > 0.1
    assert measures.clip_identity(clips, scenes).tolist() == [1, 1] == measures.clip_consistency(clips).tolist()
    changed = clips.copy()
    changed[:, -1] = draw([Scene((replace(RING, colour="green", x=0.6),)), Scene((replace(STAR, shape="square"),))])
    assert measures.clip_identity(changed, scenes).tolist() == [0, 0]
    assert measures.first_frame_psnr(clips, clips[:, 0]).tolist() == [60, 60]
    assert measures.first_frame_psnr(clips, clips[::-1, 0]).max() < 25
    frames = measures.per_frame(scores.objects, changed, [replace(s, objects=s.objects) for s in scenes])
    assert frames[0] == 1 and frames[1] == 0.75


def test_bad_requests() -> None:
    with pytest.raises(ShowtellError, match="no frames"):
        measures.frames_of([[]])
    with pytest.raises(ShowtellError, match="1 clips but 2"):
        measures.clip_identity(draw_clip(Scene((RING,)), 2), [Scene((RING,))] * 2)
