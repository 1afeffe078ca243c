"""CogView4: joint attention with a GLM text first; the text's padding is attended like its words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.cogview4 import pipeline_cogview4 as library
from torch.overrides import TorchFunctionMode

from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, attention_calls
from .words import Piece


class _Padding(TorchFunctionMode):
    """Hides the padding that brought texts of different lengths into one batch.

    The model's own `attention_mask` does not: the library adds it to the scores as zeros and ones.
    """

    def __init__(self, mask: torch.Tensor, image: int) -> None:
        super().__init__()
        self.keep = F.pad(mask.bool(), (0, image), value=True)[:, None, None]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            kwargs = {**kwargs, "attn_mask": self.keep}
        return func(*args, **kwargs)


class CogView4(Adapter):
    steps = 50
    scale = 5.0
    rescaled_input = False
    latent_dtype = torch.float32
    text_options = frozenset({"max_sequence_length"})
    options = text_options | {"timesteps", "sigmas", "original_size", "crops_coords_top_left"}

    def pieces(self, **options: Any) -> list[Piece]:
        return [Piece(self.pipeline.tokenizer, options.get("max_sequence_length") or 1024)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        """Each prompt as the pipeline encodes it alone: its padding does not depend on the others'.

        The pipeline pads on the left, to a multiple of 16 tokens. The denoiser gives text tokens no
        positions, so here the words come first and the padding last.
        """
        limit = options.get("max_sequence_length") or 1024
        rows = []
        for prompt in prompts:
            tokens = self.pipeline._get_glm_embeds([prompt or ""], limit, self.device)
            ids = self.pipeline.tokenizer(prompt or "", max_length=limit, truncation=True)["input_ids"]
            tokens = tokens.roll(len(ids) - tokens.shape[1], dims=1)
            rows.append(Text(tokens, mask=torch.ones(tokens.shape[:2], device=tokens.device)))
        return Text.cat(rows)

    def set_timesteps(self, run: Run, steps: int) -> None:
        config, given = run.scheduler.config, run.options.get("timesteps")
        times = np.linspace(config.num_train_timesteps, 1.0, steps) if given is None else np.array(given)
        times = times.astype(np.int64).astype(np.float32)
        sigmas = run.options.get("sigmas")
        height, width = self.grid(run, self.denoiser.config.patch_size)
        shift = library.calculate_shift(
            height * width,
            config.get("base_image_seq_len", 256),
            config.get("base_shift", 0.25),
            config.get("max_shift", 0.75),
        )
        run.timesteps, _ = library.retrieve_timesteps(
            run.scheduler,
            steps,
            self.device,
            times,
            times / config.num_train_timesteps if sigmas is None else sigmas,
            mu=shift,
        )

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        assert text.mask is not None
        rows, patch = len(latents), self.denoiser.config.patch_size
        image = (latents.shape[-2] // patch) * (latents.shape[-1] // patch)
        own = (run.height, run.width)
        sizes = [
            torch.tensor([size], dtype=text.tokens.dtype, device=self.device).repeat(rows, 1)
            for size in (
                run.options.get("original_size") or own,
                own,
                run.options.get("crops_coords_top_left") or (0, 0),
            )
        ]
        with nullcontext() if bool(text.mask.all()) else _Padding(text.mask, image):
            return self.denoiser(
                hidden_states=latents.to(self.denoiser.dtype),
                encoder_hidden_states=text.tokens,
                timestep=timestep.expand(rows),
                original_size=sizes[0],
                target_size=sizes[1],
                crop_coords=sizes[2],
                return_dict=False,
            )[0]

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        return super().decode(run, latents.to(self.pipeline.vae.dtype), output_type)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.pipeline.vae.config.scaling_factor

    def rescale(self, encoded: torch.Tensor) -> torch.Tensor:
        return encoded * self.pipeline.vae.config.scaling_factor

    def layout(self, run: Run) -> TokenLayout:
        height, width = self.grid(run, self.denoiser.config.patch_size)
        calls = attention_calls(self.denoiser, lambda name, module: "joint")
        return TokenLayout(calls, {height * width: (height, width)}, text_first=True)
