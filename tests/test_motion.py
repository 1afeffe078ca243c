"""Clips, flow and tracks: what moves where, against positions computed by hand."""

import math

import numpy as np
import pytest

from showtell.world.draw import boxes, draw, masks
from showtell.world.motion import draw_clip, flow, tracks
from showtell.world.scene import CAMERAS, MOTIONS, STYLES, Motion, Scene, SceneError, SceneObject

ALL_MOTIONS = [Motion(kind, to) for kind, tos in MOTIONS.items() for to in tos if to != "red"]


def moving(kind, to="", shape="arrow", size="medium", x=0.5, y=0.5, texture="solid", **rest):
    motion = Motion(kind, to) if kind else None
    return Scene((SceneObject(shape, "red", size, texture, x=x, y=y, motion=motion),), **rest)


def centre(picture):
    """Centre of mass of what is not white, in canvas units."""
    weight = 255.0 - picture.min(-1)
    at = (np.arange(len(weight)) + 0.5) / len(weight)
    return float((weight.sum(0) @ at) / weight.sum()), float((weight.sum(1) @ at) / weight.sum())


def test_a_clip_without_motion_repeats_the_picture():
    scenes = [moving("", style=style, background="meadow", light="left", word="ABC") for style in STYLES]
    clips = draw_clip(scenes, 3)
    assert clips.shape == (6, 3, 64, 64, 3) and clips.dtype == np.uint8
    for frame in range(3):
        np.testing.assert_array_equal(clips[:, frame], draw(scenes))


def test_the_first_frame_is_the_still_picture():
    scenes = [moving(m.kind, m.to, background="dusk") for m in ALL_MOTIONS if m.kind != "appear"]
    scenes += [moving("", camera=camera, background="sand", word="GO") for camera in CAMERAS]
    np.testing.assert_array_equal(draw_clip(scenes, 4)[:, 0], draw(scenes))


@pytest.mark.parametrize("motion", ALL_MOTIONS, ids=str)
def test_every_motion_can_be_seen(motion):
    clip = draw_clip(moving(motion.kind, motion.to), 8)[0].astype(int)
    change = (abs(np.diff(clip, axis=0)).max(-1) > 5).sum((1, 2))
    assert (change >= 10).sum() >= 6  # of 7; a bounce looks the same on either side of its top


def test_a_batch_of_one_clip_is_bit_equal_to_a_batch_of_many():
    scenes = [moving(m.kind, m.to, style=STYLES[i % 6]) for i, m in enumerate(ALL_MOTIONS)]
    many = draw_clip(scenes, 5)
    for scene, clip in zip(scenes, many, strict=True):
        np.testing.assert_array_equal(draw_clip(scene, 5)[0], clip)


@pytest.mark.parametrize("to, dx, dy", [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)])
def test_translate_moves_by_three_tenths(to, dx, dy):
    clip = draw_clip(moving("translate", to, "circle"), 7)[0]
    for i, frame in enumerate(clip):
        assert centre(frame) == pytest.approx((0.5 + 0.05 * i * dx, 0.5 + 0.05 * i * dy), abs=0.003)


def test_translate_stops_at_the_edge_of_the_canvas():
    centres, visible = tracks(moving("translate", "right", "circle", x=0.7), 5)
    np.testing.assert_allclose(centres[0, -1], [0.85, 0.5])
    np.testing.assert_allclose(visible, 1, atol=1e-6)


def test_rotate_turns_half_a_turn_the_right_way():
    for to, quarter in (("clockwise", 90), ("anticlockwise", 270)):
        clip = draw_clip(moving("rotate", to, "arrow"), 5)[0]
        turned = SceneObject("arrow", "red", rotation=quarter), SceneObject("arrow", "red", rotation=180)
        np.testing.assert_array_equal(clip[2], draw(Scene((turned[0],)))[0])
        np.testing.assert_array_equal(clip[4], draw(Scene((turned[1],)))[0])


