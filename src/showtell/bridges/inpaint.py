"""Inpainting with Stable Diffusion and SDXL: what a mask covers is drawn anew, by UNets that see the masked
image (nine channels) and by those that do not (four, the rest blended in at every step).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..errors import ShowtellError
from ..pictures import to_pil
from .adapter import Adapter
from .base import Run
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion, with_extra


class _Inpainting(Adapter):
    """image: to be changed; mask_image: white where; strength in (0, 1]: how far from the image to start."""

    scale = 7.5
    strength = 1.0

    @property
    def channels(self) -> int:
        return int(self.pipeline.vae.config.latent_channels)

    @property
    def _blends(self) -> bool:
        """Whether the UNet sees the latents alone, so that the image around the mask is blended in."""
        return int(self.denoiser.config.in_channels) == self.channels

    def _strength(self, run: Run) -> float:
        strength = run.options.get("strength")
        strength = self.strength if strength is None else float(strength)
        if not 0 < strength <= 1:
            raise ShowtellError(f"strength={strength}: use more than 0 and at most 1.")
        return strength

    def set_timesteps(self, run: Run, steps: int) -> None:
        super().set_timesteps(run, steps)
        custom = any(run.options.get(name) is not None for name in ("timesteps", "sigmas"))
        # Some schedulers count more timesteps than steps.
        steps = len(run.timesteps) if custom else steps
        kept = min(int(steps * self._strength(run)), steps)
        if kept < 1:
            raise ShowtellError(
                f"strength={self._strength(run)} of {steps} steps leaves none; raise num_inference_steps."
            )
        first = (steps - kept) * run.scheduler.order
        run.timesteps = run.timesteps[first:]
        if hasattr(run.scheduler, "set_begin_index"):
            run.scheduler.set_begin_index(first)

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        for name in ("image", "mask_image"):
            if not run.options.get(name):
                raise ShowtellError(f"{run.bridge.name} needs image and mask_image; {name} is missing.")
        shape = (len(run.prompts), *self.latent_shape(run))
        if latents is not None and tuple(latents.shape) != shape:
            raise ShowtellError(f"latents have the shape {tuple(latents.shape)}; this call needs {shape}.")
        dtype, scheduler = run.text.tokens.dtype, run.scheduler
        whole = self._strength(run) == 1.0
        pixels = self._once(run, "image", self.pipeline.image_processor)
        # The order of random draws is the pipeline's: the image's latents, the noise, the masked image's.
        image = None
        if self._blends or (latents is None and not whole):
            image = self._encoded(run, pixels)
        if latents is None:
            noise = randn_tensor(shape, generator=run.generators, device=self.device, dtype=dtype)
            start = noise * scheduler.init_noise_sigma
            if not whole:
                start = scheduler.add_noise(image, noise, run.timesteps[:1].repeat(len(noise)))
        else:
            noise = latents.to(device=self.device, dtype=dtype)
            start = noise * scheduler.init_noise_sigma
        run.own["inpaint"] = (pixels, image, noise)
        return start

    def condition(self, run: Run) -> None:
        super().condition(run)
        pixels, image, noise = run.own["inpaint"]
        mask = self._once(run, "mask_image", self.pipeline.mask_processor)
        around = self._encoded(run, pixels * (mask < 0.5))
        _, height, width = self.latent_shape(run)
        mask = torch.nn.functional.interpolate(mask, size=(height, width)).to(around)
        mask = mask.expand(len(run.prompts), -1, -1, -1)
        if self._blends:
            run.own["inpaint"] = (mask, image, noise)
            return
        channels = torch.cat([mask, around], dim=1)
        run.text = with_extra(run.text, "channels", channels)
        if run.negative is not None:
            run.negative = with_extra(run.negative, "channels", channels)

    def advance(self, run: Run, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        latents = super().advance(run, prediction, latents)
        if not self._blends:
            return latents
        mask, image, noise = run.own["inpaint"]
        if run.step + 1 < run.steps:
            following = run.timesteps[run.step + 1]
            image = run.scheduler.add_noise(image, noise, torch.tensor([following]))
        return (1 - mask) * image + mask * latents

    def _once(self, run: Run, name: str, processor: Any) -> torch.Tensor:
        """Pixels of the images of that option, a single row where one generator serves one image for all: the
        pipeline then draws once.
        """
        given = run.options[name]
        alike = all(one is given[0] for one in given) and not isinstance(run.generators, list)
        chosen = to_pil(given[:1] if alike else given)
        return processor.preprocess(chosen, height=run.height, width=run.width).float()

    def _encoded(self, run: Run, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(device=self.device, dtype=run.text.tokens.dtype)
        latents = self.pipeline._encode_vae_image(pixels, run.generators)
        return latents.repeat(len(run.prompts) // len(latents), 1, 1, 1)


class Inpaint(_Inpainting, StableDiffusion):
    options = StableDiffusion.options - {"guidance_rescale"} | {"image", "mask_image", "strength"}


class InpaintXL(_Inpainting, StableDiffusionXL):
    strength = 0.9999
    options = StableDiffusionXL.options | {
        "image", "mask_image", "strength", "aesthetic_score", "negative_aesthetic_score"
    }  # fmt: skip

    def _add_sizes(self, run: Run) -> None:
        size = (run.height, run.width)
        given = {name: value for name, value in run.options.items() if value is not None}
        original, target = given.get("original_size", size), given.get("target_size", size)
        crop = given.get("crops_coords_top_left", (0, 0))
        encoder = self.pipeline.text_encoder_2
        assert run.text.pooled is not None
        shown, blank = self.pipeline._get_add_time_ids(
            tuple(original),
            tuple(crop),
            tuple(target),
            given.get("aesthetic_score", 6.0),
            given.get("negative_aesthetic_score", 2.5),
            tuple(given.get("negative_original_size", original)),
            tuple(given.get("negative_crops_coords_top_left", (0, 0))),
            tuple(given.get("negative_target_size", target)),
            dtype=run.text.tokens.dtype,
            text_encoder_projection_dim=run.text.pooled.shape[-1] if encoder is None else encoder.config.projection_dim,
        )
        rows = len(run.prompts)
        run.text = with_extra(run.text, "time_ids", shown.to(self.device).repeat(rows, 1))
        if run.negative is not None:
            run.negative = with_extra(run.negative, "time_ids", blank.to(self.device).repeat(rows, 1))
