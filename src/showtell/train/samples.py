"""Pictures of the world with captions and latents, as many as a small training of a paper needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from showtell.pictures import to_pil
from showtell.train.bases.pool import pool_scenes
from showtell.train.batches import Pool
from showtell.world import Scene, draw


def training_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of the bases' world, from the training split."""
    return pool_scenes(np.random.default_rng(seed), count)


def latents_of(bridge: Any, pictures: Sequence[Any], at_once: int = 64) -> torch.Tensor:
    """Latents (n, channels, height, width), float32, of pictures at the bridge's own size."""
    parts = [bridge.to_latents(list(pictures[i : i + at_once])) for i in range(0, len(pictures), at_once)]
    return torch.cat(parts).float()


def drawn(scenes: Sequence[Scene]) -> list[Any]:
    """The scenes' pictures, 64x64."""
    return to_pil(draw(list(scenes)))


def paired(latents: torch.Tensor, batch_size: int, **more: Any) -> Pool:
    """Batches of latents (n, ...) with their row numbers, for losses that know the prompts; more: further arrays."""
    return Pool({"latents": latents.cpu().numpy(), "row": np.arange(len(latents)), **more}, batch_size)
