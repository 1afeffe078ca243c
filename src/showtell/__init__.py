"""showtell: shows what you say (images, video, edits) and tells what you show (captions, answers, scores).

    import showtell
    bridge = showtell.load()                        # the embedded model, both directions
    images = bridge.generate(["a red circle above a blue square"], seed=0)
    captions = bridge.caption(images)

Importing showtell is cheap: torch, diffusers and transformers come in when a name below is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from showtell.errors import ShowtellError, UnsupportedError

if TYPE_CHECKING:
    from showtell.bridges import load as load
    from showtell.bridges.base import Bridge as Bridge
    from showtell.bridges.base import Technique as Technique
    from showtell.measure.judge import score as score

__version__ = "0.1.0"
__all__ = ["Bridge", "ShowtellError", "Technique", "UnsupportedError", "__version__", "load", "score"]

_LAZY = {
    "load": "showtell.bridges",
    "Bridge": "showtell.bridges.base",
    "Technique": "showtell.bridges.base",
    "score": "showtell.measure.judge",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'showtell' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
