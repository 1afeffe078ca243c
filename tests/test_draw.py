"""Pictures, masks, boxes, depth, edges and layers against geometry computed by hand."""

import itertools
import math
import random

import numpy as np
import pytest

from showtell.world.draw import boxes, depth, draw, edges, layers, masks, stacking
from showtell.world.raster import RGB
from showtell.world.scene import (
    BACKGROUNDS,
    COLOURS,
    HOLLOW,
    LIGHTS,
    RADIUS,
    ROTATIONS,
    SHAPES,
    SIZES,
    STATES,
    STYLES,
    TEXTURES,
    TURNABLE,
    Scene,
    SceneError,
    SceneObject,
)
from showtell.world.shapes import DISTANCE, outlines


def one(
    shape="circle",
    colour="red",
    size="medium",
    texture="solid",
    state="whole",
    rotation=0,
    x=0.5,
    y=0.5,
    **rest,
):
    return Scene((SceneObject(shape, colour, size, texture, state, rotation, x, y),), **rest)


def mixed(n, seed=0, objects=4):
    """Scenes with everything in them; objects may overlap one another and the canvas's edge."""
    rng = random.Random(seed)

    def thing(depth):
        shape = rng.choice(SHAPES)
        turn = rng.choice(ROTATIONS) if shape in TURNABLE else 0
        look = (rng.choice(COLOURS), rng.choice(SIZES), rng.choice(TEXTURES), rng.choice(STATES))
        return SceneObject(shape, *look, turn, rng.random(), rng.random(), depth)

    def scene():
        things = tuple(thing(d) for d in rng.sample(range(objects), rng.randint(1, objects)))
        word = rng.choice(("", "", "A1", "HELLO", "SHOWTELL"))
        return Scene(things, rng.choice(BACKGROUNDS), rng.choice(STYLES), rng.choice(LIGHTS), word)

    return [scene() for _ in range(n)]


# --- geometry


@pytest.mark.parametrize("size", SIZES)
def test_circle_has_the_area_of_a_circle(size):
    area = masks(one(size=size, x=0.47, y=0.53), 64)[0].mean(dtype=float)
    assert area == pytest.approx(math.pi * RADIUS[size] ** 2, rel=0.01)


def test_square_covers_exact_pixels():
    # radius 0.15 around 0.5 at 40 pixels: from pixel 14 to pixel 26.
    expected = np.zeros((40, 40), np.float32)
    expected[14:26, 14:26] = 1
    np.testing.assert_allclose(masks(one("square"), 40)[0], expected, atol=1e-4)


def test_square_half_a_pixel_off_covers_its_border_by_half():
    mask = masks(one("square", x=0.5 + 0.5 / 40), 40)[0]
    np.testing.assert_allclose(mask[20, 13:28], [0, 0.5, *[1] * 11, 0.5, 0], atol=1e-4)


def test_frame_is_the_square_less_its_hole():
    mask = masks(one("frame"), 200)[0] > 0.5
    centre = (np.arange(200) + 0.5) / 200 - 0.5
    box = np.maximum(abs(centre)[:, None], abs(centre)[None])
    np.testing.assert_array_equal(mask, (box < 0.15) & (box > 0.15 * HOLLOW["frame"]))


def test_ring_has_the_hole_that_the_contract_says():
    mask = masks(one("ring", size="large"), 256)[0]
    solid = masks(one("circle", size="large"), 256)[0]
    hole = solid.sum(dtype=float) - mask.sum(dtype=float)
    assert hole / 256**2 == pytest.approx(math.pi * (0.21 * HOLLOW["ring"]) ** 2, rel=0.01)
    assert mask[128, 128] == 0


def test_areas_of_polygons_match_the_shoelace_formula():
    for shape in SHAPES:
        outer, *holes = outlines(shape)
        area = _shoelace(outer) - sum(_shoelace(hole) for hole in holes)
        drawn = masks(one(shape, size="large"), 256)[0].mean(dtype=float)
        assert drawn == pytest.approx(area * 0.21**2, rel=0.012), shape


def _shoelace(points):
    x, y = points.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_is_zero_on_the_outline_and_negative_inside(shape):
    points = np.concatenate(outlines(shape)).astype(np.float32)
    distance = DISTANCE[shape](points[:, 0], points[:, 1])
    assert abs(distance).max() < 2e-3
    inside = np.array([{"ring": -0.81, "frame": -0.81, "crescent": -0.5}.get(shape, -0.05)], np.float32)
    assert DISTANCE[shape](inside, np.array([0.1], np.float32))[0] < 0
    assert abs(points).max() == pytest.approx(1, abs=1e-3)  # the extent is the radius


