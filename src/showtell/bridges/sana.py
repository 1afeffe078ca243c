"""Sana: linear self-attention, and cross-attention to a Gemma text that an instruction precedes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.sana import pipeline_sana as library

from ..errors import ShowtellError
from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, attention_calls
from .pixart import Lowered
from .words import Piece

# Height and width that the models were trained at, by sample size; as in the pipeline.
_BINS = {
    16: library.ASPECT_RATIO_512_BIN,
    32: library.ASPECT_RATIO_1024_BIN,
    64: library.ASPECT_RATIO_2048_BIN,
    128: library.ASPECT_RATIO_4096_BIN,
}
_INSTRUCTION = inspect.signature(library.SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(Adapter):
    steps = 20
    scale = 4.5
    rescaled_input = False
    latent_dtype = torch.float32
    text_options = frozenset({"clean_caption", "max_sequence_length", "complex_human_instruction"})
    options = text_options | {"eta", "timesteps", "sigmas", "use_resolution_binning"}

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        return height or 1024, width or 1024

    def pieces(self, **options: Any) -> list[Piece]:
        tokenizer, limit = self.pipeline.tokenizer, options.get("max_sequence_length") or 300
        instruction = "\n".join(options.get("complex_human_instruction", _INSTRUCTION) or [])
        read = Lowered(tokenizer, len(instruction))
        if not instruction:
            return [Piece(read, limit)]
        # Of all tokens the first and the last `limit - 1` are kept.
        total = len(tokenizer.encode(instruction)) + limit - 2
        return [Piece(read, total, start=1, template=instruction + "{}", drop=total - limit + 1)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            [prompt or "" for prompt in prompts],
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=options.get("clean_caption", False),
            max_sequence_length=options.get("max_sequence_length") or 300,
            # The pipeline reads negative prompts without the instruction.
            complex_human_instruction=None if negative else options.get("complex_human_instruction", _INSTRUCTION),
        )
        return Text(tokens, mask=mask)

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        run.own["asked"] = (run.height, run.width)
        if run.options.get("use_resolution_binning", True):
            bins = _BINS.get(self.denoiser.config.sample_size)
            if bins is None:
                raise ShowtellError("this Sana model has no trained sizes; pass use_resolution_binning=False.")
            run.height, run.width = self.pipeline.image_processor.classify_height_width_bin(
                run.height, run.width, ratios=bins
            )
        return super().start(run, latents)

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        dtype = self.denoiser.dtype
        prediction = self.denoiser(
            latents.to(dtype),
            encoder_hidden_states=text.tokens.to(dtype),
            encoder_attention_mask=text.mask,
            timestep=timestep.expand(len(latents)) * self.denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        # The second half of the channels, where there is one, is a learned variance that no scheduler uses.
        return prediction.float()[:, : latents.shape[1]]

    def latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        # This autoencoder is deterministic.
        return self.rescale(self.pipeline.vae.encode(pixels).latent)

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        pixels = self.pipeline.vae.decode(self.unscale(latents.to(self.pipeline.vae.dtype)), return_dict=False)[0]
        height, width = run.own.get("asked", (run.height, run.width))
        if run.options.get("use_resolution_binning", True):
            pixels = self.pipeline.image_processor.resize_and_crop_tensor(pixels, width, height)
        return self.pipeline.image_processor.postprocess(pixels, output_type=output_type)

    def layout(self, run: Run) -> TokenLayout:
        def kind(name: str, module: Any) -> str | None:
            # Self-attention is linear: it has no attention matrix.
            return None if name.endswith("attn1") else "cross"

        height, width = self.grid(run, self.denoiser.config.patch_size)
        return TokenLayout(attention_calls(self.denoiser, kind), {height * width: (height, width)})
