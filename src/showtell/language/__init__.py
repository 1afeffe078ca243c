"""Language models behind one interface: the embedded grammar, OpenAI-compatible endpoints, local transformers models.

from showtell import language
lm = language.load()                        # the embedded grammar: no network, deterministic
lm.plan_layout("a red ring left of a blue star").boxes
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import LanguageModel as LanguageModel
    from .grammar import GrammarModel as GrammarModel
    from .loading import load as load
    from .local import LocalModel as LocalModel
    from .remote import RemoteModel as RemoteModel
    from .results import Altered as Altered
    from .results import Critique as Critique
    from .results import Entity as Entity
    from .results import Layout as Layout
    from .results import Link as Link
    from .results import Mismatch as Mismatch
    from .results import Placed as Placed
    from .results import Span as Span
    from .results import Split as Split

# Lazy: pydantic, torch, transformers and openai come in with what needs them.
_RESULTS = ("Altered", "Critique", "Entity", "Layout", "Link", "Mismatch", "Placed", "Span", "Split")
_HOME = {
    "load": "loading", "LanguageModel": "base", "GrammarModel": "grammar", "LocalModel": "local",
    "RemoteModel": "remote", **dict.fromkeys(_RESULTS, "results"),
}  # fmt: skip
__all__ = [
    "Altered", "Critique", "Entity", "GrammarModel", "LanguageModel", "Layout", "Link", "LocalModel", "Mismatch",
    "Placed", "RemoteModel", "Span", "Split", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
