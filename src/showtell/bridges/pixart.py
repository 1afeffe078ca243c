"""PixArt-alpha and PixArt-Sigma: a transformer whose cross-attention reads a T5 text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

from ..errors import ShowtellError
from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, self_then_cross
from .words import Piece

# Height and width that the models were trained at, by sample size; as in the pipelines.
_BINS = {
    32: alpha.ASPECT_RATIO_256_BIN,
    64: alpha.ASPECT_RATIO_512_BIN,
    128: alpha.ASPECT_RATIO_1024_BIN,
    256: sigma.ASPECT_RATIO_2048_BIN,
}


class Lowered:
    """A tokenizer of texts that the pipeline makes lower-case, except for the first `after` characters."""

    def __init__(self, tokenizer: Any, after: int = 0) -> None:
        self.tokenizer, self.after = tokenizer, after

    def __call__(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text[: self.after] + text[self.after :].lower(), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


class PixArt(Adapter):
    steps = 20
    scale = 4.5
    text_options = frozenset({"clean_caption", "max_sequence_length"})
    options = frozenset(
        {"clean_caption", "max_sequence_length", "eta", "timesteps", "sigmas", "use_resolution_binning"}
    )

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.is_alpha = "Alpha" in type(pipeline).__name__
        self.zero_begin = self.is_alpha
        self.longest = 120 if self.is_alpha else 300

    def pieces(self, **options: Any) -> list[Piece]:
        return [Piece(Lowered(self.pipeline.tokenizer), options.get("max_sequence_length") or self.longest)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            [prompt or "" for prompt in prompts],
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=options.get("clean_caption", True),
            max_sequence_length=options.get("max_sequence_length") or self.longest,
        )
        return Text(tokens, mask=mask)

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        run.own["asked"] = (run.height, run.width)
        if self._binning(run):
            bins = _BINS.get(self.denoiser.config.sample_size)
            if bins is None:
                raise ShowtellError("this PixArt model has no trained sizes; pass use_resolution_binning=False.")
            run.height, run.width = self.pipeline.image_processor.classify_height_width_bin(
                run.height, run.width, ratios=bins
            )
        return super().start(run, latents)

    def _binning(self, run: Run) -> bool:
        """Whether sizes go to the nearest trained one: as asked for, or where the model's sizes are known."""
        return bool(run.options.get("use_resolution_binning", self.denoiser.config.sample_size in _BINS))

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        prediction = self.denoiser(
            latents,
            encoder_hidden_states=text.tokens,
            encoder_attention_mask=text.mask,
            timestep=timestep.reshape(-1).to(latents.device).expand(len(latents)),
            added_cond_kwargs=self._sizes(run, latents),
            return_dict=False,
        )[0]
        # The second half of the channels, where there is one, is a learned variance that no scheduler uses.
        return prediction[:, : latents.shape[1]]

    def _sizes(self, run: Run, latents: torch.Tensor) -> dict[str, torch.Tensor | None]:
        if not self.is_alpha or self.denoiser.config.sample_size != 128:
            return {"resolution": None, "aspect_ratio": None}
        resolution = torch.tensor([run.height, run.width]).repeat(len(latents), 1)
        ratio = torch.tensor([float(run.height / run.width)]).repeat(len(latents), 1)
        return {"resolution": resolution.to(latents), "aspect_ratio": ratio.to(latents)}

    def advance(self, run: Run, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        result = run.scheduler.step(prediction, run.timestep, latents, **self.step_kwargs(run), return_dict=False)
        # A one-step model's answer is the clean image, not the scheduler's next sample.
        return result[1] if self.is_alpha and run.steps == 1 and len(result) > 1 else result[0]

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        pixels = self.pipeline.vae.decode(self.unscale(latents.to(self.pipeline.vae.dtype)), return_dict=False)[0]
        height, width = run.own.get("asked", (run.height, run.width))
        if self._binning(run):
            pixels = self.pipeline.image_processor.resize_and_crop_tensor(pixels, width, height)
        return self.pipeline.image_processor.postprocess(pixels, output_type=output_type)

    def layout(self, run: Run) -> TokenLayout:
        return self_then_cross(self.denoiser, self.grid(run, self.denoiser.config.patch_size))
