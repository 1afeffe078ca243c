"""A narrow world in which a generator learns what it is told within a minute, and the training that takes it there.

One large thing in the middle of a plain ground, in pictures of 32x32: papers that train a generator from nothing
compare theirs here. Where it may lie anywhere, 30,000 samples teach a small transformer colours and no shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.train.bases.attention import plain_attention
from showtell.train.bases.pool import BARE
from showtell.train.noising import Noised, Noising
from showtell.train.samples import paired
from showtell.train.trainer import fit
from showtell.world import Scene, draw, sample
from showtell.world.scene import SHAPES

SIDE = 32
LENGTH = 12
"""Tokens of a prompt, with those that open and close it."""
WORLD: dict[str, Any] = BARE | {
    "objects": 1, "size": "large", "shape": SHAPES[::2], "background": ("white", "cream", "sky", "sand"),
}  # fmt: skip

Draw = Callable[[Noising, Tensor, torch.Generator | None], Noised]


def narrow_scenes(count: int, seed: int = 0, split: str = "train") -> list[Scene]:
    """Scenes of the narrow world; no combination of their facts is in two splits."""
    scenes = sample(count, seed, split, **WORLD)
    return [replace(scene, objects=(replace(scene.objects[0], x=0.5, y=0.5),)) for scene in scenes]


def narrow_pairs(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """(pictures (n, 32, 32, 3) uint8, captions) of the training split."""
    scenes = narrow_scenes(count, seed)
    return draw(scenes, SIDE), [scene.caption() for scene in scenes]


def short_text(bridge: Any, length: int = LENGTH) -> tuple[Any, Any]:
    """(frozen float32 text encoder, tokenizer for prompts of at most `length` tokens): copies of a bridge's own."""
    tokenizer = copy.deepcopy(bridge.pipeline.tokenizer)
    tokenizer.model_max_length = min(length, tokenizer.model_max_length)
    return copy.deepcopy(bridge.pipeline.text_encoder).float().eval().requires_grad_(False), tokenizer


def learn(
    bridge: Any, latents: Tensor, texts: Sequence[str], steps: int, batch_size: int = 64, lr: float = 1e-3,
    draw: Draw = Noising.noised, drop: float = 0.1, seed: int = 0, precision: Any = "bf16",
    optimizer: Any = "adamw", **options: Any,
) -> Any:  # fmt: skip
    """Trains the bridge's denoiser in place, from whatever weights it has, on latents (n, ...) and texts (n).

    Its weights are averaged ones afterwards. draw: (noising, clean latents, generator) -> noised latents, which says at
    which noise levels it learns. drop: share of texts left out, for classifier-free guidance (arXiv 2207.12598).
    options: as for `Noising`. Returns the denoiser.
    """
    noising = Noising(bridge, **options)
    known = list(dict.fromkeys([*texts, ""]))  # the text encoder is frozen: every text is read once
    places = {text: row for row, text in enumerate(known)}
    with torch.no_grad():
        encoded = noising.text(known)

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        told = batch["told"].long()
        blank = torch.rand(len(told), generator=generator, device=told.device) < drop
        text = encoded.rows(torch.where(blank, places[""], told))
        with plain_attention():
            error = noising.loss(draw(noising, batch["latents"], generator), text)
        return error, {"mse": error.detach()}

    data = paired(latents, batch_size, told=np.array([places[text] for text in texts]))
    denoiser, call = bridge.adapter.denoiser.requires_grad_(True), {"precision": precision, "optimizer": optimizer}
    fit(denoiser, loss, data, steps=steps, lr=lr, ema=0.99, seed=seed, progress=False, **call)
    return denoiser.eval().requires_grad_(False)
