"""What the tests of the `steer` room share: tiny calls that return latents, on a UNet and on a joint transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

import showtell
import tiny

FAMILIES = ("sd", "sd3")
PROMPTS = ["a red ring left of a blue star", "a dog on the table"]


def bridge_of(name: str) -> Any:
    return showtell.load(tiny.shared(name))


def ddim(**more: Any) -> DDIMScheduler:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**{**betas, "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading", **more})


def sampled(name: str, *using: Any, prompts: Any = PROMPTS, **more: Any) -> torch.Tensor:
    """Latents of a short guided call, (n, channels, 8, 8). Stable Diffusion samples with DDIM."""
    if name == "sd":
        more.setdefault("scheduler", ddim())
    call = {"output_type": "latent", "seed": 3, "num_inference_steps": 3, **more}
    return torch.stack(bridge_of(name).generate(prompts, using=list(using), **tiny.keywords(name, **call)))
