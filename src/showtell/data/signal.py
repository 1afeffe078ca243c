"""Pictures as the networks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.pictures import letterbox, to_pil


def signal(images: Any, size: int = 64, device: Any = None) -> Tensor:
    """Anything that holds RGB images -> (n, 3, size, size) in [-1, 1], letterboxed on white where not square."""
    array = np.stack([np.asarray(letterbox(picture, size)) for picture in to_pil(images)])
    return to_signal(torch.from_numpy(array)).to(device or "cpu")


def to_signal(pixels: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) -> float (n, 3, h, w) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """float (n, 3, h, w) in [-1, 1], cut off beyond -> uint8 (n, h, w, 3)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
