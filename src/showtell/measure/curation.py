"""What choosing among training pairs needs: ranks, the best of a corpus, separation, duplicates, sharpness."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 to 1; equal values share the mean of theirs."""
    below = (values[:, None] > values).sum(1)
    same = (values[:, None] == values).sum(1)
    return (below + (same - 1) / 2) / max(len(values) - 1, 1)


def best(scores: np.ndarray, share: float = 0.2) -> list[int]:
    """The rows of the best `share` of a corpus, in their order; at least one."""
    count = max(1, round(share * len(scores)))
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def auc(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Of every column of values (n, m): how often a good row has more than another one, ties counting half."""
    one, other = values[good][:, None], values[~good][None]
    return (one > other).mean((0, 1)) + (one == other).mean((0, 1)) / 2


def distinct(vectors: np.ndarray, quality: np.ndarray, alike: float = 0.97) -> list[int]:
    """Rows of unit vectors (n, d) without near duplicates: of each cluster the one of best quality stays."""
    kept: list[int] = []
    for i in np.argsort(-quality, kind="stable"):
        if not kept or (vectors[kept] @ vectors[i]).max() < alike:
            kept.append(int(i))
    return sorted(kept)


def sharpness(pictures: np.ndarray) -> np.ndarray:
    """A generic measure of quality: the variance of the Laplacian of pictures (n, h, w, 3)."""
    grey = pictures.astype(float).mean(-1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).var((1, 2))
