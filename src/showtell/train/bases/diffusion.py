"""The diffusion bases: small checkpoints of the pipelines' own classes, text encoder and denoiser trained together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell.train.bases import text
from showtell.train.bases.attention import plain_attention
from showtell.train.bases.cells import CELL_WEIGHT, CellReader, cell_loss
from showtell.train.bases.pool import packaged_vae, read_cells, read_counts, read_pool
from showtell.train.bases.saving import save_pipeline
from showtell.train.recipe import MUON, Recipe

Loss = tuple[Tensor, dict[str, Tensor]]
Predict = Callable[[Any, Tensor, Tensor, dict[str, Tensor]], Tensor]


class Trained(nn.Module):
    """The trained parts of a pipeline as one module; the frozen ones (its autoencoder) stay outside.

    predict(pipeline, noisy latents (n, c, h, w), timesteps (n,), batch) -> prediction (n, c, h, w), made as the
    pipeline makes it; clips have frames before the height. watched: a module of the denoiser with `width` channels on
    an 8x8 grid, off which a `CellReader` reads; it is not saved.
    """

    def __init__(self, pipeline: Any, parts: Sequence[str], predict: Predict, watched: Any, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: getattr(pipeline, name) for name in parts})
        self.parts.requires_grad_(True)
        self.pipeline, self.predict = pipeline, predict
        self.reader = CellReader(width)
        self.seen: Tensor | None = None
        self.hook = watched.register_forward_hook(self._see)

    def _see(self, module: Any, inputs: Any, output: Any) -> None:
        # A joint block gives text and image, the second of which has more tokens.
        found = max(output, key=lambda tokens: tokens.shape[1]) if isinstance(output, tuple) else output
        self.seen = found if found.ndim == 3 else found.flatten(2).transpose(1, 2)

    def forward(self, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(the prediction, what the cells show: logits (n, cells, values) for each of CELLS)."""
        with plain_attention():
            made = self.predict(self.pipeline, noisy, timesteps, batch)
        assert self.seen is not None
        shown = self.reader(self.seen)
        self.seen = None
        return made, shown

    def save_pretrained(self, target: str | Path) -> None:
        """The pipeline in bfloat16, in the Hugging Face layout."""
        self.hook.remove()
        save_pipeline(self.pipeline, target)


# --- data and objectives ---------------------------------------------------------------------------------------------


