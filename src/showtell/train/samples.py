"""Pictures of the world with captions and latents, as many as a small training of a paper needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from showtell.data.signal import to_signal
from showtell.pictures import to_pil
from showtell.train.bases.pool import BARE, pool_scenes
from showtell.train.bases.text import Prompts
from showtell.train.batches import Batch, Pool, Stream
from showtell.world import Scene, draw

ONE_THING: dict[str, Any] = BARE | {
    "shape": ("circle", "square", "triangle", "star"), "objects": 1, "size": ("medium", "large"),
    "background": ("white", "cream", "grey", "black"),
}  # fmt: skip
"""How to sample scenes that a small transformer over image tokens learns to draw within minutes."""


def training_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of the bases' world, from the training split."""
    return pool_scenes(np.random.default_rng(seed), count)


def latents_of(bridge: Any, pictures: Sequence[Any], at_once: int = 64) -> torch.Tensor:
    """Latents (n, channels, height, width), float32, of pictures at the bridge's own size."""
    parts = [bridge.to_latents(list(pictures[i : i + at_once])) for i in range(0, len(pictures), at_once)]
    return torch.cat(parts).float()


@torch.no_grad()
def encoded(vae: Any, scenes: Sequence[Scene], at_once: int = 500) -> torch.Tensor:
    """Latents (n, channels, height, width), float32 and unscaled, of the scenes' pictures by a bare AutoencoderKL."""
    shown = to_signal(torch.from_numpy(draw(list(scenes)))).to(vae.dtype)
    return torch.cat([vae.encode(part).latent_dist.mode().float() for part in shown.split(at_once)])


def drawn(scenes: Sequence[Scene]) -> list[Any]:
    """The scenes' pictures, 64x64."""
    return to_pil(draw(list(scenes)))


def paired(latents: torch.Tensor, batch_size: int, **more: Any) -> Pool:
    """Batches of latents (n, ...) with their row numbers, for losses that know the prompts; more: further arrays."""
    return Pool({"latents": latents.cpu().numpy(), "row": np.arange(len(latents)), **more}, batch_size)


def prompted(captions: Sequence[str], tokenizer: Any, batch_size: int, **arrays: np.ndarray) -> Stream:
    """Batches of rows of the arrays, with ids and real (n, length) of their captions, one in ten of them empty."""
    prompts = Prompts(tokenizer, [[caption] for caption in captions], shares=(1.0,))

    def make(rng: np.random.Generator, size: int) -> Batch:
        rows = rng.integers(len(captions), size=size)
        return {name: array[rows] for name, array in arrays.items()} | prompts(rng, rows)

    return Stream(make, batch_size)