def test_grow_and_shrink_end_at_their_size():
    for kind, factor in (("grow", 1.6), ("shrink", 1 / 1.6)):
        clip = draw_clip(moving(kind, shape="square"), 5, 200)[0].astype(int)
        width = [(frame[100].min(-1) < 200).sum() for frame in clip]
        assert width[0] == pytest.approx(60, abs=1) and width[-1] == pytest.approx(60 * factor, abs=1)
        assert sorted(width, reverse=kind == "shrink") == width


def test_fade_and_appear_end_with_nothing_and_everything():
    nothing = np.full((64, 64, 3), 255)
    fade, appear = (draw_clip(moving(kind), 6)[0] for kind in ("fade", "appear"))
    np.testing.assert_array_equal(fade[-1], nothing)
    np.testing.assert_array_equal(appear[0], nothing)
    np.testing.assert_array_equal(appear[-1], draw(moving(""))[0])
    np.testing.assert_array_equal(fade[::-1], appear)


def test_bounce_leaves_upwards_and_comes_back():
    centres, _ = tracks(moving("bounce"), 9)
    heights = 0.5 - centres[0, :, 1]
    np.testing.assert_allclose(heights[[0, 4, 8]], 0, atol=1e-9)
    assert heights[2] == pytest.approx(heights[6]) == pytest.approx(0.22)
    np.testing.assert_allclose(centres[0, :, 0], 0.5)


def test_recolour_ends_in_the_target_colour():
    clip = draw_clip(moving("recolour", "blue"), 5)[0]
    np.testing.assert_array_equal(clip[-1], draw(Scene((SceneObject("arrow", "blue"),)))[0])


def test_the_camera_moves_everything_the_other_way():
    for to, dx, dy in (("left", 1, 0), ("right", -1, 0), ("up", 0, 1), ("down", 0, -1)):
        centres, _ = tracks(moving("", camera=f"pan {to}"), 3)
        moved = centres[0, -1] - centres[0, 0]
        np.testing.assert_allclose(moved, [0.22 * dx, 0.22 * dy], atol=1e-9)
    np.testing.assert_allclose(tracks(moving("", x=0.7, camera="zoom in"), 3)[0][0, -1], [0.8, 0.5])
    np.testing.assert_allclose(tracks(moving("", x=0.8, camera="zoom out"), 3)[0][0, -1], [0.7, 0.5])


def test_a_word_stays_while_the_camera_moves():
    clip = draw_clip(moving("", y=0.3, camera="pan left", word="STAY"), 4)[0]
    np.testing.assert_array_equal(clip[0, 54:], clip[-1, 54:])


def test_tracks_are_the_centres_of_the_frames():
    scene = moving("translate", "right", "circle", x=0.3, y=0.4, camera="zoom in")
    clip, (centres, _) = draw_clip(scene, 6)[0], tracks(scene, 6)
    for frame, (x, y) in zip(clip, centres[0], strict=True):
        assert centre(frame) == pytest.approx((x, y), abs=0.004)


def test_visibility_counts_what_covers_fades_and_leaves():
    near = SceneObject("square", "blue", "large", x=0.2, depth=0, motion=Motion("translate", "right"))
    far = SceneObject("circle", "red", "small", x=0.52, depth=1)
    _, seen = tracks(Scene((near, far)), 5)
    assert seen[1, 0] == pytest.approx(1, abs=0.01) and seen[1, -1] == pytest.approx(0, abs=0.01)
    np.testing.assert_allclose(tracks(moving("fade"), 5)[1][0], [1, 0.75, 0.5, 0.25, 0], atol=1e-3)
    # Panning right by 0.22 takes the square's left edge from 0.05 to -0.17, of a width of 0.3.
    gone = tracks(moving("", shape="square", x=0.2, camera="pan right"), 2)[1][0, 1]
    assert gone == pytest.approx(1 - 0.17 / 0.3, abs=0.01)


