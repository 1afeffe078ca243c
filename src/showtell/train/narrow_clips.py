"""A narrow world of clips, in which video models trained from nothing for a minute can be compared.

One thing crosses the frame, from frame to frame as far as it is wide, or rests; 3 latent frames of 8x8 (as of 9 frames
that are compressed four to one), 12 tokens of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import showtell
from showtell.bridges.base import Technique, Text
from showtell.train.bases import text
from showtell.train.bases.attention import plain_attention
from showtell.train.bases.pool import PLAIN, changed_scenes, encode, packaged_vae
from showtell.train.bases.video import schedule, small_cogvideox
from showtell.train.batches import Pool
from showtell.train.networks import inflated
from showtell.train.noising import Noising
from showtell.train.trainer import fit
from showtell.world import Scene, draw, sample
from showtell.world.scene import STEP, Motion

SIDE, FRAMES, LENGTH = 32, 3, 12
REACH = (0.2, 0.8)
"""Where things begin and end, in canvas units."""
WORLD: dict[str, Any] = PLAIN | {"objects": 1, "shape": ("circle", "square", "star", "heart")}


def crossing(count: int, seed: int = 0, split: str = "train", rest: bool = False) -> list[Scene]:
    """Scenes of one thing that moves left, right, up or down, or rests."""
    if rest:
        return sample(count, seed, split, **WORLD)
    rng = np.random.default_rng(seed)

    def moving(scene: Scene) -> Scene:
        motion = Motion("translate", str(rng.choice([*STEP])))
        return replace(scene, objects=(replace(scene.objects[0], motion=motion),))

    return changed_scenes(rng, count, moving, split, **WORLD)


def at_rest(scene: Scene) -> Scene:
    """The same thing, which does not move."""
    return replace(scene, objects=(replace(scene.objects[0], motion=None),))


def crossing_frames(scenes: Sequence[Scene], seed: int = 0) -> np.ndarray:
    """(n, FRAMES, SIDE, SIDE, 3) uint8: what moves goes from one side to the other, somewhere across."""
    rng, moments = np.random.default_rng(seed), []
    for scene in scenes:
        thing, across = scene.objects[0], float(rng.uniform(*REACH))
        for place in np.linspace(*REACH, FRAMES):
            x, y = thing.x, thing.y
            if thing.motion:
                dx, dy = STEP[thing.motion.to]
                along = float(place if dx + dy > 0 else 1 - place)
                x, y = (along, across) if dx else (across, along)
            moments.append(replace(scene, objects=(replace(thing, x=x, y=y, motion=None),)))
    return draw(moments, SIDE).reshape(len(scenes), FRAMES, SIDE, SIDE, 3)


def crossing_latents(scenes: Sequence[Scene], seed: int = 0) -> Tensor:
    """Their latents (n, 4, FRAMES, 8, 8), by the packaged autoencoder, as `small_video` has them."""
    vae, frames = packaged_vae(), crossing_frames(scenes, seed).reshape(-1, SIDE, SIDE, 3)
    parts = [encode(vae, part) for part in np.array_split(frames, len(frames) // 200 + 1)]
    return torch.cat(parts).unflatten(0, (-1, FRAMES)).transpose(1, 2)


def small_video(seed: int, width: int = 96, depth: int = 4, heads: int = 2) -> Any:
    """The bridge of a CogVideoX of that size with random weights and a T5 encoder of one layer."""
    from diffusers import CogVideoXPipeline

    tokenizer = text.t5_tokenizer(LENGTH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = text.t5_text(tokenizer, width, 1)
        sizes = {"sample_frames": FRAMES, "patch_size_t": None, "max_text_seq_length": LENGTH}
        transformer = small_cogvideox(width, depth, heads, SIDE // 4, **sizes)
    return showtell.load(CogVideoXPipeline(tokenizer, encoder, inflated(packaged_vae()), transformer, schedule()))


def learnt(bridge: Any) -> nn.ModuleDict:
    """What `learn_clips` trains: transformer and text encoder."""
    return nn.ModuleDict({"transformer": bridge.pipeline.transformer, "text_encoder": bridge.pipeline.text_encoder})


def learn_clips(
    bridge: Any, latents: Tensor, texts: Sequence[str], steps: int, batch_size: int = 32, lr: float = 1.5e-3,
    watching: Sequence[Technique] = (), seed: int = 0, **more: Any,
) -> nn.ModuleDict:  # fmt: skip
    """Trains transformer and text encoder in place on latents (n, ...) and texts (n), at evenly spread noise levels.

    watching: techniques that shape its attention while it learns. more: for `fit`. Returns `learnt`, in eval mode.
    """
    model, noising = learnt(bridge), Noising(bridge)
    ids, _ = text.ids_of(bridge.pipeline.tokenizer, texts)

    def loss(
        model: Any, batch: dict[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        told = Text(model["text_encoder"](batch["ids"])[0])
        with plain_attention():
            error = noising.loss(noising.noised(batch["latents"], generator, even=True), told, watching=watching)
        return error, {"mse": error.detach()}

    pool = Pool({"latents": latents.numpy(), "ids": ids.astype(np.int64)}, batch_size)
    fit(model.requires_grad_(True), loss, pool, **{"steps": steps, "lr": lr, "ema": 0.99, "seed": seed,
                                                   "progress": False, **more})  # fmt: skip
    return model.eval().requires_grad_(False)
