"""Qwen-Image: joint attention with a Qwen2.5-VL text first, latents in patches of 2 x 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, attention_calls
from .words import Piece


class QwenImage(Adapter):
    steps = 50
    # Only for distilled models, which take it as an input; `true_cfg_scale` with a negative prompt is guidance.
    scale = 1.0
    rescaled_input = False
    zero_begin = True
    text_options = frozenset({"max_sequence_length"})
    options = frozenset({"max_sequence_length", "sigmas", "true_cfg_scale"})

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor) * 2

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        own = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return height or own, width or own

    def pieces(self, **options: Any) -> list[Piece]:
        drop = self.pipeline.prompt_template_encode_start_idx
        limit = min(options.get("max_sequence_length") or 512, self.pipeline.tokenizer_max_length)
        template = self.pipeline.prompt_template_encode
        return [Piece(self.pipeline.tokenizer, limit + drop, template=template, drop=drop)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        tokens, mask = self.pipeline.encode_prompt(
            [prompt or "" for prompt in prompts],
            device=self.device,
            max_sequence_length=options.get("max_sequence_length") or 512,
        )
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        return Text(tokens, mask=mask)

    def timestep_kwargs(self, run: Run, steps: int) -> dict[str, Any]:
        config = run.scheduler.config
        sigmas = run.options.get("sigmas")
        height, width = self.grid(run, 2)
        shift = calculate_shift(
            height * width,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return {"sigmas": np.linspace(1.0, 1 / steps, steps) if sigmas is None else sigmas, "mu": shift}

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        if latents is not None and latents.ndim == 3:
            # The pipeline takes and gives packed latents.
            latents = self._unpacked(latents, run.height, run.width)
        return super().start(run, latents)

    def _packed(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents, *latents.shape)

    def _unpacked(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return self.pipeline._unpack_latents(latents, height, width, self.pipeline.vae_scale_factor)[:, :, 0]

    def guided(self, run: Run) -> bool:
        return run.options.get("true_cfg_scale", 4.0) > 1 and run.negative_prompts is not None

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        scale = run.options.get("true_cfg_scale", 4.0)
        if "negative" not in outputs or scale == 1:
            return outputs["text"]
        text, negative = self._packed(outputs["text"]), self._packed(outputs["negative"])
        guided = negative + scale * (text - negative)
        # Every image token keeps the length that it has without guidance.
        guided = guided * (torch.norm(text, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
        return self._unpacked(guided, run.height, run.width)

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        assert text.mask is not None
        rows, _, height, width = latents.shape
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.full([rows], run.guidance, device=latents.device, dtype=torch.float32)
        packed = self.denoiser(
            hidden_states=self._packed(latents),
            timestep=timestep.expand(rows).to(latents.dtype) / 1000,
            guidance=guidance,
            encoder_hidden_states=text.tokens,
            encoder_hidden_states_mask=None if bool(text.mask.all()) else text.mask,
            img_shapes=[[(1, height // 2, width // 2)]] * rows,
            return_dict=False,
        )[0]
        factor = self.pipeline.vae_scale_factor
        return self._unpacked(packed, height * factor, width * factor)

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        vae = self.pipeline.vae
        pixels = vae.decode(self.unscale(latents.to(vae.dtype))[:, :, None], return_dict=False)[0][:, :, 0]
        return self.pipeline.image_processor.postprocess(pixels, output_type=output_type)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def rescale(self, encoded: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(encoded)
        return (encoded - mean) / std

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's channels."""
        config = self.pipeline.vae.config
        mean, std = (torch.tensor(values).to(latents) for values in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        encoded = self.pipeline.vae.encode(pixels[:, :, None]).latent_dist.mode()
        return self.rescale(encoded[:, :, 0])

    def layout(self, run: Run) -> TokenLayout:
        height, width = self.grid(run, 2)
        calls = attention_calls(self.denoiser, lambda name, module: "joint")
        return TokenLayout(calls, {height * width: (height, width)}, text_first=True)