def prompted_latents(
    make_tokenizer: Callable[[], Any], crowded: float = 1.0, textured: float = 0.0
) -> Callable[[str], Callable[..., dict[str, np.ndarray]]]:
    """Batches of {latents (n, 4, 16, 16), cells (n, 8, 8, 4), ids (n, length), real (n, length)} from the pool.

    crowded: how often a scene of three objects or more is drawn, times a scene of fewer. textured: share of the rows
    that come from the pool of textured things.
    """

    def data(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
        kinds = {"scenes": 1 - textured} | ({"textured": textured} if textured else {})
        parts = [_kept(kind, crowded, share) for kind, share in kinds.items()]
        latents, cells, shares = (np.concatenate([part[i] for part in parts]) for i in (0, 2, 3))
        prompts = text.Prompts(make_tokenizer(), [caption for part in parts for caption in part[1]])

        def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
            rows = rng.choice(len(latents), size, p=shares)
            seen = {"latents": latents[rows, 0].astype(np.float32), "cells": cells[rows].astype(np.int64)}
            return {**seen, **prompts(rng, rows)}

        return make

    return data


def _kept(kind: str, crowded: float, share: float) -> tuple[np.ndarray, list[list[str]], np.ndarray, np.ndarray]:
    """(latents, captions, cells, how often each row is drawn, `share` in all) of a kind of pool."""
    latents, captions = read_pool(packaged_vae(), kind)
    weights = np.ones(len(latents))
    if crowded != 1:
        weights[read_counts(len(latents), kind) > 2] = crowded
    return latents, captions, read_cells(len(latents), kind), share * weights / weights.sum()


def noise_loss(model: Trained, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Predicting the noise (arXiv 2006.11239), steps weighted by min(SNR, 5) / SNR (arXiv 2303.09556)."""
    clean, scheduler = batch["latents"], model.pipeline.scheduler
    levels = scheduler.config.num_train_timesteps
    timesteps = torch.randint(levels, (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    predicted, shown = model(scheduler.add_noise(clean, noise, timesteps), timesteps, batch)
    signal = scheduler.alphas_cumprod.to(clean.device)[timesteps]
    ratio = signal / (1 - signal)
    each = (predicted.float() - noise).square().flatten(1).mean(dim=1)
    said = cell_loss(shown, batch["cells"])
    loss = (each * (5 / ratio).clamp(max=1)).mean() + CELL_WEIGHT * said
    return loss, {"mse": each.detach().mean(), "cells": said.detach()}


def flow_loss(model: Trained, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Rectified flow with logit-normal times (arXiv 2403.03206, sections 2 and 3.1)."""
    clean = batch["latents"]
    shape = (len(clean), *[1] * (clean.ndim - 1))
    sigma = torch.randn(shape, generator=generator, device=clean.device).sigmoid()
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    predicted, shown = model((1 - sigma) * clean + sigma * noise, 1000 * sigma.flatten(), batch)
    error = (predicted.float() - (noise - clean)).square().mean()
    said = cell_loss(shown, batch["cells"])
    return error + CELL_WEIGHT * said, {"mse": error.detach(), "cells": said.detach()}


# --- unet: Stable Diffusion ------------------------------------------------------------------------------------------

UNET = {
    "block_out_channels": (48, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}


def unet(width: int = 128, layers: int = 2, **sizes: Any) -> Trained:
    """A StableDiffusionPipeline: 16x16 latents, cross-attention at 8x8."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer = text.clip_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=packaged_vae(),
        text_encoder=text.clip_text(tokenizer, width, layers),
        tokenizer=tokenizer,
        unet=small_unet(width, **sizes),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return trained_unet(pipeline)


def trained_unet(pipeline: Any) -> Trained:
    width = pipeline.unet.config.block_out_channels[-1]
    return Trained(pipeline, ("unet", "text_encoder"), predict_with_unet, pipeline.unet.mid_block, width)


def small_unet(width: int, in_channels: int = 4, **sizes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=in_channels, out_channels=4, norm_num_groups=8, attention_head_dim=2,
        cross_attention_dim=width, **{**UNET, **sizes},
    )  # fmt: skip


def predict_with_unet(pipeline: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
    tokens = pipeline.text_encoder(batch["ids"])[0]
    if "shown" in batch:  # the image to edit
        noisy = torch.cat([noisy, batch["shown"]], dim=1)
    return pipeline.unet(noisy, timesteps, encoder_hidden_states=tokens, return_dict=False)[0]


# --- editor: InstructPix2Pix -----------------------------------------------------------------------------------------


def editor() -> Trained:
    """A StableDiffusionInstructPix2PixPipeline that begins as the unet base, blind to the image that it is shown."""
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline

    from showtell.weights import folder

    start = StableDiffusionPipeline.from_pretrained(folder("unet"), torch_dtype=torch.float32, use_safetensors=True)
    config = dict(start.unet.config) | {"in_channels": 8}
    unet = type(start.unet).from_config(config)
    weights = start.unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], dim=1)
    unet.load_state_dict(weights)
    parts = {name: start.components[name] for name in ("text_encoder", "tokenizer", "scheduler")}
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=packaged_vae(), unet=unet, **parts, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return trained_unet(pipeline)


def instructed_latents(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Batches of {latents, shown (n, 4, 16, 16), cells, ids, real}.

    The image, the text and both are each dropped from one in twenty rows (arXiv 2211.09800, section 3.2.1).
    """
    latents, instructions = read_pool(packaged_vae(), "edits")
    shown = read_cells(len(latents), "edits")
    prompts = text.Prompts(text.clip_tokenizer(), instructions, drop=0.0, shares=(1.0,))

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        rows = rng.integers(len(latents), size=size)
        pairs, told, chance = latents[rows].astype(np.float32), prompts(rng, rows), rng.random(size)
        blank, blind = chance < 0.1, (chance > 0.05) & (chance < 0.15)
        told = {name: np.where(blank[:, None], prompts.empty[i], told[name]) for i, name in enumerate(("ids", "real"))}
        told["ids"] = told["ids"].astype(np.int64)
        facts = shown[rows].astype(np.int64)
        return {
            "latents": pairs[:, 1],
            "cells": facts,
            "shown": np.where(blind[:, None, None, None], 0, pairs[:, 0]),
            **told,
        }

    return make


# --- mmdit: Stable Diffusion 3 ---------------------------------------------------------------------------------------


def mmdit(width: int = 64, layers: int = 3, depth: int = 6, heads: int = 2, head: int = 48) -> Trained:
    """A StableDiffusion3Pipeline without T5: two CLIP texts and 64 image tokens attend jointly.

    The T5 tokenizer is there for its length alone: SD3 puts one row of zeros for each of its tokens.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = text.clip_tokenizer()
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=depth, attention_head_dim=head,
            num_attention_heads=heads, joint_attention_dim=2 * width, caption_projection_dim=heads * head,
            pooled_projection_dim=2 * width, pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=packaged_vae(),
        text_encoder=text.clip_text(tokenizer, width, layers, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=text.clip_text(tokenizer, width, layers, projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=text.t5_tokenizer(1),
    )  # fmt: skip
    watched = pipeline.transformer.transformer_blocks[depth // 2]
    parts = ("transformer", "text_encoder", "text_encoder_2")
    return Trained(pipeline, parts, predict_with_mmdit, watched, heads * head)


def predict_with_mmdit(pipeline: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["ids"]
    read = [encoder(ids, output_hidden_states=True) for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    tokens = torch.cat([one.hidden_states[-2] for one in read], dim=-1)
    zeros = tokens.new_zeros(len(ids), pipeline.tokenizer_3.model_max_length, tokens.shape[-1])
    return pipeline.transformer(
        hidden_states=noisy,
        timestep=timesteps,
        encoder_hidden_states=torch.cat([tokens, zeros], dim=1),
        pooled_projections=torch.cat([one[0] for one in read], dim=-1),
        return_dict=False,
    )[0]


# --- dit: PixArt -----------------------------------------------------------------------------------------------------


def dit(width: int = 96, layers: int = 2, depth: int = 6, heads: int = 2, head: int = 48) -> Trained:
    """A PixArtAlphaPipeline: 64 image tokens, cross-attention to a T5 text."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    tokenizer = text.t5_tokenizer()
    pipeline = PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text.t5_text(tokenizer, width, layers),
        vae=packaged_vae(),
        transformer=PixArtTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=depth, attention_head_dim=head,
            num_attention_heads=heads, cross_attention_dim=heads * head, caption_channels=width,
            use_additional_conditions=False, interpolation_scale=1,
        ),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )  # fmt: skip
    watched = pipeline.transformer.transformer_blocks[depth // 2]
    return Trained(pipeline, ("transformer", "text_encoder"), predict_with_dit, watched, heads * head)


def predict_with_dit(pipeline: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
    tokens = pipeline.text_encoder(batch["ids"], attention_mask=batch["real"])[0]
    return pipeline.transformer(
        noisy,
        encoder_hidden_states=tokens,
        encoder_attention_mask=batch["real"].long(),
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]


RECIPES: dict[str, Recipe] = {
    "unet": Recipe(
        "Stable Diffusion: text-conditional UNet on latents",
        unet, prompted_latents(text.clip_tokenizer, crowded=0.15, textured=0.5), noise_loss, 8000, 64, 6e-4,
        options=MUON,
    ),
    "mmdit": Recipe(
        "Stable Diffusion 3: joint attention of text and image, rectified flow",
        mmdit, prompted_latents(text.clip_tokenizer), flow_loss, 10000, 64, 1.5e-3, options=MUON,
    ),
    "dit": Recipe(
        "PixArt: transformer with cross-attention to a T5 text",
        dit, prompted_latents(text.t5_tokenizer), noise_loss, 10000, 64, 1.5e-3, options=MUON,
    ),
    "editor": Recipe(
        "InstructPix2Pix: an image changed as an instruction says, begun from unet",
        editor, instructed_latents, noise_loss, 6400, 32, 5e-4,
    ),
}  # fmt: skip
