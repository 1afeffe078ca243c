"""What a call costs: seconds, network evaluations, floating-point operations, peak memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from showtell.errors import ShowtellError


@dataclass(frozen=True)
class Cost:
    """seconds: of wall time, the least over the repetitions. nfe: calls of the network (for images that were sampled
    together one call serves all). rows: samples in these calls; guidance doubles them. flops: floating-point
    operations of matrix products, convolutions and attention (a multiply-add is two). memory: bytes, the most that
    tensors made by the call held at one time, weights not counted."""

    seconds: float
    nfe: int
    rows: int
    flops: int
    memory: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def cost(call: Callable[[], Any], networks: Any = (), repeat: int = 1, warm: bool = True) -> Cost:
    """What `call()` costs. It is run 3 + `repeat` times (2 + `repeat` unless `warm`), so it must be repeatable.

    networks: the module or modules whose calls are counted as evaluations (a bridge's denoiser: `network_of(bridge)`).
    repeat: timed runs, without any instrument. warm: a first run that is not timed.
    Raises ShowtellError for repeat below 1.
    """
    if repeat < 1:
        raise ShowtellError(f"repeat={repeat}; time the call at least once")
    if warm:
        call()
    seconds = min(_timed(call) for _ in range(repeat))
    modules = [networks] if isinstance(networks, nn.Module) else list(networks)
    with counted(modules) as calls, FlopCounterMode(display=False) as counter:
        call()
    return Cost(seconds, len(calls), sum(calls), counter.get_total_flops(), peak_memory(call))


def spent() -> float:
    """A clock in seconds, to take differences of: processor time of this process, which leaves out what others compute;
    wall time where a GPU does the work."""
    if torch.cuda.is_available():
        _wait()
        return time.perf_counter()
    return time.process_time()


def _timed(call: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Work on a GPU goes on after the call has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def counted(networks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """A list that gets the number of samples (first dimension of the first tensor given) of every call inside.

    Calls of a network made by another one of the list count too, so list outermost modules only.
    """
    calls: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim)
        calls.append(len(next(given, ())) or 1)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in networks]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of one run of `call()`: `Cost.flops` without the other runs that `cost` makes."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_memory(call: Callable[[], Any]) -> int:
    """Bytes: the most that tensors made during `call()` held at one time, on all devices together."""
    with _Live() as live:
        call()
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tree_map_only(torch.Tensor, partial(self._note, made=False), (args, kwargs))
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, partial(self._note, made=True), out)
        return out

    def _note(self, tensor: torch.Tensor, made: bool) -> None:
        """made: by this operation; storages first met as an input were there before, views of them are no new ones."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self.known:
            return
        size = storage.nbytes() if made else 0
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def network_of(bridge: Any) -> nn.Module:
    """The network that a bridge evaluates at every step: its denoiser, or the one model it has.

    Raises ShowtellError for a bridge without one.
    """
    for holder, name in ((getattr(bridge, "adapter", None), "denoiser"), (bridge, "model")):
        found = getattr(holder, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ShowtellError(f"{getattr(bridge, 'name', bridge)} has no network to count; pass the module itself")


def parameters(*modules: nn.Module) -> int:
    """Numbers in the weights of the modules, shared ones once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())
