"""The packaged checkpoints: safetensors in the Hugging Face layout, one folder each, made by `showtell train NAME`."""

from __future__ import annotations

from pathlib import Path

from showtell.errors import ShowtellError


def folder(name: str) -> Path:
    """Folder of the packaged checkpoint `name`. Raises ShowtellError naming the command that trains it."""
    path = Path(__file__).parent / name
    if not (path / "config.json").is_file():
        raise ShowtellError(f"no packaged weights {name!r}; train them with: showtell train {name} --out {path}")
    return path
