"""AnimateDiff: Stable Diffusion's UNet on every frame, and attention between the frames in between."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ShowtellError
from .base import Run, Text
from .layout import TokenLayout, attention_calls, halvings
from .stable_diffusion import StableDiffusion


def motion_calls(unet: Any) -> list[tuple[str, str]]:
    """The attention calls of a UNetMotionModel: in every block, a frame's own attention and then that between
    the frames ("other": its tokens are frames, not places), in turn.
    """

    def kind(name: str, module: Any) -> str:
        return "cross" if module.is_cross_attention else "self"

    def blocks(part: str) -> list[tuple[str, Any]]:
        return [(f"{part}.{i}", block) for i, block in enumerate(getattr(unet, part))]

    calls: list[tuple[str, str]] = []
    for name, block in [*blocks("down_blocks"), ("mid_block", unet.mid_block), *blocks("up_blocks")]:
        spatial = list(getattr(block, "attentions", []) or [])
        motion = list(getattr(block, "motion_modules", []) or [])
        for i in range(max(len(spatial), len(motion))):
            if i < len(spatial):
                found = attention_calls(spatial[i], kind)
                calls += [(f"{name}.attentions.{i}.{inner}", what) for inner, what in found]
            if i < len(motion):
                found = attention_calls(motion[i], lambda inner, module: "other")
                calls += [(f"{name}.motion_modules.{i}.{inner}", what) for inner, what in found]
    return calls


class AnimateDiff(StableDiffusion):
    options = frozenset({"eta", "clip_skip", "decode_chunk_size"})

    def frames(self, num_frames: int | None) -> int:
        most = int(self.denoiser.config.motion_max_seq_length)
        frames = min(16, most) if num_frames is None else num_frames
        if not 1 <= frames <= most:
            raise ShowtellError(f"num_frames={num_frames}: use 1 to {most}, as many as this model has positions for.")
        return frames

    def latent_shape(self, run: Run) -> tuple[int, ...]:
        assert run.num_frames is not None
        factor = self.pipeline.vae_scale_factor
        return (self.channels, run.num_frames, run.height // factor, run.width // factor)

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        if self.pipeline.free_init_enabled or self.pipeline.free_noise_enabled:
            raise ShowtellError(
                "FreeInit and FreeNoise change the pipeline's own loop, which a bridge does not use: "
                "call disable_free_init() and disable_free_noise() on the pipeline first."
            )
        return super().start(run, latents)

    def guided(self, run: Run) -> bool:
        return run.guidance > 1

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        tokens = text.tokens.repeat_interleave(latents.shape[2], dim=0)
        return self.denoiser(latents, timestep, encoder_hidden_states=tokens, return_dict=False)[0]

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if "negative" not in outputs or run.guidance == 1:
            return outputs["text"]
        return outputs["negative"] + run.guidance * (outputs["text"] - outputs["negative"])

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        video = self.pipeline.decode_latents(latents, run.options.get("decode_chunk_size") or 16)
        return self.pipeline.video_processor.postprocess_video(video=video, output_type=output_type)

    def layout(self, run: Run) -> TokenLayout:
        _, frames, height, width = self.latent_shape(run)
        levels = len(self.denoiser.config.block_out_channels)
        return TokenLayout(motion_calls(self.denoiser), halvings(height, width, levels), fold=frames)
