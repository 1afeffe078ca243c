"""How far the judges can be trusted: accuracy on clean and spoilt renders, calibration, agreement of the two."""

from __future__ import annotations

import numpy as np

from showtell.data.degrade import KINDS, degrade
from showtell.measure.judge import JUDGES, Judge, SceneScores, compare, load_judge
from showtell.world import Scene, draw, sample


def reading_scores(judge: Judge, images: np.ndarray, scenes: list[Scene]) -> tuple[SceneScores, np.ndarray]:
    """(scores per image, the judge's own confidence per image)."""
    read = judge.read(images)
    rows = np.array([compare(a, b.scene) for a, b in zip(scenes, read, strict=True)])
    return SceneScores(*rows.T), np.array([b.confidence for b in read])


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 5) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, how many) of equally filled bins of rising confidence."""
    order = np.array_split(np.argsort(confidence), bins)
    return [(float(confidence[i].mean()), float(right[i].mean()), len(i)) for i in order if len(i)]


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 5) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over the bins."""
    parts = calibration(confidence, right, bins)
    return sum(abs(c - r) * n for c, r, n in parts) / len(right)


def judge_figures(n: int = 200, seed: int = 0, split: str = "test") -> dict[str, dict[str, float]]:
    """A row per kind of picture: whole scenes right for both judges, how often they agree, and calibration errors.

    Pictures: clean renders with 1-4 and with 5 objects, combinations of shape and colour that no training saw, and the
    first kind spoilt in each way of `showtell.data.degrade`. n of each.
    """
    scenes = sample(n, seed, split, (1, 4))
    images = draw(scenes)
    kinds = {"clean, 1-4 objects": (scenes, images)}
    five = sample(n, seed, split, 5)
    kinds["clean, 5 objects"] = (five, draw(five))
    unseen = sample(n, seed, "unseen", (1, 4))
    kinds["clean, unseen combinations"] = (unseen, draw(unseen))
    rng = np.random.default_rng(seed)
    kinds |= {f"{kind}, 1-4 objects": (scenes, degrade(images, rng, kinds=(kind,))) for kind in KINDS}
    return {name: _row(*pair) for name, pair in kinds.items()}


def _row(scenes: list[Scene], images: np.ndarray) -> dict[str, float]:
    row, read = {}, []
    for name in JUDGES:
        judge = load_judge(name)
        scores, confidence = reading_scores(judge, images, scenes)
        row[f"{name}: whole scene"] = float(scores.whole.mean())
        row[f"{name}: attributes"] = float(scores.attributes.mean())
        row[f"{name}: calibration error"] = calibration_error(confidence, scores.whole)
        read.append(scores.whole)
    row["agreement"] = float((read[0] == read[1]).mean())
    return row
