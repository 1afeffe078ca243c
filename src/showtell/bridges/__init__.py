"""Bridges between language and vision: every architecture behind one interface, techniques that attach to
all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Bridge as Bridge
    from .base import Technique as Technique
    from .loading import load as load

# Lazy, so that importing the package imports neither torch nor diffusers.
_HOME = {"Bridge": "base", "Technique": "base", "Run": "base", "Text": "base", "load": "loading"}
__all__ = ["Bridge", "Technique", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
