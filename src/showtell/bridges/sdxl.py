"""Stable Diffusion XL: two text encoders side by side, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout
from .stable_diffusion import StableDiffusion, add_pictures, predict_with_unet, rescaled, unet_layout
from .words import Piece

_SIZES = ("original_size", "crops_coords_top_left", "target_size")


class StableDiffusionXL(Adapter):
    scale = 5.0
    zero_begin = True
    text_encoders = ("text_encoder", "text_encoder_2")
    text_options = frozenset({"clip_skip"})
    options = StableDiffusion.options.union(_SIZES, ("negative_" + name for name in _SIZES))

    def pieces(self, **options: Any) -> list[Piece]:
        tokenizer = self.pipeline.tokenizer or self.pipeline.tokenizer_2
        return [Piece(tokenizer, tokenizer.model_max_length)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        texts = [prompt or "" for prompt in prompts]
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            device=self.device,
            do_classifier_free_guidance=False,
            # The pipeline reads negative prompts without clip_skip.
            clip_skip=None if negative else options.get("clip_skip"),
        )
        text = Text(tokens, pooled)
        return self._zeroed(text, prompts) if negative else text

    def _zeroed(self, text: Text, prompts: Sequence[str | None]) -> Text:
        """Zeros where no negative prompt was given, for the models trained with them."""
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return text
        assert text.pooled is not None
        given = torch.tensor([prompt is not None for prompt in prompts], device=text.tokens.device)
        return Text(text.tokens * given[:, None, None], text.pooled * given[:, None])

    def guided(self, run: Run) -> bool:
        return run.guidance > 1 and self.denoiser.config.time_cond_proj_dim is None

    def condition(self, run: Run) -> None:
        self._add_sizes(run)
        add_pictures(self, run)

    def _add_sizes(self, run: Run) -> None:
        run.text = self._sized(run, run.text, "")
        if run.negative is not None:
            other = all(run.options.get(f"negative_{name}") is not None for name in ("original_size", "target_size"))
            run.negative = self._sized(run, run.negative, "negative_" if other else "")

    def _sized(self, run: Run, text: Text, prefix: str) -> Text:
        size = (run.height, run.width)
        original, crop, target = (
            run.options.get(prefix + name) or default
            for name, default in zip(_SIZES, (size, (0, 0), size), strict=True)
        )
        assert text.pooled is not None
        encoder = self.pipeline.text_encoder_2
        width = text.pooled.shape[-1] if encoder is None else encoder.config.projection_dim
        ids = self.pipeline._get_add_time_ids(
            tuple(original),
            tuple(crop),
            tuple(target),
            dtype=text.tokens.dtype,
            text_encoder_projection_dim=width,
        )
        return replace(text, extra={**text.extra, "time_ids": ids.to(text.tokens.device).repeat(len(text), 1)})

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        added = {"text_embeds": text.pooled, "time_ids": text.extra["time_ids"]}
        return predict_with_unet(self, run, latents, timestep, text, added)

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return rescaled(self, run, super().guide(run, outputs), outputs["text"])

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        vae = self.pipeline.vae
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            # The published VAE overflows in float16.
            self.pipeline.upcast_vae()
            latents = latents.to(next(iter(vae.post_quant_conv.parameters())).dtype)
        pixels = vae.decode(self.unscale(latents), return_dict=False)[0]
        if upcast:
            vae.to(dtype=torch.float16)
        if self.pipeline.watermark is not None:
            pixels = self.pipeline.watermark.apply_watermark(pixels)
        return self.pipeline.image_processor.postprocess(pixels, output_type=output_type)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(latents)
        return latents * std / self.pipeline.vae.config.scaling_factor + mean

    def rescale(self, encoded: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(encoded)
        return (encoded - mean) * self.pipeline.vae.config.scaling_factor / std

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Mean and standard deviation of the VAE's channels, where it has them."""
        config = self.pipeline.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return 0.0, 1.0
        return tuple(torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (mean, std))  # type: ignore[return-value]

    def layout(self, run: Run) -> TokenLayout:
        return unet_layout(self, run)
