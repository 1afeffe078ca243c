"""Stable Diffusion 3 and 3.5: joint attention over image tokens, two CLIP texts and one T5 text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, attention_calls
from .words import Piece


class StableDiffusion3(Adapter):
    steps = 28
    scale = 7.0
    rescaled_input = False
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    text_options = frozenset({"clip_skip", "max_sequence_length"})
    options = frozenset({"clip_skip", "max_sequence_length", "sigmas", "mu"})

    @property
    def multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor * self.pipeline.patch_size)

    def pieces(self, **options: Any) -> list[Piece]:
        length = self.pipeline.tokenizer_max_length
        pieces = [Piece(self.pipeline.tokenizer, length)]
        if self.pipeline.text_encoder_3 is not None:
            limit = self._longest(options)
            pieces.append(Piece(self.pipeline.tokenizer_3, limit, start=length))
        return pieces

    def _longest(self, options: dict[str, Any]) -> int:
        """Tokens of the T5 text: the pipeline's default of 256, or what a tokenizer made for less can take."""
        tokenizer = self.pipeline.tokenizer_3
        own = 256 if tokenizer is None else min(256, tokenizer.model_max_length)
        return int(options.get("max_sequence_length") or own)

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        texts = [prompt or "" for prompt in prompts]
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            # The pipeline reads negative prompts without clip_skip.
            clip_skip=None if negative else options.get("clip_skip"),
            max_sequence_length=self._longest(options),
        )
        return Text(tokens, pooled)

    def timestep_kwargs(self, run: Run, steps: int) -> dict[str, Any]:
        kwargs = super().timestep_kwargs(run, steps)
        config = run.scheduler.config
        if run.options.get("mu") is not None:
            kwargs["mu"] = run.options["mu"]
        elif config.get("use_dynamic_shifting", None):
            height, width = self.grid(run, self.pipeline.patch_size)
            kwargs["mu"] = calculate_shift(
                height * width,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        return kwargs

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        return self.denoiser(
            hidden_states=latents,
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            return_dict=False,
        )[0]

    def layout(self, run: Run) -> TokenLayout:
        def kind(name: str, module: Any) -> str:
            return "self" if name.endswith("attn2") else "joint"

        height, width = self.grid(run, self.pipeline.patch_size)
        return TokenLayout(attention_calls(self.denoiser, kind), {height * width: (height, width)})
