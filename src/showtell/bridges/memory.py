"""Gradients through a denoiser within a stated amount of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


class Saved:
    """What autograd keeps of an evaluation, in bytes: every memory once, weights not at all."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.bytes = 0
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


@contextmanager
def within(model: torch.nn.Module, budget: int) -> Iterator[Saved]:
    """From where autograd has kept `budget` bytes, feed-forward layers and residual blocks are computed again in the
    backward pass instead of being kept (arXiv 1604.06174). Gradients stay the same.

    Attention is always kept: techniques look at it and edit it, once. So a budget is not a promise: a small one leaves
    what attention needs. Blocks hold their inputs, so every tensor is counted while it is alive.
    """
    saved, blocks = Saved(model), [module for module in model.modules() if _recomputable(module)]
    for block in blocks:
        block.forward = partial(_forward, block.forward, saved, budget)
    try:
        with saved_tensors_hooks(saved.keep, _same):
            yield saved
    finally:
        for block in blocks:
            del block.forward


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _forward(forward: Any, saved: Saved, budget: int, *args: Any, **kwargs: Any) -> Any:
    if saved.bytes < budget or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _recomputable(module: torch.nn.Module) -> bool:
    """Blocks of diffusers without attention in them, whose forward nothing has replaced yet."""
    names = ("FeedForward", "ResnetBlock", "MochiFeedForward", "LuminaFeedForward")
    return type(module).__name__.startswith(names) and "forward" not in vars(module)
