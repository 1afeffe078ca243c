"""A training run on disk: tensors and JSON in one safetensors file, so that nothing in it can be executed.

The file is replaced in one step (the old one stays until the new one is whole) and carries a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from showtell import files
from showtell.errors import ShowtellError

NAME = "checkpoint.safetensors"


def save(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Writes tensors and state (anything JSON can hold) to folder/checkpoint.safetensors in one step."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    text = json.dumps(state)
    metadata = {"state": text, "sha256": _digest(copies, text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{NAME}.*"):  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise ShowtellError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from None
    return files.write(folder / NAME, serialise(copies, metadata))


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """(tensors on the CPU, state), or None where the folder holds no checkpoint.

    Raises ShowtellError: the file is not a safetensors checkpoint of this trainer, or its checksum is wrong.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata["sha256"] != _digest(tensors, metadata["state"]):
            raise ValueError("its checksum is wrong")
        return tensors, json.loads(metadata["state"])
    except KeyError:
        reason = "it was not written by this trainer"
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error) or type(error).__name__
    raise ShowtellError(f"the checkpoint {path} is damaged: {reason}; remove it to start afresh")


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
