"""Writing a base: in the Hugging Face layout, for everybody to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from showtell import files


def save_pipeline(pipeline: Any, target: str | Path) -> None:
    """A diffusers pipeline in bfloat16; its parts stay so."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, torch.bfloat16)  # diffusers' own warns of what it would keep in float32 to compute with
    pipeline.save_pretrained(target, safe_serialization=True)
    files.share(target)


def save_model(model: Any, beside: Any, target: str | Path) -> None:
    """A model as it is, with its tokenizer or processor."""
    model.save_pretrained(target)
    beside.save_pretrained(target)
    files.share(target)
