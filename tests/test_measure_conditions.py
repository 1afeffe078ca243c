"""Conditions of single objects: whole or as far as they are seen."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.errors import ShowtellError
from showtell.measure.conditions import condition, edges_and_masks
from showtell.world import Scene, SceneObject


def test_alone_and_among_others() -> None:
    near, far = (
        SceneObject("circle", "red", x=0.45, y=0.5, depth=0),
        SceneObject("square", "blue", x=0.6, y=0.5, depth=1),
    )
    scene = Scene((near, far))
    whole, visible = (condition(scene, [1], "mask", alone) for alone in (True, False))
    assert whole.shape == (64, 64, 3) and set(np.unique(whole)) == {0, 255}
    assert ((whole > 0) >= (visible > 0)).all() and (whole > 0).sum() > 1.1 * (visible > 0).sum(), "hidden in part"
    assert (condition(scene, [0], "mask", True) == condition(scene, [0], "mask", False)).all(), "the nearer one is not"
    alone, among = (condition(scene, [0], "edges", one) for one in (True, False))
    assert 0 < (alone > 0).sum() < (condition(scene, [0], "mask", True) > 0).sum() and (among > 0).any()
    with pytest.raises(ShowtellError, match="'depth'"):
        condition(scene, [0], "depth", True)


def test_one_object_by_its_edges_the_other_by_its_mask() -> None:
    scenes = [Scene.parse("a red ring left of a blue star")] * 8
    found = edges_and_masks(scenes, True, 0)
    first = [(pair[0] == condition(scenes[0], [0], "edges", True)).all() for pair in found]
    assert 0 < sum(first) < 8, "which one is left to chance"
    for edges_of_first, pair in zip(first, found, strict=True):
        assert (pair[1] == condition(scenes[0], [int(edges_of_first)], "mask", True)).all()
