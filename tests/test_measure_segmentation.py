"""Labels, overlaps and thresholds of segmentations, by hand and on exact masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from showtell.measure.segmentation import best_threshold, labels, mean_iou, segmented
from showtell.world import Scene
from showtell.world.draw import masks


def test_labels_and_overlaps_by_hand() -> None:
    maps = torch.tensor([[[1.0, 0.5, 0.0]] * 3, [[0.0, 0.125, 1.0]] * 3])
    assert labels(maps, 0.6, 3)[1].tolist() == [0, -1, 1]
    truth = np.array([[-1, 0], [0, 1]])
    assert mean_iou(truth, truth) == 1
    assert mean_iou(np.array([[0, 0], [0, 1]]), truth) == pytest.approx((0 + 2 / 3 + 1) / 3)


def test_exact_masks_are_right_and_others_are_not() -> None:
    scenes = [Scene.parse("a red ring left of a blue star"), Scene.parse("a green square above a red circle")]
    exact = [torch.from_numpy(masks(scene)) for scene in scenes]
    assert segmented(exact, scenes, 0.5).tolist() == pytest.approx([1, 1], abs=0.02)
    swapped = segmented([one.flip(0) for one in exact], scenes, 0.5)
    assert (swapped < 0.5).all(), "only the background is right"
    hazy = [0.5 + one / 2 for one in exact]  # stretched to [0, 1] again
    assert np.allclose(segmented(hazy, scenes, 0.5), segmented(exact, scenes, 0.5))
    spread = [one + 0.3 * (1 - one) * torch.rand(one.shape, generator=torch.manual_seed(0)) for one in exact]
    assert best_threshold(spread, scenes, (0.1, 0.6)) == 0.6