def sampled(picture, at):
    """Bilinear samples of (h, w, 3) at (h, w, 2) pixel positions."""
    x, y = (
        np.clip(at[..., 0] - 0.5, 0, picture.shape[1] - 1.001),
        np.clip(at[..., 1] - 0.5, 0, len(picture) - 1.001),
    )
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = picture[y0, x0] * (1 - fx) + picture[y0, x0 + 1] * fx
    return top * (1 - fy) + (picture[y0 + 1, x0] * (1 - fx) + picture[y0 + 1, x0 + 1] * fx) * fy


MOVES = [m for m in ALL_MOTIONS if m.kind in ("translate", "rotate", "grow", "shrink", "bounce")]


@pytest.mark.parametrize("camera", ("still", "pan left", "zoom in"))
@pytest.mark.parametrize("motion", MOVES, ids=str)
def test_flow_leads_from_a_frame_to_the_next(motion, camera):
    size, frames = 192, 6
    scene = moving(motion.kind, motion.to, "square", "large", texture="checked", camera=camera)
    clip, moved = draw_clip(scene, frames, size)[0].astype(float), flow(scene, frames, size)
    assert moved.shape == (frames - 1, size, size, 2) and moved.dtype == np.float32
    pixel = np.arange(size) + 0.5
    here = np.stack(np.meshgrid(pixel, pixel), -1)
    for i in range(frames - 1):
        there = here + moved[i]
        inside = (clip[i].min(-1) < 250) & ((there > 1) & (there < size - 1)).all(-1)
        with_flow = abs(sampled(clip[i + 1], there) - clip[i])[inside].mean()
        without = abs(clip[i + 1] - clip[i])[inside].mean()
        assert with_flow < 16 and (with_flow < 0.3 * without or abs(moved[i][inside]).mean() < 2)


def test_flow_of_the_background_is_the_camera_and_a_word_is_still():
    moved = flow(moving("", y=0.3, background="meadow", camera="pan left", word="A"), 12, 64)
    np.testing.assert_allclose(moved[:, 5, 5], np.tile([0.22 * 64 / 11, 0], (11, 1)), atol=1e-4)
    assert (moved[:, 57, 32] == 0).all()


def test_flow_is_zero_where_nothing_moves():
    scene = moving("translate", "right", "circle")
    moved = flow(scene, 3, 64)
    outside = masks(scene, 64)[0] < 0.5
    assert (moved[0][outside] == 0).all()
    np.testing.assert_allclose(moved[0][~outside], np.tile([0.15 * 64, 0], ((~outside).sum(), 1)), atol=1e-4)


def test_rotation_keeps_its_distance_from_the_centre():
    scene = moving("rotate", "clockwise", "square", "large")
    moved = flow(scene, 3, 64)[0]
    inside = masks(scene, 64)[0] > 0.5
    pixel = np.arange(64) + 0.5 - 32
    here = np.stack(np.meshgrid(pixel, pixel), -1)[inside]
    there = here + moved[inside]
    np.testing.assert_allclose(np.hypot(*there.T), np.hypot(*here.T), rtol=1e-4)
    np.testing.assert_allclose(there, here @ np.array([[0, 1], [-1, 0]]), atol=1e-4)  # (x, y) to (-y, x): clockwise


def test_every_frame_count_and_its_refusal():
    assert draw_clip(moving("grow"), 1).shape == (1, 1, 64, 64, 3)
    assert flow(moving("grow"), 1).shape == (0, 64, 64, 2)
    for call in (draw_clip, flow, tracks):
        with pytest.raises(SceneError, match="1 or more"):
            call(moving("grow"), 0)


def test_objects_that_stay_within_the_canvas_do_so():
    for to in MOTIONS["translate"]:
        scene = moving("translate", to, "square", x=0.4, y=0.45)
        end = tracks(scene, 2)[0][0, 1]
        last = Scene((SceneObject("square", "red", x=end[0], y=end[1]),))
        x0, y0, x1, y1 = boxes(last)[0]
        assert x1 - x0 == pytest.approx(0.3) and y1 - y0 == pytest.approx(0.3)
        assert math.hypot(end[0] - 0.4, end[1] - 0.45) > 0.2
