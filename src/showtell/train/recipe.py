"""What `showtell train NAME` needs to know of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
MUON = {"optimizer": "muon", "weight_decay": 0.1}  # what small transformers learn fastest with


@dataclass(frozen=True)
class Recipe:
    """model() makes the network, data(source) the batch maker (rng, size) -> arrays, loss is the objective.

    steps, batch, lr: what the packaged checkpoint took. finish(model): what is left to do before the weights are
    written. options: further keywords of `train.trainer.fit`.
    """

    about: str
    model: Callable[[], Any]
    data: Callable[[str], Callable[[np.random.Generator, int], Batch]]
    loss: Callable[..., Any]
    steps: int
    batch: int
    lr: float
    text: bool = False
    sources: tuple[str, ...] = ("scenes",)
    finish: Callable[[Any], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
