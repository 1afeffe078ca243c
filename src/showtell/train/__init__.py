"""Training: one trainer for every recipe and every paper, objectives, distillation, preferences, adapters.

    from showtell.train import Stream, fit
    result = fit(model, loss, Stream(make, batch_size=64, workers=2), steps=10_000, out="runs/mine")

Each name below loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showtell.train.batches import Batches as Batches
    from showtell.train.batches import Pool as Pool
    from showtell.train.batches import Stream as Stream
    from showtell.train.trainer import TrainResult as TrainResult
    from showtell.train.trainer import fit as fit

_LAZY = {
    "Batches": "batches",
    "Pool": "batches",
    "Stream": "batches",
    "TrainResult": "trainer",
    "fit": "trainer",
}
__all__ = ["Batches", "Pool", "Stream", "TrainResult", "fit"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'showtell.train' has no attribute {name!r}")
    return getattr(import_module(f"showtell.train.{_LAZY[name]}"), name)
