"""ControlNet (arXiv 2302.05543) on Stable Diffusion and SDXL: edges, depth, poses as a picture to follow."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ShowtellError
from ..pictures import to_pil
from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion, unet_calls, unet_layout, with_extra

_CONTROL = frozenset(
    {"image", "controlnet_conditioning_scale", "guess_mode", "control_guidance_start", "control_guidance_end"}
)


class _Controlled(Adapter):
    """image: the control, one per sample. guess_mode: the control alone guides, without the text's help."""

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        if options.get("image") and not height and not width:
            first = to_pil(options["image"][0])[0]
            height, width = self.pipeline.control_image_processor.get_default_height_width(first)
        return super().size(height, width)

    def condition(self, run: Run) -> None:
        super().condition(run)
        if not hasattr(self.pipeline.controlnet, "controlnet_cond_embedding"):
            raise ShowtellError(f"{run.bridge.name} takes one ControlNet, not several.")
        if not run.options.get("image"):
            raise ShowtellError(f"{run.bridge.name} needs the control image: give image.")
        pixels = self.pipeline.control_image_processor.preprocess(
            to_pil(run.options["image"]), height=run.height, width=run.width
        )
        pixels = pixels.to(device=self.device, dtype=self.pipeline.controlnet.dtype)
        run.text = with_extra(run.text, "control", pixels)
        if run.negative is not None:
            run.negative = with_extra(run.negative, "control", pixels)
        run.own["residuals"] = self._residuals

    def _residuals(
        self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text, added: Any
    ) -> dict[str, Any]:
        controlnet, rows = self.pipeline.controlnet, len(run.prompts)
        guess = bool(run.options.get("guess_mode") or controlnet.config.global_pool_conditions)
        # Guessing, the control is for the conditional rows (the last) alone.
        chosen = slice(len(latents) - rows, None) if guess else slice(None)
        down, middle = controlnet(
            latents[chosen],
            timestep,
            encoder_hidden_states=text.tokens[chosen],
            controlnet_cond=text.extra["control"][chosen],
            conditioning_scale=self._scale(run, timestep),
            guess_mode=guess,
            added_cond_kwargs=None if added is None else {name: t[chosen] for name, t in added.items()},
            return_dict=False,
        )
        if guess and len(latents) > rows:
            down, middle = [_after_zeros(d, latents) for d in down], _after_zeros(middle, latents)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _scale(self, run: Run, timestep: torch.Tensor) -> float:
        """The control's strength at this step, 0 before it starts and after it ends."""
        steps, step = len(run.timesteps), run.step
        if bool(run.timesteps[step] != timestep):
            step = int((run.timesteps - timestep).abs().argmin())
        first = run.options.get("control_guidance_start", 0.0)
        last = run.options.get("control_guidance_end", 1.0)
        if step / steps < first or (step + 1) / steps > last:
            return 0.0
        return float(run.options.get("controlnet_conditioning_scale", 1.0))

    def layout(self, run: Run) -> TokenLayout:
        layout = unet_layout(self, run)
        # The ControlNet attends first, where nobody looks.
        first = [(f"controlnet.{name}", "other") for name, _ in unet_calls(self.pipeline.controlnet)]
        return TokenLayout([*first, *layout.calls], layout.grids)


def _after_zeros(tensor: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """`tensor` as the last rows of as many as `latents` has, zeros before."""
    return torch.cat([tensor.new_zeros(len(latents) - len(tensor), *tensor.shape[1:]), tensor])


class ControlNet(_Controlled, StableDiffusion):
    options = StableDiffusion.options - {"guidance_rescale"} | _CONTROL


class ControlNetXL(_Controlled, StableDiffusionXL):
    zero_begin = False
    options = StableDiffusionXL.options - {"guidance_rescale"} | _CONTROL
