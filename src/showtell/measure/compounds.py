"""Whether compound instructions of the narrow world (`train.narrow_edits`) were carried out, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from showtell.measure.scores import read
from showtell.train.narrow_edits import Compound, facts


def done(images: Any, asked: Sequence[Compound], judge: str = "first") -> np.ndarray:
    """(n,) in [0, 1]: the share of the sub-instructions that the judge's network sees carried out."""
    each = zip(_seen(images, judge), asked, strict=True)
    return np.array([np.mean([scene.get(k) == v for k, v in one.asked.items()]) for scene, one in each])


def kept(images: Any, asked: Sequence[Compound], judge: str = "first") -> np.ndarray:
    """(n,) in [0, 1]: the share of what nobody asked to change that is as it was."""
    left = [{k: v for k, v in facts(one.before).items() if k not in one.asked} for one in asked]
    assert all(left), "something is to stay as it is"
    each = zip(_seen(images, judge), left, strict=True)
    return np.array([np.mean([scene.get(k) == v for k, v in before.items()]) for scene, before in each])


def _seen(images: Any, judge: str) -> list[dict[str, str]]:
    return [facts(scene) if scene.objects else {} for scene in read(images, judge, fast=True)]
