"""Pictures as the networks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from showtell.pictures import letterbox, to_pil


def signal(images: Any, size: int = 64, device: Any = None) -> torch.Tensor:
    """Anything that holds RGB images -> (n, 3, size, size) in [-1, 1], letterboxed on white where not square."""
    array = np.stack([np.asarray(letterbox(picture, size)) for picture in to_pil(images)])
    return (torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1).to(device or "cpu")
