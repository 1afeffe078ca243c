"""What choosing among training pairs needs: ranks, the best of a corpus, separation, duplicates, sharpness, variety."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
from PIL import Image, ImageFilter


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


def separating(high: Iterable[float], low: Iterable[float]) -> float:
    """The threshold that the largest shares of the high scores reach and of the low ones miss, summed (Youden)."""
    above, below = np.array([*high]), np.array([*low])
    values = np.unique([*above, *below])
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    told = [(above >= cut).mean() + (below < cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(told))])


def distinct(vectors: np.ndarray, quality: np.ndarray, alike: float = 0.97) -> list[int]:
    """Rows of unit vectors (n, d) without near duplicates: of each cluster the one of best quality stays."""
    kept: list[int] = []
    for i in np.argsort(-quality, kind="stable"):
        if not kept or (vectors[kept] @ vectors[i]).max() < alike:
            kept.append(int(i))
    return sorted(kept)


def sharpness(pictures: np.ndarray, median: int = 0) -> np.ndarray:
    """A generic measure of quality: the variance of the Laplacian of pictures (n, h, w, 3) uint8, (n,).

    median: side in pixels, an odd number, of a median filter before it, as noise passes for detail otherwise; 0: none.
    """
    if median:
        filtered = ImageFilter.MedianFilter(median)
        pictures = np.stack([np.asarray(Image.fromarray(picture).filter(filtered)) for picture in pictures])
    grey = pictures.astype(float).mean(-1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).var((1, 2))


def entropy(labels: Iterable[Hashable]) -> float:
    """Shannon's, in nats, of how often each label occurs; 0 of equal labels and of none."""
    counts = np.array(list(Counter(labels).values()), dtype=float)
    shares = counts / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum()) + 0.0  # never -0
