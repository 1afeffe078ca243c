"""InstructPix2Pix (arXiv 2211.09800) on Stable Diffusion and SDXL: an image changed as an instruction says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ShowtellError
from ..pictures import to_pil
from .adapter import Adapter
from .base import Run, Text
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion, rescaled, with_extra


class _Instructed(Adapter):
    """The image's latents as further channels; three branches: nothing, the image alone, image and text."""

    steps = 100

    @property
    def channels(self) -> int:
        return int(self.pipeline.vae.config.latent_channels)

    def _image_scale(self, run: Run) -> float:
        scale = run.options.get("image_guidance_scale")
        return 1.5 if scale is None else float(scale)

    def guided(self, run: Run) -> bool:
        return super().guided(run) and self._image_scale(run) >= 1

    def condition(self, run: Run) -> None:
        super().condition(run)
        if not run.options.get("image"):
            raise ShowtellError(f"{run.bridge.name} needs the image to edit.")
        pixels = self.pipeline.image_processor.preprocess(
            to_pil(run.options["image"]), height=run.height, width=run.width
        )
        pixels = pixels.to(device=self.device, dtype=run.text.tokens.dtype)
        shown = self.pipeline.vae.encode(pixels).latent_dist.mode()
        if getattr(self.pipeline, "is_cosxl_edit", False):
            shown = shown * self.pipeline.vae.config.scaling_factor
        run.text = with_extra(run.text, "channels", shown)
        if run.negative is not None:
            run.negative = with_extra(run.negative, "channels", torch.zeros_like(shown))

    def branches(self, run: Run) -> dict[str, Text]:
        if run.negative is None:
            return {"text": run.text}
        # Made once for each negative text, as the loop joins the branches only where they changed.
        source, image = run.own.get("image branch", (None, None))
        if source is not run.negative:
            image = with_extra(run.negative, "channels", run.text.extra["channels"])
            run.own["image branch"] = (run.negative, image)
        return {"negative": run.negative, "image": image, "text": run.text}

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if "image" not in outputs or not self.guided(run):
            return outputs["text"]
        nothing, image, text = outputs["negative"], outputs["image"], outputs["text"]
        return nothing + run.guidance * (text - image) + self._image_scale(run) * (image - nothing)


class InstructPix2Pix(_Instructed, StableDiffusion):
    options = frozenset({"eta", "image", "image_guidance_scale"})
    text_options = frozenset()

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        if options.get("image") and not height and not width:
            first = to_pil(options["image"][0])[0]
            height, width = self.pipeline.image_processor.get_default_height_width(first)
        return super().size(height, width)

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        texts = [prompt or "" for prompt in prompts]
        return Text(self.pipeline._encode_prompt(texts, self.device, 1, False))


class InstructPix2PixXL(_Instructed, StableDiffusionXL):
    zero_begin = False
    text_options = frozenset()
    options = frozenset(
        {"eta", "guidance_rescale", "image", "image_guidance_scale"}
        | {"original_size", "crops_coords_top_left", "target_size"}
    )

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        texts = [prompt or "" for prompt in prompts]
        tokens, _, pooled, _ = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=False)
        return self._zeroed(Text(tokens, pooled), prompts) if negative else Text(tokens, pooled)

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return rescaled(self, run, super().guide(run, outputs), outputs["text"])
