"""The packaged checkpoints: safetensors in the Hugging Face layout, one folder each, made by `showtell train NAME`."""

from __future__ import annotations

import os
from pathlib import Path

from showtell.errors import ShowtellError


def folder(name: str) -> Path:
    """Folder of the checkpoint `name`: in $SHOWTELL_WEIGHTS if it is there, otherwise the packaged one.

    Raises ShowtellError naming the command that trains it.
    """
    places = [Path(__file__).parent / name]
    if own := os.environ.get("SHOWTELL_WEIGHTS"):
        places.insert(0, Path(own) / name)
    for place in places:
        if place.is_dir():
            return place
    raise ShowtellError(f"no packaged weights {name!r}; train them with: showtell train {name} --out {places[0]}")
