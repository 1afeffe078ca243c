"""Stable Video Diffusion: an image animated without words, by a UNet with attention within and between the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..errors import ShowtellError
from ..pictures import to_pil
from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, halvings
from .words import Piece


class StableVideoDiffusion(Adapter):
    """guidance_scale: of the last frame (the pipeline's max_guidance_scale); min_guidance_scale: of the first.

    Prompts say nothing to this model: one is needed for each image, "" will do. The text's only token is the image.
    """

    steps = 25
    scale = 3.0
    text_encoders = ()
    options = frozenset(
        {"image", "min_guidance_scale", "fps", "motion_bucket_id", "noise_aug_strength", "decode_chunk_size", "sigmas"}
    )
    per_sample = frozenset({"image"})

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.out_channels)

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        return height or 576, width or 1024

    def frames(self, num_frames: int | None) -> int:
        frames = int(self.denoiser.config.num_frames if num_frames is None else num_frames)
        if frames < 1:
            raise ShowtellError(f"num_frames={num_frames}: use 1 or more.")
        return frames

    def latent_shape(self, run: Run) -> tuple[int, ...]:
        assert run.num_frames is not None
        factor = self.pipeline.vae_scale_factor
        return (self.channels, run.num_frames, run.height // factor, run.width // factor)

    def pieces(self, **options: Any) -> list[Piece]:
        return []

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        width = self.denoiser.config.cross_attention_dim
        return Text(torch.zeros(len(prompts), 1, width, device=self.device, dtype=self.denoiser.dtype))

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        if not run.options.get("image"):
            raise ShowtellError("this model animates an image: give one, as in animate(prompts, images).")
        images = to_pil(run.options["image"])
        pixels = self.pipeline.video_processor.preprocess(images, height=run.height, width=run.width).to(self.device)
        # The image's noise comes first, as both are drawn from the same generators.
        noise = randn_tensor(pixels.shape, generator=run.generators, device=self.device, dtype=pixels.dtype)
        run.own["shown"] = pixels + run.options.get("noise_aug_strength", 0.02) * noise
        channels, frames, *size = self.latent_shape(run)
        if latents is None:
            shape = (len(images), frames, channels, *size)  # the pipeline has frames first
            latents = randn_tensor(shape, generator=run.generators, device=self.device, dtype=run.text.tokens.dtype)
            latents = latents.transpose(1, 2)
        elif tuple(latents.shape[1:3]) == (frames, channels) != (channels, frames):
            latents = latents.transpose(1, 2)
        return super().start(run, latents)

    def condition(self, run: Run) -> None:
        images = to_pil(run.options["image"])  # one at a time, as they may differ in size
        tokens = torch.cat([self.pipeline._encode_image(image, self.device, 1, False) for image in images])
        vae = self.pipeline.vae
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            vae.to(torch.float32)
        shown = self.pipeline._encode_vae_image(run.own["shown"], self.device, 1, False).to(tokens.dtype)
        if upcast:
            vae.to(torch.float16)
        rate, motion = run.options.get("fps", 7) - 1, run.options.get("motion_bucket_id", 127)
        noise = run.options.get("noise_aug_strength", 0.02)
        ids = self.pipeline._get_add_time_ids(rate, motion, noise, tokens.dtype, len(tokens), 1, False).to(self.device)
        run.text = replace(run.text, tokens=tokens, extra={"shown": shown, "time_ids": ids})
        if run.negative is not None:
            nothing = {"shown": torch.zeros_like(shown), "time_ids": ids}
            run.negative = replace(run.negative, tokens=torch.zeros_like(tokens), extra=nothing)

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        shown = text.extra["shown"][:, None].expand(-1, latents.shape[2], -1, -1, -1)
        return self.denoiser(
            torch.cat([latents.transpose(1, 2), shown], dim=2),
            timestep,
            encoder_hidden_states=text.tokens,
            added_time_ids=text.extra["time_ids"],
            return_dict=False,
        )[0].transpose(1, 2)

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if "negative" not in outputs or run.guidance == 1:
            return outputs["text"]
        nothing, image = outputs["negative"], outputs["text"]
        least = float(run.options.get("min_guidance_scale", 1.0))
        scales = torch.linspace(least, run.guidance, nothing.shape[2]).to(nothing).view(1, 1, -1, 1, 1)
        return nothing + scales * (image - nothing)

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        frames = latents.shape[2]
        chunk = run.options.get("decode_chunk_size") or frames
        video = self.pipeline.decode_latents(latents.transpose(1, 2), frames, chunk)
        return self.pipeline.video_processor.postprocess_video(video=video, output_type=output_type)

    def layout(self, run: Run) -> TokenLayout:
        calls: list[tuple[str, str]] = []
        named = dict(self.denoiser.named_modules())
        order = ("down_blocks", "mid_block", "up_blocks")
        places = [name for part in order for name in named if name.startswith(part)]
        for name in (place for place in places if hasattr(named[place], "temporal_transformer_blocks")):
            for i in range(len(named[name].transformer_blocks)):
                within, between = f"{name}.transformer_blocks.{i}", f"{name}.temporal_transformer_blocks.{i}"
                calls += [(f"{within}.attn1", "self"), (f"{within}.attn2", "cross")]
                calls += [(f"{between}.attn1", "other"), (f"{between}.attn2", "other")]
        _, frames, height, width = self.latent_shape(run)
        levels = len(self.denoiser.config.block_out_channels)
        return TokenLayout(calls, halvings(height, width, levels), fold=frames)
