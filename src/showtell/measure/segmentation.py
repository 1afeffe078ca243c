"""How well maps of a scene's things, from whatever model, tell where the things are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.measure.scores import iou
from showtell.steer.segment import normalised
from showtell.world import Scene
from showtell.world.draw import masks, topmost

THRESHOLDS = tuple(0.05 * i for i in range(4, 16))


def labels(maps: Tensor, threshold: float, size: int) -> np.ndarray:
    """(size, size): of maps (k, height, width) the strongest after each is stretched to [0, 1], -1 (background) where
    none is as high as the threshold."""
    full = normalised(F.interpolate(maps[None], (size, size), mode="bilinear")[0])
    return torch.where(full.amax(dim=0) < threshold, -1, full.argmax(dim=0)).cpu().numpy()


def mean_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """In [0, 1], over the labels of the truth, the background's -1 among them. Both (height, width)."""
    return float(np.mean([iou(found == kind, truth == kind) for kind in np.unique(truth)]))


def segmented(maps: Sequence[Tensor], scenes: Sequence[Scene], threshold: float, size: int = 64) -> np.ndarray:
    """(n,): `mean_iou` of the `labels` of each scene's maps (its objects, height, width) with its exact masks."""
    each = zip(maps, scenes, strict=True)
    return np.array([mean_iou(labels(own, threshold, size), topmost(masks(scene, size))) for own, scene in each])


def best_threshold(maps: Sequence[Tensor], scenes: Sequence[Scene], thresholds: Sequence[float] = THRESHOLDS) -> float:
    """The threshold by which scenes, which are not those that are scored, are `segmented` best on the mean."""
    return max(thresholds, key=lambda threshold: segmented(maps, scenes, threshold).mean())
