"""LTX-Video, text to video and image to video: a video transformer whose cross-attention reads a T5 text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.utils.torch_utils import randn_tensor

from .adapter import Adapter
from .base import Run, Text, spread
from .cogvideox import first_frames
from .layout import Grid, TokenLayout, self_then_cross
from .stable_diffusion import rescaled
from .wan import checked_frames
from .words import Piece


class LTXVideo(Adapter):
    steps = 50
    scale = 3.0
    rescaled_input = False
    latent_dtype = torch.float32
    text_options = frozenset({"max_sequence_length"})
    options = text_options | {"frame_rate", "guidance_rescale", "decode_timestep", "decode_noise_scale"}

    @property
    def multiple(self) -> int:
        return int(self.pipeline.vae_spatial_compression_ratio) * self.pipeline.transformer_spatial_patch_size

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        return height or 512, width or 704

    def frames(self, num_frames: int | None) -> int:
        factor = self.pipeline.vae_temporal_compression_ratio
        return checked_frames(161 if num_frames is None else num_frames, factor)

    def latent_shape(self, run: Run) -> tuple[int, ...]:
        assert run.num_frames is not None
        frames = (run.num_frames - 1) // self.pipeline.vae_temporal_compression_ratio + 1
        factor, patch = self.pipeline.vae_spatial_compression_ratio, self._patches
        channels = self.channels // (patch[0] * patch[1] * patch[2])
        return (channels, frames, run.height // factor, run.width // factor)

    @property
    def _patches(self) -> tuple[int, int, int]:
        side = self.pipeline.transformer_spatial_patch_size
        return (self.pipeline.transformer_temporal_patch_size, side, side)

    def grid(self, run: Run, patch: int = 1) -> Grid:
        sizes = zip(self.latent_shape(run)[1:], self._patches, strict=True)
        return tuple(length // size for length, size in sizes)

    def pieces(self, **options: Any) -> list[Piece]:
        return [Piece(self.pipeline.tokenizer, options.get("max_sequence_length") or 128)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            [prompt or "" for prompt in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=options.get("max_sequence_length") or 128,
            device=self.device,
        )
        return Text(tokens, mask=mask)

    def timestep_kwargs(self, run: Run, steps: int) -> dict[str, Any]:
        config = run.scheduler.config
        _, frames, height, width = self.latent_shape(run)
        shift = calculate_shift(
            frames * height * width,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": shift}

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        if latents is not None and latents.ndim == 3:
            # The pipeline takes and gives packed latents.
            latents = self._unpacked(latents, self.latent_shape(run)[1:])
        return super().start(run, latents)

    def _unpacked(self, latents: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        time, side, _ = self._patches
        frames, height, width = shape[0] // time, shape[1] // side, shape[2] // side
        return self.pipeline._unpack_latents(latents, frames, height, width, side, time)

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        time, side, _ = self._patches
        frames, height, width = latents.shape[2:]
        space = self.pipeline.vae_spatial_compression_ratio
        rate = run.options.get("frame_rate") or 25
        packed = self.denoiser(
            hidden_states=self.pipeline._pack_latents(latents, side, time).to(text.tokens.dtype),
            encoder_hidden_states=text.tokens,
            timestep=self._times(run, latents, timestep),
            encoder_attention_mask=text.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.pipeline.vae_temporal_compression_ratio / rate, space, space),
            return_dict=False,
        )[0]
        return self._unpacked(packed.float(), latents.shape[2:])

    def _times(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The time of every sample or of every token."""
        return timestep.expand(len(latents))

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return rescaled(self, run, super().guide(run, outputs), outputs["text"])

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        vae = self.pipeline.vae
        latents = self.unscale(latents).to(run.text.tokens.dtype)
        time = None
        if vae.config.timestep_conditioning:
            # This decoder takes the last step of denoising itself.
            count = len(latents)
            noise = randn_tensor(latents.shape, generator=run.generators, device=latents.device, dtype=latents.dtype)
            times = spread(run.options.get("decode_timestep", 0.0), count, "decode_timestep")
            given = run.options.get("decode_noise_scale")
            scales = times if given is None else spread(given, count, "decode_noise_scale")
            time = torch.tensor(times).to(latents)
            scale = torch.tensor(scales).to(latents)[:, None, None, None, None]
            latents = (1 - scale) * latents + scale * noise
        video = vae.decode(latents.to(vae.dtype), time, return_dict=False)[0]
        return self.pipeline.video_processor.postprocess_video(video, output_type=output_type)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        return self.pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def layout(self, run: Run) -> TokenLayout:
        return self_then_cross(self.denoiser, self.grid(run))


class LTXImageToVideo(LTXVideo):
    """image: the first frame, one per sample; the model is told it as latents of time 0, which stay as they are.

    Given `latents` hold the first frame already, as in the pipeline.
    """

    options = LTXVideo.options | {"image"}

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        if latents is not None:
            return super().start(run, latents)
        # Before the noise, as both are drawn from the same generators.
        vae, drawn = self.pipeline.vae, first_frames(self, run)
        first = self.pipeline._normalize_latents(drawn, vae.latents_mean, vae.latents_std)
        return torch.cat([first, super().start(run, None)[:, :, 1:]], dim=2)

    def _times(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        time, side, _ = self._patches
        known = torch.zeros_like(latents[:, :1])
        known[:, :, 0] = 1
        tokens = self.pipeline._pack_latents(known, side, time).squeeze(-1)
        return timestep.expand(len(latents))[:, None] * (1 - tokens)

    def advance(self, run: Run, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        later = super().advance(run, prediction[:, :, 1:], latents[:, :, 1:])
        return torch.cat([latents[:, :, :1], later], dim=2)
