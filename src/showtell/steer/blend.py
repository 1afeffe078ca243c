"""Keeping a part of the image: known latents, noised to the current level, blended in under a mask."""

from __future__ import annotations

from typing import Any

import torch

from ..bridges.base import Technique
from ..errors import ShowtellError
from .regions import Box, mask_on


class BlendLatents(Technique):
    """Outside the mask every step returns to known latents at its noise level; inside the prompt is free.

    Blended latent diffusion (arXiv 2206.02779, algorithm 1). known: clean latents (n, ...) or (1, ...), such as
    `bridge.to_latents(images)`. mask: a box or mask (height, width), 1 where the image may change; one for all samples
    or a list of one each. until: fraction of the sampling; up to 1 the known part comes back exactly. A mask of ones
    changes nothing. The known latents get the run's starting noise.
    """

    def __init__(
        self, known: torch.Tensor, mask: Box | torch.Tensor | list[Box | torch.Tensor], until: float = 1.0
    ) -> None:
        self.known, self.mask, self.until = known, mask, until

    def start(self, run: Any, latents: torch.Tensor) -> None:
        if self.known.shape[1:] != latents.shape[1:] or len(self.known) not in (1, len(latents)):
            raise ShowtellError(
                f"known latents have the shape {tuple(self.known.shape)}; this call has {tuple(latents.shape)}."
            )
        masks = self.mask if isinstance(self.mask, list) else [self.mask] * len(latents)
        if len(masks) != len(latents):
            raise ShowtellError(
                f"mask: got {len(masks)} for {len(latents)} samples; give one, or exactly {len(latents)}."
            )
        state = run.state(self)
        state.mask = torch.stack([mask_on(mask, latents.shape[2:]) for mask in masks])[:, None].to(latents)
        state.known = self.known.to(latents)
        state.noise = latents / getattr(run.scheduler, "init_noise_sigma", 1.0)

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        state = run.state(self)
        if (run.step + 1) / run.steps > self.until:
            return None
        return blended(latents, run.add_noise(state.known, state.noise), state.mask)


def blended(inside: torch.Tensor, outside: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mask inside + (1 - mask) outside; exactly the one or the other where the mask is 1 or 0."""
    return torch.where(mask == 1, inside, torch.where(mask == 0, outside, mask * inside + (1 - mask) * outside))
