"""Boxes with a margin, Gaussians on them, boxes as tensors and of others."""

from __future__ import annotations

import math

import pytest

from showtell.steer.boxes import bell, grown, nearest, numbered, of_others


def test_margins_end_at_the_edges() -> None:
    assert grown((0.0, 0.25, 0.5, 0.75), 0.25) == (0.0, 0.0, 0.75, 1.0)


def test_a_bell_by_hand() -> None:
    mask = bell((0.25, 0.25, 0.75, 0.75), floor=0.1, size=65)
    assert mask[32, 32] == 1 and mask[0, 0] == 0, "the middle, and what is filtered"
    away = (16 + 0.5) / 65 - 0.5
    assert float(mask[32, 16]) == pytest.approx(math.exp(-(away**2) / (2 * 0.25**2)), abs=1e-5)
    wide = bell((0.0, 0.4, 1.0, 0.6), size=65)
    assert wide[32, 60] > wide[45, 32] > 0, "as wide as its box"


def test_boxes_are_numbered_by_their_phrases() -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    names, where, label = numbered([{"ring": left, "dog": right}, {"dog": left}])
    assert names == ["dog", "ring"] and label.tolist() == [[1, 0], [0, -1]]
    assert where.tolist() == [[list(left), list(right)], [list(left), [0, 0, 1, 1]]]
    assert numbered([{}])[2].tolist() == [[-1]]


def test_boxes_of_others_are_as_many() -> None:
    boxes = [["a", "b"], ["c"], ["d", "e"], ["f", "g", "h"], ["i"]]
    assert of_others(boxes) == [["d", "e"], ["i"], ["a", "b"], ["f", "g", "h"], ["c"]]


def test_every_place_has_a_nearest_box() -> None:
    owner = nearest([(0.0, 0.0, 0.25, 0.25), (0.5, 0.0, 0.75, 0.5), (0.25, 0.75, 0.5, 1.0)], 8)
    assert (owner[:2, :2] == 0).all() and (owner[:4, 4:6] == 1).all() and (owner[6:, 2:4] == 2).all()
    assert owner[0, 7] == 1 and owner[7, 7] == 2 and owner[0, 2] == 0 and owner[0, 3] == 1
    over = nearest([(0.0, 0.0, 0.6, 1.0), (0.4, 0.0, 1.0, 1.0)], 10)
    assert over[5].tolist() == [0] * 5 + [1] * 5, "overlaps are divided"
