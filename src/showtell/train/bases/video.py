"""The bases of clips: a small CogVideoX, text encoder and transformer trained together on clips and on single pictures,
and one that goes on from a first frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.train.bases import text
from showtell.train.bases.cells import CELL_WEIGHT, cell_loss
from showtell.train.bases.diffusion import Loss, Trained
from showtell.train.bases.pool import FRAMES, packaged_vae, read_cells, read_clip_cells, read_pool
from showtell.train.networks import inflated, widened
from showtell.train.noising import stratified
from showtell.train.recipe import Recipe

PATCH = 2  # latent frames of a token, as in CogVideoX 1.5
PICTURES = 0.4  # share of the batches that are single pictures, with as many tokens as a batch of clips


def video(width: int = 96, layers: int = 2, depth: int = 6, heads: int = 2) -> Trained:
    """A CogVideoXPipeline: 8 frames, 256 image tokens that attend jointly with a T5 text; rotary positions.

    Its autoencoder is the packaged one, frame by frame.
    """
    from diffusers import CogVideoXPipeline

    tokenizer = text.t5_tokenizer()
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text.t5_text(tokenizer, width, layers),
        vae=inflated(packaged_vae()),
        transformer=small_cogvideox(width, depth, heads),
        scheduler=schedule(),
    )
    return trained_cogvideox(pipeline)


def animator() -> Trained:
    """A CogVideoXImageToVideoPipeline that begins as the video base, blind to the picture that it is shown."""
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline

    from showtell.weights import folder

    start = CogVideoXPipeline.from_pretrained(folder("video"), torch_dtype=torch.float32, use_safetensors=True)
    parts = {name: start.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    return trained_cogvideox(CogVideoXImageToVideoPipeline(transformer=widened(start.transformer, 8, 4), **parts))


def trained_cogvideox(pipeline: Any) -> Trained:
    blocks, config = pipeline.transformer.transformer_blocks, pipeline.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    parts = ("transformer", "text_encoder")
    return Trained(pipeline, parts, predict_with_cogvideox, blocks[len(blocks) // 2], width)


def small_cogvideox(width: int, depth: int, heads: int, side: int = 16, **more: Any) -> Any:
    """A CogVideoXTransformer3DModel for latents of 4 channels, side x side; more: what it is told beside its size."""
    from diffusers import CogVideoXTransformer3DModel

    sizes = {"sample_frames": FRAMES, "patch_size_t": PATCH, "max_text_seq_length": text.LENGTH, **more}
    return CogVideoXTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=4, out_channels=4,
        time_embed_dim=width, text_embed_dim=width, num_layers=depth, sample_width=side, sample_height=side,
        patch_size=2, temporal_compression_ratio=1, use_rotary_positional_embeddings=True, **sizes,
    )  # fmt: skip


def schedule() -> Any:
    """CogVideoX's: v-prediction, levels that end in pure noise (arXiv 2408.06072, and 2305.08891 for the end)."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
        snr_shift_scale=1.0,
    )  # fmt: skip


def predict_with_cogvideox(pipeline: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
    tokens = pipeline.text_encoder(batch["ids"])[0]
    sides = [side * pipeline.vae_scale_factor_spatial for side in noisy.shape[-2:]]
    rotary = pipeline._prepare_rotary_positional_embeddings(*sides, noisy.shape[2], noisy.device)
    if "shown" in batch:  # the first frame, and nothing of the others
        noisy = torch.cat([noisy, F.pad(batch["shown"], (0, 0, 0, 0, 0, noisy.shape[2] - 1))], dim=1)
    predicted = pipeline.transformer(
        noisy.transpose(1, 2), tokens, timesteps, image_rotary_emb=rotary, return_dict=False
    )[0]
    return predicted.transpose(1, 2)


def prompted_clips(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Batches of {latents (n, 4, frames, 16, 16), cells (n, frames / 2 * 8, 8, 4), ids, real}.

    A batch holds `size` clips of 8 frames, or four times as many pictures, of two equal frames each: what things look
    like is learnt from both, at a quarter of the cost from pictures.
    """
    pictures, captions = read_pool(packaged_vae())
    clips, told = read_pool(packaged_vae(), "clips")
    kinds: list[tuple[np.ndarray, np.ndarray, text.Prompts]] = [
        (clips, read_clip_cells(len(clips), PATCH), text.Prompts(text.t5_tokenizer(), told)),
        (pictures, read_cells(len(pictures))[:, None], text.Prompts(text.t5_tokenizer(), captions)),
    ]

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        alone = int(rng.random() < PICTURES)
        latents, shown, prompts = kinds[alone]
        rows = rng.integers(len(latents), size=size * (FRAMES // PATCH if alone else 1))
        frames = latents[rows].astype(np.float32)
        frames = np.repeat(frames, PATCH, axis=1) if alone else frames
        cells = shown[rows].astype(np.int64)
        seen: dict[str, np.ndarray] = {
            "latents": frames.swapaxes(1, 2),
            "cells": cells.reshape(len(rows), -1, *cells.shape[-2:]),
        }
        return {**seen, **prompts(rng, rows)}

    return make


def first_frames(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """The same with the first frame of each, {shown (n, 4, 1, 16, 16)}, which one in ten does not see."""
    clips = prompted_clips(source)

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        batch = clips(rng, size)
        first = batch["latents"][:, :, :1]
        blind = rng.random(len(first)) < 0.1
        return {**batch, "shown": np.where(blind[:, None, None, None, None], np.float32(0), first)}

    return make


def velocity_loss(model: Trained, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """v-prediction on a schedule that ends in pure noise, at stratified times (arXiv 2408.06072)."""
    clean, scheduler = batch["latents"], model.pipeline.scheduler
    levels = scheduler.config.num_train_timesteps
    timesteps = (stratified(len(clean), generator, clean.device) * levels).long()
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    signal = scheduler.alphas_cumprod.to(clean.device)[timesteps].view(-1, 1, 1, 1, 1).float()
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    predicted, shown = model(alpha * clean + sigma * noise, timesteps, batch)
    error = (predicted.float() - (alpha * noise - sigma * clean)).square().mean()
    said = cell_loss(shown, batch["cells"])
    return error + CELL_WEIGHT * said, {"mse": error.detach(), "cells": said.detach()}


RECIPES: dict[str, Recipe] = {
    "video": Recipe(
        "CogVideoX: clips of 8 frames by joint attention of text, space and time",
        video, prompted_clips, velocity_loss, 9000, 16, 1.5e-3,
    ),
    "animator": Recipe(
        "CogVideoX, image to video: clips that go on from a first frame, begun from video",
        animator, first_frames, velocity_loss, 4000, 16, 5e-4,
    ),
}  # fmt: skip
