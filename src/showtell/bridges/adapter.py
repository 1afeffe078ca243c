"""What one diffusion family does its own way. The loop is shared; a family supplies these small pieces and
nothing else.

The defaults fit a text-to-image pipeline of diffusers with a `vae`, a `scheduler`, a `transformer` (or
`unet`) and spatial
latents (n, channels, height, width); a family overrides where its pipeline differs. Techniques always see
spatial latents:
a family that packs them does so inside `predict`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..errors import ShowtellError
from .base import Run, Text
from .layout import Grid, TokenLayout
from .words import Piece


class Adapter:
    """Base of the diffusion families; holds the pipeline, no state of a call.

    steps, scale: the pipeline's default number of steps and guidance scale. options: the further keywords
        it accepts;
        text_options: those of them that `encode` and `pieces` take;
        per_sample: those of them that come one per sample (`run.options` holds a list of them, as long as
            `run.prompts`).
    text_encoders: names of the components whose weights the encoded text depends on.
    rescaled_input: whether the pipeline passes latents through `scheduler.scale_model_input`.
    zero_begin: whether the pipeline calls `scheduler.set_begin_index(0)`.
    latent_dtype: of the latents, where the pipeline does not keep them in the text's.
    """

    steps: int = 50
    scale: float = 7.5
    options: frozenset[str] = frozenset()
    text_options: frozenset[str] = frozenset()
    per_sample: frozenset[str] = frozenset({"image", "mask_image", "control_image", "ip_adapter_image"})
    text_encoders: tuple[str, ...] = ("text_encoder",)
    rescaled_input: bool = True
    zero_begin: bool = False
    latent_dtype: torch.dtype | None = None

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    # Facts about the pipeline

    @property
    def denoiser(self) -> Any:
        return self.pipeline.unet if hasattr(self.pipeline, "unet") else self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return self.pipeline._execution_device

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.denoiser.config.in_channels)

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(self.pipeline.vae_scale_factor)

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        """Height and width in pixels: the model's own (or a given image's) where not given."""
        own = self.denoiser.config.sample_size
        own_height, own_width = (own, own) if isinstance(own, int) else own
        factor = self.pipeline.vae_scale_factor
        if not height or not width:
            return height or own_height * factor, width or own_width * factor
        return height, width

    def frames(self, num_frames: int | None) -> int | None:
        """Frames of the output; None for families that make images."""
        if num_frames not in (None, 1):
            raise ShowtellError(f"num_frames={num_frames}: this model makes single images; leave num_frames out.")
        return None

    def latent_shape(self, run: Run) -> tuple[int, ...]:
        """Shape of one sample's latents, without the batch dimension."""
        factor = self.pipeline.vae_scale_factor
        return (self.channels, run.height // factor, run.width // factor)

    # Language in

    def pieces(self, **options: Any) -> list[Piece]:
        """How the tokenizers lay a prompt into the text tokens."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        """Prompts (None: the pipeline's default negative prompt) as the denoiser takes them, one row each."""
        raise NotImplementedError

    # Denoising

    def set_timesteps(self, run: Run, steps: int) -> None:
        """Sets `run.timesteps` on the run's scheduler as the pipeline does."""
        # Imported here: it draws in the whole Stable Diffusion pipeline, and embedded models start faster without.
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

        kwargs = self.timestep_kwargs(run, steps)
        run.timesteps, _ = retrieve_timesteps(run.scheduler, steps, self.device, **kwargs)
        if self.zero_begin and hasattr(run.scheduler, "set_begin_index"):
            run.scheduler.set_begin_index(0)

    def timestep_kwargs(self, run: Run, steps: int) -> dict[str, Any]:
        """Keywords of `retrieve_timesteps`: custom timesteps or sigmas, and a resolution-dependent shift."""
        return {name: run.options[name] for name in ("timesteps", "sigmas") if run.options.get(name) is not None}

    def start(self, run: Run, latents: torch.Tensor | None) -> torch.Tensor:
        """The starting latents: drawn as the pipeline draws them, or the given ones, at the scheduler's
        first noise level.
        """
        shape = (len(run.prompts), *self.latent_shape(run))
        dtype = self.latent_dtype or run.text.tokens.dtype
        if latents is None:
            latents = randn_tensor(shape, generator=run.generators, device=self.device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ShowtellError(f"latents have the shape {tuple(latents.shape)}; this call needs {shape}.")
        latents = latents.to(device=self.device, dtype=dtype)
        return latents * getattr(run.scheduler, "init_noise_sigma", 1.0)

    def condition(self, run: Run) -> None:
        """Adds what the text alone does not say (reference images, sizes, masks) to `run.text`,
        `run.negative` or `run.own`.

        Called once, after `start`.
        """

    def guided(self, run: Run) -> bool:
        """Whether the unconditional prediction is part of the guided one."""
        return run.guidance > 1

    def branches(self, run: Run) -> dict[str, Text]:
        """The texts evaluated in one batch for a prediction, in order; "text" is the conditional one."""
        if run.negative is None:
            return {"text": run.text}
        return {"negative": run.negative, "text": run.text}

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        """The denoiser's prediction for a batch: latents (rows, ...), scalar timestep, text with as many
        rows.
        """
        raise NotImplementedError

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Combines the predictions of the branches."""
        if "negative" not in outputs or run.guidance == 1:
            return outputs["text"]
        return outputs["negative"] + run.guidance * (outputs["text"] - outputs["negative"])

    def advance(self, run: Run, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """One step of the scheduler."""
        kwargs = self.step_kwargs(run)
        return run.scheduler.step(prediction, run.timestep, latents, **kwargs, return_dict=False)[0]

    def step_kwargs(self, run: Run) -> dict[str, Any]:
        """Keywords of `scheduler.step`; the pipelines that pass `eta` and the generator have
        `prepare_extra_step_kwargs`.
        """
        if not hasattr(self.pipeline, "prepare_extra_step_kwargs"):
            return {}
        accepted = inspect.signature(run.scheduler.step).parameters
        given = {"eta": run.options.get("eta", 0.0), "generator": run.generators}
        return {name: value for name, value in given.items() if name in accepted}

    # Vision out, and in again

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        """Images of latents, as the pipeline gives them for `output_type` ("pil", "np" or "pt")."""
        pixels = self.pipeline.vae.decode(self.unscale(latents), return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(pixels.detach(), output_type=output_type)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE takes them."""
        config = self.pipeline.vae.config
        return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    def rescale(self, encoded: torch.Tensor) -> torch.Tensor:
        """What the VAE gives as latents of the denoiser, the inverse of `unscale`."""
        config = self.pipeline.vae.config
        return (encoded - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents (the mode of the VAE's distribution) of pixels (n, 3, height, width) in [-1, 1]."""
        return self.rescale(self.pipeline.vae.encode(pixels).latent_dist.mode())

    # Attention

    def layout(self, run: Run) -> TokenLayout:
        """Where text and image lie in the denoiser's attention calls."""
        raise NotImplementedError

    def grid(self, run: Run, patch: int = 1) -> Grid:
        """Image tokens of a transformer with that patch size."""
        *frames, height, width = self.latent_shape(run)[1:]
        return (*frames, height // patch, width // patch)
