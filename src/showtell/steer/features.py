"""What the modules of a network are given and give, seen and changed while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

Before = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
After = Callable[[Any], Any]


@contextmanager
def features(
    model: torch.nn.Module, before: Mapping[str, Before] | None = None, after: Mapping[str, After] | None = None
) -> Iterator[None]:
    """Inside the `with`, functions see what modules of `model` are given and give. Other threads notice nothing.

    before: module name -> function of (arguments, keywords) that returns both anew, or None for as they are.
    after: module name -> function of the output that returns another, or None. For `Technique.around`.
    Raises AttributeError where the model has no such module.
    """
    thread, model = threading.get_ident(), getattr(model, "_orig_mod", model)

    def given(function: Before) -> Callable[..., Any]:
        return lambda module, args, kwargs: function(args, kwargs) if threading.get_ident() == thread else None

    def made(function: After) -> Callable[..., Any]:
        return lambda module, args, output: function(output) if threading.get_ident() == thread else None

    with ExitStack() as stack:
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code does not call new hooks
        for name, function in (before or {}).items():
            handle = model.get_submodule(name).register_forward_pre_hook(given(function), with_kwargs=True)
            stack.callback(handle.remove)
        for name, change in (after or {}).items():
            stack.callback(model.get_submodule(name).register_forward_hook(made(change)).remove)
        yield
