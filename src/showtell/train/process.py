"""What a training run does to its process and puts back: accelerate's state, random states, signals."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.overrides import TorchFunctionMode

from showtell.errors import ShowtellError

Numbers = Mapping[str, float]
_DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@contextmanager
def own_accelerator(precision: str) -> Iterator[Accelerator]:
    """An Accelerator of this run's own, in float32 where "bf16" would only be emulated. Global state is afterwards as
    it was: accelerate's, random, TF32."""
    shared = (AcceleratorState._shared_state, GradientState._shared_state)
    before = [dict(state) for state in shared]
    matmul, numpy_state, python_state = (
        torch.get_float32_matmul_precision(),
        np.random.get_state(),
        random.getstate(),
    )
    AcceleratorState._reset_state()  # accelerate refuses a second precision in one process otherwise
    GradientState._reset_state()
    try:
        # Left to itself, accelerate takes processes that torchrun started without a GPU for separate runs.
        launched = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
        if precision == "bf16" and not computes_in_bfloat16():
            precision = "no"
        accelerator = Accelerator(mixed_precision=precision, cpu=launched)
        if accelerator.distributed_type not in _DATA_PARALLEL:
            raise ShowtellError("the trainer runs in one process or data-parallel (DDP); sharding is not supported")
        on_cuda = accelerator.device.type == "cuda"
        if on_cuda:
            torch.set_float32_matmul_precision("high")  # TF32
        with torch.random.fork_rng([accelerator.device] if on_cuda else []):
            yield accelerator
        if on_cuda:
            accelerator.free_memory()  # collects garbage: 0.4 s, so only where memory is scarce
    finally:
        torch.set_float32_matmul_precision(matmul)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for state, values in zip(shared, before):
            state.clear()
            state.update(values)


def computes_in_bfloat16() -> bool:
    """Whether this machine's device has bfloat16 arithmetic. A processor that emulates it multiplies matrices seventy
    times slower than in float32 (measured with AVX2)."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        return device.type != "cuda" or torch.cuda.is_bf16_supported(False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Wide(TorchFunctionMode):
    """Within it, what rounds itself to bfloat16 to be faster is float32: the orthogonalisation of torch's Muon."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


def seed_everything(seed: int, number: int, device: torch.device) -> int:
    """Seeds every global generator for batch `number`, and gives the seed.

    Not by torch.manual_seed, which takes 0.2 ms: it formats a stack trace for devices not yet in use.
    """
    mixed = int(np.random.SeedSequence((seed, number, 1)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)
    return mixed


@contextmanager
def stop_signals(wanted: bool) -> Iterator[list[int]]:
    """SIGINT and SIGTERM go into the list; a second one acts as it did before."""
    received: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    for wanted_signal in (signal.SIGINT, signal.SIGTERM):
        before[wanted_signal] = signal.getsignal(wanted_signal) or signal.SIG_DFL
        signal.signal(wanted_signal, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reporter(shown: bool, first: int, steps: int) -> Iterator[Callable[[int, Numbers | None], None]]:
    """report(step, row or None) on stderr: a bar on a terminal, otherwise a line per row, or nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, start = Console(stderr=True), time.perf_counter()
    if not shown:
        yield lambda step, row: None
    elif console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=console, refresh_per_second=4) as bar:
            task = bar.add_task("", total=steps, completed=first)
            yield lambda step, row: bar.update(task, completed=step, description=_note(row) if row else None)
    else:

        def line(step: int, row: Numbers | None) -> None:
            if row is not None:
                left = (time.perf_counter() - start) / (step - first) * (steps - step)
                print(f"step {step}/{steps}  {_note(row)}  {left:.0f} s left", file=sys.stderr, flush=True)

        yield line


def _note(row: Numbers) -> str:
    scores = "".join(f"  {name} {value:.4g}" for name, value in row.items() if name.startswith("eval/"))
    return f"loss {row['loss']:.4f}  {row['samples_per_second']:.0f} samples/s{scores}"
