"""Keeping a part of the image: known or recorded latents blended in under a mask."""

from __future__ import annotations

from typing import Any

import torch

from ..bridges.base import Technique
from ..errors import ShowtellError
from .noise import further_noise
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
        state = run.state(self)
        state.mask = sample_masks(self.mask, latents)
        state.known = self.known.to(latents)
        state.noise = latents / getattr(run.scheduler, "init_noise_sigma", 1.0)

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        state = run.state(self)
        if (run.step + 1) / run.steps > self.until:
            return None
        return blended(latents, run.add_noise(state.known, state.noise), state.mask)


class RecordLatents(Technique):
    """Writes down a run's latents: the starting noise, then those after every step. The run does not change.

    kept: a list that is emptied first; it gets steps + 1 tensors (n, channels, ...). List this technique last.
    """

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self.kept = kept

    def before(self, run: Any, latents: torch.Tensor) -> None:
        if run.step == 0:
            self.kept[:] = [latents.detach().clone()]

    def latents(self, run: Any, latents: torch.Tensor) -> None:
        self.kept.append(latents.detach().clone())


class RepaintLatents(Technique):
    """Inside a mask the run starts from new noise and is free, outside every step returns to a recorded run's latents.

    kept: of `RecordLatents`, from a run of as many samples and steps. mask, until: as `BlendLatents` takes them; a mask
    of zeros gives the recorded run again. List this technique after those that change latents.
    """

    def __init__(
        self, kept: list[torch.Tensor], mask: Box | torch.Tensor | list[Box | torch.Tensor], until: float = 1.0
    ) -> None:
        self.kept, self.mask, self.until = kept, mask, until

    def start(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        if len(self.kept) != run.steps + 1 or self.kept[0].shape != latents.shape:
            had = f"{len(self.kept) - 1} steps of latents {tuple(self.kept[0].shape)}" if self.kept else "nothing"
            raise ShowtellError(f"recorded: {had}; this call has {run.steps} steps of {tuple(latents.shape)}.")
        run.state(self).mask = sample_masks(self.mask, latents)
        return self._kept(run, further_noise(run, latents, 1), 0)

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        return self._kept(run, latents, run.step + 1) if (run.step + 1) / run.steps <= self.until else None

    def _kept(self, run: Any, latents: torch.Tensor, index: int) -> torch.Tensor:
        return blended(latents, self.kept[index].to(latents), run.state(self).mask)


def sample_masks(mask: Any, latents: torch.Tensor) -> torch.Tensor:
    """One mask for all samples, or a list of one each, on the grid of the latents (n, channels, ...), as (n, 1, ...).

    mask: boxes, or masks (height, width) from 0 to 1. Raises ShowtellError for a list of another length.
    """
    masks = mask if isinstance(mask, list) else [mask] * len(latents)
    if len(masks) != len(latents):
        raise ShowtellError(f"mask: got {len(masks)} for {len(latents)} samples; give one, or exactly {len(latents)}.")
    return torch.stack([mask_on(one, latents.shape[2:]) for one in masks])[:, None].to(latents)


def blended(inside: torch.Tensor, outside: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mask inside + (1 - mask) outside; exactly the one or the other where the mask is 1 or 0."""
    return torch.where(mask == 1, inside, torch.where(mask == 0, outside, mask * inside + (1 - mask) * outside))
