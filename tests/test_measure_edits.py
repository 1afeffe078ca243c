"""Edit success and preservation by hand, on every kind of edit, and through the judge."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from showtell.errors import ShowtellError
from showtell.measure.edits import (
    alone,
    changed_outside,
    edit_mask,
    edited,
    harmonic,
    kept_pixels,
    locate,
    outside_psnr,
    preserved,
    rebuilt_psnr,
    success,
)
from showtell.measure.prompts import prompt_set
from showtell.world import Scene, SceneObject, draw, sample
from showtell.world.edits import KINDS, Edit, edits

RING = SceneObject("ring", "red", x=0.2, y=0.5)
STAR = SceneObject("star", "blue", x=0.8, y=0.5)
HEART = SceneObject("heart", "pink", x=0.5, y=0.2)
BEFORE = Scene((RING, STAR))
ITEMS = 2 + 4  # two objects; background, style, light and word


def edit(kind: str, wanted: str = "", scene: Scene = BEFORE) -> Edit:
    """An edit of the kind whose instruction contains the words."""
    for seed in range(300):
        for found in edits(scene, random.Random(seed), (kind,)):
            if wanted in found.instruction:
                return found
    raise AssertionError(f"no {kind} with {wanted!r}")


def with_ring(**facts) -> Scene:
    return Scene((replace(RING, **facts), STAR))


def test_exact_edits_are_perfect_and_no_edit_is_none() -> None:
    seen = set()
    for scene in sample(60, 9, "validation", (1, 4), texture="solid", state="whole", style="flat"):
        for one in edits(scene, random.Random(scene.caption()), n=3):
            seen.add(one.kind)
            assert (success(one, one.after), preserved(one, one.after)) == (1, 1), one.instruction
            assert (success(one, one.before), preserved(one, one.before)) == (0, 1), one.instruction
            assert edited(one, one.after) == harmonic(one, one.after) == 1 and edited(one, one.before) == 0
    assert seen == set(KINDS)


def test_recolour_by_hand() -> None:
    one = edit("recolour", "make the ring green")
    assert success(one, with_ring(colour="green")) == 1 and success(one, with_ring(colour="cyan")) == 0
    # the colour is right, the shape is lost: asked for is what was asked for, the rest is preservation
    lost = with_ring(colour="green", shape="frame")
    assert success(one, lost) == 1 and preserved(one, lost) == pytest.approx(1 - 1 / ITEMS)
    both = Scene((replace(RING, colour="green"), replace(STAR, colour="green")), background="sky")
    assert success(one, both) == 1 and preserved(one, both) == pytest.approx(1 - 2 / ITEMS)
    assert harmonic(one, both) == pytest.approx(2 * (4 / 6) / (1 + 4 / 6)) and edited(one, both) == pytest.approx(4 / 6)


def test_removal_by_hand() -> None:
    one = edit("remove", "the ring")
    assert success(one, Scene((STAR,))) == 1 and preserved(one, Scene((STAR,))) == 1
    assert success(one, BEFORE) == 0
    assert success(one, Scene((replace(RING, colour="white"), STAR))) == 1  # another thing in its place ...
    assert preserved(one, Scene((replace(RING, colour="white", shape="oval"), STAR))) == pytest.approx(
        5 / 6
    )  # is extra
    assert preserved(one, Scene((replace(RING, x=0.5),))) == pytest.approx(4 / 6)  # the star is gone, a ring is new


def test_addition_by_hand() -> None:
    one = edit("add", "left of the star")
    new = one.after.objects[-1]
    assert success(one, Scene((RING, STAR, replace(new, x=0.1, y=0.45)))) == 1
    assert success(one, Scene((RING, STAR, replace(new, x=0.95, y=0.5)))) == 0  # on the wrong side
    wrong = replace(new, colour="grey" if new.colour != "grey" else "brown")
    assert success(one, Scene((RING, STAR, wrong))) == 0 and preserved(one, Scene((RING, STAR, wrong))) == 1
    assert preserved(one, Scene((RING, STAR, new, HEART))) == pytest.approx(6 / 7)


def test_moves_by_hand() -> None:
    one = edit("move", "the ring to the bottom right")
    assert success(one, with_ring(x=0.8, y=0.85)) == 1 and preserved(one, with_ring(x=0.8, y=0.85)) == 1
    assert success(one, with_ring(x=0.8, y=0.15)) == 0 and preserved(one, with_ring(x=0.8, y=0.15)) == 1
    assert preserved(one, Scene((replace(RING, x=0.8, y=0.85), replace(STAR, x=0.6)))) == pytest.approx(5 / 6)


def test_counts_backgrounds_and_styles_by_hand() -> None:
    three = Scene((RING, replace(RING, x=0.5), STAR))
    one = edit("count", "rings to 1", three)
    assert success(one, BEFORE) == 1 and success(one, three) == 0
    back = edit("background")
    there = replace(BEFORE, background=str(back.operation.value))
    assert (success(back, there), preserved(back, there), success(back, BEFORE)) == (1, 1, 0)
    assert preserved(back, replace(there, objects=(RING,))) == pytest.approx(4 / 5)  # two objects, three other settings
    style = edit("restyle")
    assert success(style, replace(BEFORE, style=str(style.operation.value))) == 1


def test_locating_by_hand() -> None:
    """One seen object for each, by look and nearness together."""
    green = replace(RING, colour="green")
    assert locate([RING], [STAR, green]) == [green]
    assert locate([RING, replace(RING, x=0.8)], [replace(RING, x=0.75), replace(RING, x=0.25)]) == [
        replace(RING, x=0.25), replace(RING, x=0.75),
    ]  # fmt: skip
    assert locate([RING], [replace(HEART, x=0.9, y=0.9)]) == [None] and locate([RING], []) == [None]
    far = replace(RING, x=0.95, y=0.95)
    assert locate([RING], [far], free=[0]) == [far]


def test_masks_cover_what_changes() -> None:
    one = edit("recolour", "make the ring green")
    mask = edit_mask(one)
    changed = np.abs(draw(one.before)[0].astype(int) - draw(one.after)[0]).max(axis=-1) > 2
    assert changed.sum() > 50 and mask[changed].all() and not mask[:, 40:].any() and mask.mean() < 0.3
    assert edit_mask(edit("background")).mean() > 0.8


def test_what_changes_alone() -> None:
    one = edit("recolour", "make the ring green", replace(BEFORE, background="black"))
    before, after = alone(one)
    assert before.caption() == "a red ring" and after.caption() == "a green ring"


def test_rebuilt_by_hand() -> None:
    exact = draw([BEFORE, BEFORE])
    spoilt = exact.astype(int)
    spoilt[1] += np.where(spoilt[1] > 127, -51, 51)
    found = rebuilt_psnr(spoilt.astype(np.uint8), exact)
    assert found.tolist() == [60, pytest.approx(20 * np.log10(5), abs=0.001)]


def test_pixels_outside_by_hand() -> None:
    one = edit("recolour", "make the ring green")
    exact = draw([one.after])
    assert outside_psnr(exact, [one]).tolist() == [60] and kept_pixels(exact, [one]).tolist() == [1]
    spoilt = exact.astype(int)
    spoilt += np.where(spoilt > 127, -51, 51)
    assert outside_psnr(spoilt.astype(np.uint8), [one])[0] == pytest.approx(20 * np.log10(5), abs=0.001)
    assert kept_pixels(spoilt.astype(np.uint8), [one])[0] == pytest.approx((20 * np.log10(5) - 10) / 30, abs=0.001)
    inside = exact.copy()
    inside[0][edit_mask(one)] = 0
    assert outside_psnr(inside, [one]).tolist() == [60]  # inside the mask anything may be
    style = edit("restyle", "night")
    assert np.isnan(outside_psnr(draw([style.after]), [style])[0])  # everything changes


def test_through_the_judge_right_edits_score_higher() -> None:
    prompts = prompt_set("edits", 6, 3, "validation")
    for name in ("success", "edited"):
        metric = getattr(prompts, name)
        assert metric(prompts.renders).mean() > 0.85 > 0.2 > metric(prompts.sources).mean(), name
    assert prompts.preserved(prompts.sources).mean() > 0.9
    others = prompts.sources[1:] + prompts.sources[:1]
    assert prompts.preserved(others).mean() < 0.75 and np.nanmean(prompts.kept_pixels(others)) < 0.6
    assert np.nanmin(prompts.kept_pixels(prompts.sources)) == 1
    with pytest.raises(ShowtellError, match="one image per edit"):
        prompts.success(prompts.sources[:3])


def test_change_outside_of_a_box_by_hand() -> None:
    before = np.zeros((2, 4, 4, 3), np.uint8)
    after = before.copy()
    after[:, :, :2] = 255
    after[1, 0, 3] = 51
    left, whole = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0)
    assert changed_outside(before, after, [left, left]).tolist() == [0.0, pytest.approx(0.2 / 8)]
    found = changed_outside(before, after, [(0.5, 0.0, 1.0, 1.0), whole])
    assert found[0] == 1 and np.isnan(found[1])
