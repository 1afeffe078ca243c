"""Training data as a pure function: batch number `index` of the draw `seed` is always the same batch.

So a run goes on exactly where it was killed without replaying what it had seen, any number of workers makes
the same batches, and each process of a distributed run asks for batches of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from showtell.errors import ShowtellError

Batch = dict[str, Any]  # numpy arrays or tensors whose first axis is the batch; lists of strings pass through


class Batches(Protocol):
    """What `fit` trains on; a plain function will do.

    Attributes that count if present: `workers`, processes that make batches ahead of time (0), `prefetch`,
    batches ahead for each (2), `batch_size`, samples per batch (the length of the batch's first entry).
    """

    def __call__(self, index: int, seed: int, /) -> Batch:
        """Batch number `index`, 0 and up; it must depend on nothing but its two arguments."""
        ...


class Stream:
    """Endless data: batch `index` is make(generator, batch_size) with a generator seeded by (seed, index).

    `make` must draw all its randomness from that generator. With `workers` it runs in worker processes.
    """

    def __init__(
        self,
        make: Callable[[np.random.Generator, int], Batch],
        batch_size: int,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        if batch_size < 1 or workers < 0 or prefetch < 1:
            raise ShowtellError("a Stream needs batch_size >= 1, workers >= 0 and prefetch >= 1")
        self.make, self.batch_size, self.workers, self.prefetch = make, batch_size, workers, prefetch

    def __call__(self, index: int, seed: int) -> Batch:
        return self.make(np.random.default_rng((seed, index)), self.batch_size)


class Pool:
    """In-memory data: rows of `arrays` (name -> N rows), every row once per epoch, in a new order each epoch.

    Epochs follow one another without a gap, so a batch may end one and begin the next.
    transform(batch, generator) may augment a batch; its generator is seeded by (seed, index) and must be its
    only randomness.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        batch_size: int,
        transform: Callable[[Batch, np.random.Generator], Batch] | None = None,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ShowtellError(f"a Pool needs arrays of one length of at least 1; these have {lengths}")
        if batch_size < 1 or workers < 0 or prefetch < 1:
            raise ShowtellError("a Pool needs batch_size >= 1, workers >= 0 and prefetch >= 1")
        self.arrays, self.rows, self.transform = dict(arrays), next(iter(lengths.values())), transform
        self.batch_size, self.workers, self.prefetch = batch_size, workers, prefetch

    def __call__(self, index: int, seed: int) -> Batch:
        epochs, places = np.divmod(index * self.batch_size + np.arange(self.batch_size), self.rows)
        parts = [_order(seed, int(e), self.rows)[places[epochs == e]] for e in np.unique(epochs)]
        rows = np.concatenate(parts)
        batch = {name: array[rows] for name, array in self.arrays.items()}
        return self.transform(batch, np.random.default_rng((seed, index))) if self.transform else batch


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, rows)).permutation(rows)


class _Numbered(Dataset):
    def __init__(self, batches: Batches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def __getitem__(self, index: int) -> Batch:
        return self.batches(index, self.seed)


def iterate(batches: Batches, seed: int, indices: range, pin: bool = False) -> Iterator[Batch]:
    """The batches of these numbers in order, as tensors; made in worker processes if `batches` says so."""
    workers = getattr(batches, "workers", 0)
    loader: DataLoader = DataLoader(
        _Numbered(batches, seed),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=getattr(batches, "prefetch", 2) if workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
        pin_memory=pin,
    )
    return iter(loader)


def _leave_signals_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the trainer ends its step
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler, which a forked worker inherits
