"""Wan 2.1 and 2.2, text to video and image to video: a video transformer whose cross-attention reads a UMT5
text and, in some models, the first image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import ShowtellError
from .adapter import Adapter
from .base import Run, Text
from .layout import Grid, TokenLayout, attention_calls
from .words import Piece


def checked_frames(num_frames: int, factor: int) -> int:
    """`num_frames` where the causal autoencoder can take it: a multiple of `factor`, plus one."""
    if num_frames < 1 or (num_frames - 1) % factor:
        near = max(0, round((num_frames - 1) / factor)) * factor + 1
        raise ShowtellError(
            f"num_frames={num_frames}: this model makes {factor} * n + 1 frames; the nearest is {near}."
        )
    return num_frames


def statistics(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the autoencoder's channels, (1, channels, 1, 1, 1)."""
    config = vae.config
    mean, std = (torch.tensor(values).to(latents) for values in (config.latents_mean, config.latents_std))
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


class Wan(Adapter):
    """guidance_scale_2: guidance of the second model, where there are two, one per range of noise levels."""

    steps = 50
    scale = 5.0
    rescaled_input = False
    zero_begin = True
    latent_dtype = torch.float32
    text_options = frozenset({"max_sequence_length"})
    options = text_options | {"guidance_scale_2"}

    @property
    def denoiser(self) -> Any:
        # Wan 2.2 checkpoints may hold either of two models, or both.
        first = self.pipeline.transformer
        return first if first is not None else self.pipeline.transformer_2

    @property
    def multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor_spatial) * self.denoiser.config.patch_size[1]

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        return height or 480, width or 832

    def frames(self, num_frames: int | None) -> int:
        factor = self.pipeline.vae_scale_factor_temporal
        return checked_frames(81 if num_frames is None else num_frames, factor)

    def latent_shape(self, run: Run) -> tuple[int, ...]:
        assert run.num_frames is not None
        frames = (run.num_frames - 1) // self.pipeline.vae_scale_factor_temporal + 1
        factor = self.pipeline.vae_scale_factor_spatial
        return (self.channels, frames, run.height // factor, run.width // factor)

    def grid(self, run: Run, patch: int = 1) -> Grid:
        shape, sizes = self.latent_shape(run)[1:], self.denoiser.config.patch_size
        return tuple(length // size for length, size in zip(shape, sizes, strict=True))

    def pieces(self, **options: Any) -> list[Piece]:
        return [Piece(self.pipeline.tokenizer, options.get("max_sequence_length") or 512)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        tokens, _ = self.pipeline.encode_prompt(
            [prompt or "" for prompt in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=options.get("max_sequence_length") or 512,
            device=self.device,
        )
        return Text(tokens.to(self.denoiser.dtype))

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        hidden, time = self._inputs(run, latents, timestep, text)
        image = text.extra.get("image")
        return self._model(run, timestep)(
            hidden_states=hidden.to(self.denoiser.dtype),
            timestep=time,
            encoder_hidden_states=text.tokens,
            encoder_hidden_states_image=None if image is None else image.flatten(0, 1),
            return_dict=False,
        )[0]

    def _inputs(
        self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model sees as its latents, and the time of every sample or of every token."""
        if not self.pipeline.config.expand_timesteps:
            return latents, timestep.expand(len(latents))
        tokens = torch.ones(latents.shape[2:], device=latents.device)[:, ::2, ::2]
        return latents, (tokens * timestep).flatten().expand(len(latents), -1)

    def _model(self, run: Run, timestep: torch.Tensor) -> Any:
        """The model of this noise level; remembers which, for `guide`."""
        boundary = self.pipeline.config.boundary_ratio
        late = boundary is not None and timestep < boundary * run.scheduler.config.num_train_timesteps
        run.own["late"] = bool(late)
        return self.pipeline.transformer_2 if late else self.pipeline.transformer

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        scale = run.options.get("guidance_scale_2") if run.own.get("late") else None
        scale = run.guidance if scale is None else scale
        if "negative" not in outputs or (run.guidance == 1 and scale == 1):
            return outputs["text"]
        return outputs["negative"] + scale * (outputs["text"] - outputs["negative"])

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        latents = latents.to(self.pipeline.vae.dtype)
        video = self.pipeline.vae.decode(self.unscale(latents), return_dict=False)[0]
        return self.pipeline.video_processor.postprocess_video(video, output_type=output_type)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = statistics(self.pipeline.vae, latents)
        # The reciprocal's reciprocal, as the pipeline has it.
        return latents / (1.0 / std) + mean

    def rescale(self, encoded: torch.Tensor) -> torch.Tensor:
        mean, std = statistics(self.pipeline.vae, encoded)
        return (encoded - mean) * (1.0 / std)

    def layout(self, run: Run) -> TokenLayout:
        calls: list[tuple[str, str]] = []
        for name, kind in attention_calls(self.denoiser, _kind):
            if kind == "both":
                # Attention to the image's tokens comes before attention to the text's.
                calls += [(name, "other"), (name, "cross")]
            else:
                calls.append((name, kind))
        grid = self.grid(run)
        return TokenLayout(calls, {grid[0] * grid[1] * grid[2]: grid})


def _kind(name: str, module: Any) -> str:
    if name.endswith("attn1"):
        return "self"
    return "cross" if module.add_k_proj is None else "both"


class WanImageToVideo(Wan):
    """image: the first frame, one per sample; last_image: the last frame, where the model takes one."""

    zero_begin = False
    options = Wan.options | {"image", "last_image"}
    per_sample = frozenset({"image", "last_image"})

    @property
    def channels(self) -> int:
        return int(self.pipeline.vae.config.z_dim)

    def condition(self, run: Run) -> None:
        if run.options.get("image") is None:
            raise ShowtellError("this model animates an image: give one, as in animate(prompts, images).")
        first, last = run.options["image"], run.options.get("last_image") or [None] * len(run.prompts)
        made: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor | None]] = {}
        keys = [(id(a), id(b)) for a, b in zip(first, last, strict=True)]
        for key, a, b in zip(keys, first, last, strict=True):
            if key not in made:
                made[key] = self._latents(run, a, b), self._image_tokens(a, b)
        extra = {"condition": torch.cat([made[key][0] for key in keys])}
        tokens = [made[key][1] for key in keys]
        if tokens[0] is not None:
            extra["image"] = torch.cat([part for part in tokens if part is not None])
        run.text = replace(run.text, extra={**run.text.extra, **extra})
        if run.negative is not None:
            run.negative = replace(run.negative, extra={**run.negative.extra, **extra})

    def _latents(self, run: Run, first: Any, last: Any) -> torch.Tensor:
        """Latents of the clip that is known, (1, channels, frames, height, width), behind a mask of its
        frames where the model does not tell known frames by their time.
        """
        assert run.num_frames is not None
        vae, factor = self.pipeline.vae, self.pipeline.vae_scale_factor_temporal
        expanding = self.pipeline.config.expand_timesteps
        frames = 1 if expanding else run.num_frames
        clip = torch.zeros(1, 3, frames, run.height, run.width, device=self.device)
        known = torch.zeros(run.num_frames)
        for image, at in ((first, 0), (last, -1)):
            if image is not None and not (expanding and at):
                pixels = self.pipeline.video_processor.preprocess(image, height=run.height, width=run.width)
                clip[:, :, at] = pixels.to(self.device, torch.float32)
                known[at] = 1
        encoded = self.rescale(vae.encode(clip.to(vae.dtype)).latent_dist.mode().float())
        if expanding:
            return encoded
        # The first latent frame stands for one frame, every other for `factor`.
        known = torch.cat([known[:1].repeat(factor), known[1:]]).view(-1, factor).T
        mask = known[None, :, :, None, None].expand(-1, -1, -1, *encoded.shape[-2:])
        return torch.cat([mask.to(encoded), encoded], dim=1)

    def _image_tokens(self, first: Any, last: Any) -> torch.Tensor | None:
        """What the image encoder reads, (1, images, tokens, channels)."""
        if self.denoiser.config.image_dim is None:
            return None
        images = [first] if last is None else [first, last]
        return self.pipeline.encode_image(images, self.device).to(self.denoiser.dtype)[None]

    def _inputs(
        self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text
    ) -> tuple[torch.Tensor, torch.Tensor]:
        condition = text.extra["condition"]
        if not self.pipeline.config.expand_timesteps:
            return torch.cat([latents, condition], dim=1), timestep.expand(len(latents))
        tokens = torch.ones(latents.shape[2:], device=latents.device)[:, ::2, ::2].clone()
        tokens[0] = 0
        times = (tokens * timestep).flatten().expand(len(latents), -1)
        return self._with_first(latents, condition), times

    def _with_first(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.cat([condition[:, :, :1].to(latents), latents[:, :, 1:]], dim=2)

    def advance(self, run: Run, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        latents = super().advance(run, prediction, latents)
        if self.pipeline.config.expand_timesteps and run.step + 1 == run.steps:
            return self._with_first(latents, run.text.extra["condition"])
        return latents
