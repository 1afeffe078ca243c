"""Boxes with a margin, and Gaussians on them."""

from __future__ import annotations

import math

import pytest

from showtell.steer.boxes import bell, grown, nearest


def test_margins_end_at_the_edges() -> None:
    assert grown((0.0, 0.25, 0.5, 0.75), 0.25) == (0.0, 0.0, 0.75, 1.0)


def test_a_bell_by_hand() -> None:
    mask = bell((0.25, 0.25, 0.75, 0.75), floor=0.1, size=65)
    assert mask[32, 32] == 1 and mask[0, 0] == 0, "the middle, and what is filtered"
    away = (16 + 0.5) / 65 - 0.5
    assert float(mask[32, 16]) == pytest.approx(math.exp(-(away**2) / (2 * 0.25**2)), abs=1e-5)
    wide = bell((0.0, 0.4, 1.0, 0.6), size=65)
    assert wide[32, 60] > wide[45, 32] > 0, "as wide as its box"


def test_every_place_has_a_nearest_box() -> None:
    owner = nearest([(0.0, 0.0, 0.25, 0.25), (0.5, 0.0, 0.75, 0.5), (0.25, 0.75, 0.5, 1.0)], 8)
    assert (owner[:2, :2] == 0).all() and (owner[:4, 4:6] == 1).all() and (owner[6:, 2:4] == 2).all()
    assert owner[0, 7] == 1 and owner[7, 7] == 2 and owner[0, 2] == 0 and owner[0, 3] == 1
    over = nearest([(0.0, 0.0, 0.6, 1.0), (0.4, 0.0, 1.0, 1.0)], 10)
    assert over[5].tolist() == [0] * 5 + [1] * 5, "overlaps are divided"
