"""Keeping the best of what was drawn, and drawing each text by the model chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ShowtellError


def best_of(candidates: Sequence[Sequence[Any]], score: Callable[[Sequence[Any]], Any]) -> list[Any]:
    """Of several images for each of n texts the one with the highest score, the earliest of equals (arXiv 2102.12092).

    candidates: lists of n images, one for each text. score: such a list -> n numbers.
    Raises ShowtellError where there are no candidates.
    """
    if not candidates:
        raise ShowtellError("there are no candidates; draw 1 list of images or more.")
    marks = np.stack([np.asarray(score(images), dtype=float) for images in candidates])
    return [candidates[best][row] for row, best in enumerate(marks.argmax(axis=0))]


def routed(models: Mapping[str, Any], chosen: Sequence[tuple[str, str]], seed: int = 0, **more: Any) -> list[Any]:
    """An image for each (name of a model, prompt), in their order; the prompts of one model run together.

    models: name -> anything with a bridge's `generate`, which gets `more` too. Image i is drawn with the seed
    10,000 seed + i, whichever model draws it.
    """
    images: list[Any] = [None] * len(chosen)
    for name in dict.fromkeys(name for name, _ in chosen):
        rows = [i for i, (model, _) in enumerate(chosen) if model == name]
        seeds = [seed * 10_000 + i for i in rows]
        found = models[name].generate([chosen[i][1] for i in rows], seed=seeds, **more)
        for row, image in zip(rows, found, strict=True):
            images[row] = image
    return images
