"""Networks made from others before they are trained, and put in their places."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def widened(unet: Any, in_channels: int, out_channels: int | None = None) -> Any:
    """A float32 copy of a UNet with more channels in and out; the weights of the new ones are zero.

    At first it does what the original does with the first channels, whatever is in the others.
    """
    config = dict(unet.config) | {"in_channels": in_channels, "out_channels": out_channels or unet.config.out_channels}
    made = type(unet).from_config({name: value for name, value in config.items() if not name.startswith("_")})
    weights = {name: value.float() for name, value in unet.state_dict().items()}
    own = made.state_dict()
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            padded = torch.zeros(own[name].shape, device=weight.device)
            padded[tuple(slice(0, size) for size in weight.shape)] = weight
            weights[name] = padded
    made.load_state_dict(weights)
    return made.to(next(unet.parameters()).device)


def with_denoiser(adapter: Any, denoiser: nn.Module) -> Any:
    """The adapter of the same pipeline with another denoiser in it; the pipeline itself stays as it is."""
    pipeline = copy.copy(adapter.pipeline)
    setattr(pipeline, "unet" if hasattr(pipeline, "unet") else "transformer", denoiser)
    return type(adapter)(pipeline)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside the `with` no weight of these modules wants gradients; afterwards those that did want them again."""
    wanting = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in wanting:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_(True)
