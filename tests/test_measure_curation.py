"""Ranks, choices, separation, duplicates and sharpness, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.measure.curation import auc, best, distinct, entropy, ranks, separating, sharpness


def test_ranks_and_the_best() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 0.0, 9.0])).tolist() == [0.625, 0.25, 0.625, 0, 1]
    assert best(np.array([0.3, 0.9, 0.1, 0.9]), 0.5) == [1, 3] and best(np.array([1.0, 2.0]), 0.01) == [1]


def test_auc_by_hand() -> None:
    values = np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 1.0], [1.0, 1.0, 2.0], [0.0, 1.0, 0.5]])
    good = np.array([True, True, False, False])
    assert auc(values, good).tolist() == [1.0, 0.5, 0.25]


def test_thresholds_separate() -> None:
    assert separating([0.9, 0.8, 0.3], [0.2, 0.6]) == pytest.approx(0.7), "2/3 + 1; 0.25 gives 1 + 1/2"
    assert separating([0.5], [0.5]) == 0.5


def test_of_duplicates_the_best_stays() -> None:
    angles = np.radians([0, 5, 80, 84, 200])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert distinct(vectors, np.array([0.1, 0.9, 0.8, 0.2, 0.0])) == [1, 2, 4]
    assert distinct(vectors, np.zeros(5), alike=1.1) == [0, 1, 2, 3, 4]


def test_sharpness_by_hand() -> None:
    flat, edge = np.full((6, 6, 3), 9, np.uint8), np.zeros((6, 6, 3), np.uint8)
    edge[:, 3:] = 100  # the Laplacian is 100 left of the edge, -100 right of it, 0 elsewhere: two of four columns
    assert sharpness(np.stack([flat, edge])).tolist() == [0, 100**2 / 2]
    speck = flat.copy()
    speck[2, 2] = 200
    assert sharpness(speck[None])[0] > 0 == sharpness(speck[None], median=3)[0]


def test_entropy_by_hand() -> None:
    assert entropy("aaaa") == 0 == entropy([]) and entropy("abab") == pytest.approx(np.log(2))
    assert entropy([("a", 1), ("b", 2), ("a", 1), ("c", 3)]) == pytest.approx(1.5 * np.log(2))
