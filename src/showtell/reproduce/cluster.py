"""Experiments spread over a Ray cluster: one task per paper, the same results as one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from showtell.errors import ShowtellError
from showtell.papers import Paper
from showtell.reproduce.many import attempt
from showtell.reproduce.runner import Result, Settings


def spread(papers: Sequence[Paper], settings: Settings, address: str = "auto") -> Iterator[Result]:
    """Results as they come in, from the workers of the cluster at `address`; "local" starts one on this machine.

    Workers need the package and its weights; they keep arms in their own cache folder and write to no ledger. The
    number of threads a task may use is left to the worker's environment (OMP_NUM_THREADS).
    Raises ShowtellError: Ray is not installed, or there is no cluster at that address.
    """
    try:
        import ray
    except ImportError:
        raise ShowtellError("--ray needs Ray: pip install 'showtell[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        task = ray.remote(num_cpus=1, max_retries=1)(_attempt)
        pending = [task.remote(paper, settings, _environment()) for paper in papers]
        while pending:
            [done], pending = ray.wait(pending)
            yield ray.get(done)
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise ShowtellError(f"no Ray cluster at {address!r}: {line}; start one with: ray start --head") from None


def _environment() -> dict[str, str]:
    """Where weights and results are, for workers on this machine."""
    names = ("SHOWTELL_CACHE", "SHOWTELL_WEIGHTS", "OMP_NUM_THREADS")
    return {name: os.environ[name] for name in names if name in os.environ}


def _attempt(paper: Paper, settings: Settings, environment: dict[str, str]) -> Result:
    os.environ.update(environment)
    return attempt(paper, settings)