def test_distances_are_lengths():
    # Next to the outline a step outwards of 0.01 changes the distance by 0.01.
    grid = np.linspace(-1.05, 1.05, 211, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    for shape in SHAPES:
        distance = DISTANCE[shape](x, y)
        slope = np.hypot(*np.gradient(distance, 0.01))
        near = slope[abs(distance) < 0.06]
        assert np.median(near) == pytest.approx(1, abs=0.01), shape
        assert near.max() < 1.15, shape


def test_a_turned_arrow_is_the_turned_picture():
    upright = draw(one("arrow"))[0]
    for rotation in (90, 180, 270):
        turned = draw(one("arrow", rotation=rotation))[0]
        np.testing.assert_array_equal(turned, np.rot90(upright, -rotation // 90))  # rot90 turns anticlockwise


def test_arrow_points_up():
    mask = masks(one("arrow", size="large"), 64)[0]
    widths = (mask > 0.5).sum(1)
    widths = widths[widths > 0]
    assert widths[:3].max() < widths[-3:].min() < widths.max()  # tip, shaft, head


def test_halved_keeps_the_left_half_and_cracked_splits():
    whole, halved = (masks(one("square", state=s), 64)[0] for s in ("whole", "halved"))
    np.testing.assert_allclose(halved[:, :32], whole[:, :32], atol=1e-6)
    assert halved[:, 32:].max() == 0
    for shape, size in itertools.product(SHAPES, SIZES):
        assert len(_parts(masks(one(shape, size=size, state="cracked"), 64)[0] > 0.5)) >= 2, (shape, size)


def _parts(mask):
    """Sizes of the 4-connected parts of a boolean mask."""
    left, sizes = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        stack, size = [left.pop()], 1
        while stack:
            r, c = stack.pop()
            for neighbour in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
                    size += 1
        sizes.append(size)
    return sizes


# --- several objects


def test_the_nearer_object_covers_the_farther_one():
    near, far = SceneObject("square", "red", x=0.45, depth=0), SceneObject("square", "blue", x=0.55, depth=1)
    for things in ((near, far), (far, near)):
        scene = Scene(things)
        np.testing.assert_array_equal(draw(scene, 100)[0, 50, 50], RGB["red"])
        shown, full = masks(scene, 100), masks(scene, 100, full=True)
        front, back = things.index(near), things.index(far)
        np.testing.assert_array_equal(shown[front], full[front])
        np.testing.assert_allclose(shown[back], full[back] * (1 - full[front]), atol=1e-6)
        assert shown[back, 50, 50] == 0 and full[back, 50, 50] == 1
        plane = depth(scene, 100)
        assert (plane[50, 35], plane[50, 65], plane[5, 5]) == pytest.approx((0, 0.2, 1))


def test_edges_lie_where_visible_masks_change():
    scene = Scene((SceneObject("circle", "red", "large", x=0.4, depth=1), SceneObject("square", "blue", x=0.6)))
    lines, shown = edges(scene, 128), masks(scene, 128)
    label = np.concatenate([shown, 1 - shown.sum(0, keepdims=True)]).argmax(0)
    change = np.zeros_like(lines, bool)
    change[:, 1:] |= label[:, 1:] != label[:, :-1]
    change[1:] |= label[1:] != label[:-1]
    assert _grown(lines > 0.3)[change].mean() > 0.99
    assert _grown(change)[lines > 0.3].mean() > 0.99
    assert lines[label == 0][20:].min() == 0


def _grown(mask):
    wide = np.pad(mask, 1)
    return np.any([wide[1 + i : wide.shape[0] - 1 + i, 1 + j : wide.shape[1] - 1 + j]
                   for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_hold_the_masks_tightly(shape, state):
    rng = random.Random(f"{shape} {state}")
    for rotation in ROTATIONS if shape in TURNABLE else (0,):
        scene = one(
            shape,
            state=state,
            size="large",
            rotation=rotation,
            x=rng.uniform(0.25, 0.75),
            y=rng.uniform(0.25, 0.75),
        )
        x0, y0, x1, y1 = boxes(scene)[0] * 256
        rows, columns = np.nonzero(masks(scene, 256)[0] > 0.5)
        slack = 20.0 if state == "cracked" else 3.0  # a crack may take a corner away; thin tips end early
        assert -0.1 < columns.min() + 0.5 - x0 < slack and -0.1 < x1 - columns.max() - 0.5 < slack
        assert -0.1 < rows.min() + 0.5 - y0 < slack and -0.1 < y1 - rows.max() - 0.5 < slack


def test_boxes_are_clipped_to_the_canvas():
    np.testing.assert_allclose(boxes(one("square", x=0.0, y=1.0)), [[0, 0.85, 0.15, 1]])


def test_layers_compose_to_the_picture():
    for scene in mixed(60, seed=3):
        if scene.style not in ("flat", "outline"):
            continue
        stack = layers(scene, 48).astype(float)
        assert len(stack) == len(scene.objects) + 1 + bool(scene.word)
        assert (stack[0, ..., 3] == 255).all()
        picture = stack[0, ..., :3]
        for layer in stack[1:]:
            share = layer[..., 3:] / 255
            picture = layer[..., :3] * share + picture * (1 - share)
        off = abs(picture - draw(scene, 48)[0])
        assert off.max() <= 2 + 0.5 * len(stack) and off.mean() < 0.5


def test_layers_follow_the_stacking():
    scene = Scene((SceneObject("square", "red", x=0.3), SceneObject("square", "blue", x=0.7, depth=2)))
    assert stacking(scene) == [1, 0]
    _, far, near = layers(scene, 40)
    np.testing.assert_array_equal(far[20, 28], [*RGB["blue"], 255])
    np.testing.assert_array_equal(near[20, 12], [*RGB["red"], 255])
    assert far[20, 12, 3] == near[20, 28, 3] == 0


# --- the picture


def test_a_batch_of_one_is_bit_equal_to_a_batch_of_many():
    scenes = mixed(130)
    many = draw(scenes)
    assert many.shape == (130, 64, 64, 3) and many.dtype == np.uint8
    for scene, picture in zip(scenes, many, strict=True):
        np.testing.assert_array_equal(draw(scene)[0], picture)
    np.testing.assert_array_equal(draw(scenes[::-1])[::-1], many)
    assert draw([]).shape == (0, 64, 64, 3)


def test_resolution_does_not_change_the_picture():
    scenes = mixed(40, seed=1)
    small = draw(scenes, 64).astype(float)
    large = draw(scenes, 192).astype(float).reshape(40, 64, 3, 64, 3, 3).mean((2, 4))
    off = abs(small - large).mean((1, 2, 3))
    assert off.max() < 4 and off.mean() < 1.5  # of 255; drawn at the wrong place or size it would be 20


@pytest.mark.parametrize("size", (16, 33, 100))
def test_every_resolution_from_16_up(size):
    assert draw(mixed(20, seed=2), size).shape == (20, size, size, 3)


@pytest.mark.parametrize("size", (0, 15, 4096))
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(SceneError, match="16 to 2048"):
        draw(one(), size)


VARIANTS = {
    "shape": [one(s) for s in SHAPES],
    "colour": [one(colour=c) for c in COLOURS],
    "size": [one(size=s) for s in SIZES],
    "texture": [one(texture=t) for t in TEXTURES],
    "state": [one(state=s) for s in STATES],
    "rotation": [one("heart", rotation=r) for r in ROTATIONS],
    "background": [one(background=b) for b in BACKGROUNDS],
    "style": [one(style=s) for s in STYLES],
    "light": [one(light=light) for light in LIGHTS],
    "word": [one(word=w) for w in ("", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "AB", "BA", "SHOWTELL")],
}


@pytest.mark.parametrize("attribute", VARIANTS)
def test_every_value_looks_different(attribute):
    pictures = draw(VARIANTS[attribute]).astype(int)
    for one_, other in itertools.combinations(pictures, 2):
        assert (abs(one_ - other).max(-1) > 50).sum() >= (2 if attribute == "word" else 8)


@pytest.mark.parametrize("background", ("white", "black", "meadow"))
@pytest.mark.parametrize("style", ("flat", "outline", "sepia", "night"))
def test_small_shapes_stay_apart(style, background):
    pictures = draw([one(s, "green", "small", background=background, style=style) for s in SHAPES]).astype(int)
    for one_, other in itertools.combinations(pictures, 2):
        assert (abs(one_ - other).max(-1) > 18).sum() >= 10


@pytest.mark.parametrize("colour", COLOURS)
def test_every_object_can_be_seen_on_every_background(colour):
    for background in BACKGROUNDS:
        pictures = draw([one(colour=colour, background=background), one(colour=colour, background=background, x=0.9)])
        change = abs(pictures[0].astype(int) - pictures[1])[:, :44].max(-1) > 24
        assert change.sum() >= 40, background


@pytest.mark.parametrize("texture", TEXTURES[1:])
def test_a_small_object_shows_two_periods_of_its_texture(texture):
    picture = draw(one("square", "blue", "small", texture))[0].astype(float)[26:38, 26:38, 0]
    most = max((np.diff((line > picture.mean()).astype(int)) != 0).sum() for line in (*picture, *picture.T))
    assert most >= 3  # at least two runs of either tone


@pytest.mark.parametrize("light, bright", [("left", np.s_[:, :32]), ("right", np.s_[:, 32:]),
                                           ("above", np.s_[:32]), ("below", np.s_[32:])])  # fmt: skip
def test_light_brightens_its_own_side(light, bright):
    lit, plain = (draw(one(colour="grey", size="large", light=way))[0].astype(float) for way in (light, "even"))
    change = (lit - plain).mean(-1)
    assert change[bright].sum() > 0 > change.sum() - change[bright].sum()


def test_mosaic_cells_are_the_same_at_any_resolution():
    small, large = (draw(one(style="mosaic", background="sky"), size)[0].astype(float) for size in (64, 256))
    tiles = large.reshape(32, 8, 32, 8, 3)[:, :7, :, :7]
    assert tiles.std((1, 3)).max() < 1
    np.testing.assert_allclose(tiles[:, 0, :, 0], small[::2, ::2], atol=1)


def test_a_word_is_legible_on_every_background():
    for background in BACKGROUNDS:
        picture = draw(one(word="HELLO", background=background, y=0.3))[0, 54:64].astype(float).mean(-1)
        assert picture.min() < 40 and picture.max() > 230


def test_drawing_twice_gives_the_same_bytes():
    scenes = mixed(30, seed=5)
    assert draw(scenes).tobytes() == draw(scenes).tobytes()
