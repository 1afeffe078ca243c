"""Parts of the image denoised on their own, at their own size and with their own prompt, beside a run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..bridges.base import Run
from ..bridges.loop import DenoisingRun
from .regions import Box


def window(box: Box, grid: Sequence[int], multiple: int = 1) -> tuple[slice, slice]:
    """The rows and columns of a grid (height, width) that a box stands for, at multiples of `multiple` cells, one such
    multiple wide at least.
    """
    spans = []
    for low, high, cells in ((box[1], box[3], grid[0]), (box[0], box[2], grid[1])):
        units = cells // multiple
        first = min(round(low * units), units - 1)
        last = max(round(high * units), first + 1)
        spans.append(slice(first * multiple, last * multiple))
    return spans[0], spans[1]


@dataclass
class Crop:
    """A part of one sample that is denoised alone. latents: (1, channels, height, width), those of `where` at first."""

    run: DenoisingRun
    row: int
    where: tuple[slice, slice]
    latents: torch.Tensor

    def step(self, step: int) -> None:
        """One guided prediction and one step of the scheduler, from the noise level of that step to the next."""
        self.run.step = self.run._level = step
        prediction = self.run.predict(self.latents)
        self.latents = self.run.adapter.advance(self.run, prediction, self.latents)

    def paste(self, latents: torch.Tensor) -> None:
        """Writes the part into the whole, in place."""
        latents[(self.row, slice(None), *self.where)] = self.latents[0].to(latents)


def crop(run: Run, latents: torch.Tensor, row: int, box: Box, prompt: str) -> Crop:
    """The part of sample `row` in a box, to be denoised alone with `prompt`: no techniques, but the run's guidance,
    negative prompt and timesteps, and a copy of its scheduler.
    """
    assert isinstance(run, DenoisingRun)
    factor = run.height // latents.shape[-2]
    where = window(box, latents.shape[-2:], max(1, run.adapter.multiple // factor))
    own = DenoisingRun(run.bridge, run.adapter, [prompt], ())
    own.options = {name: _row(value, row, name, run) for name, value in run.options.items()}
    own.guidance, own.timesteps, own.steps = run.guidance, run.timesteps, run.steps
    own.scheduler = copy.deepcopy(run.scheduler)
    own.height, own.width = (factor * (span.stop - span.start) for span in where)
    own.generators = [torch.Generator().manual_seed(_seed(run.generators, row, where))]
    own.text = own.encode([prompt])
    if run.negative is not None:
        said = None if run.negative_prompts is None else run.negative_prompts[row]
        own.negative_prompts = None if said is None else [said]
        own.negative = run.bridge._encode([said], True, own.options)  # type: ignore[attr-defined]
    own.adapter.condition(own)
    return Crop(own, row, where, latents[(slice(row, row + 1), slice(None), *where)].clone())


def _row(value: Any, row: int, name: str, run: DenoisingRun) -> Any:
    """An option of one sample, of those that come one per sample."""
    return [value[row]] if name in run.adapter.per_sample and isinstance(value, list) else value


def _seed(generators: Any, row: int, where: tuple[slice, slice]) -> int:
    """For schedulers that draw noise: from the sample's seed and the place."""
    own = generators[row] if isinstance(generators, list) else generators
    seed = 0 if own is None else own.initial_seed()
    return (seed + 7919 * where[0].start + 104729 * where[1].start) % 2**63
