"""Steps taken more than once: going back with new noise (time travel, self-recurrence) or to the start, and going ahead
for a look."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..bridges.base import as_list
from .noise import further_noise


def noise_like(run: Any, latents: Tensor, index: int) -> Tensor:
    """Further noise of a run, N(0, 1), by number; see `further_noise`, which gives it the first level's deviation."""
    return further_noise(run, latents, index) / getattr(run.scheduler, "init_noise_sigma", 1.0)


def renoised(run: Any, latents: Tensor, noise: Tensor) -> Tensor:
    """Latents after the current step, taken back by the forward process to the level before it. For `latents` hooks."""
    (alpha, sigma), (alpha_next, sigma_next) = run.noise_level(run.timestep), run.noise_level()
    ratio = alpha / alpha_next
    return ratio * latents + max(sigma**2 - (ratio * sigma_next) ** 2, 0.0) ** 0.5 * noise


def again(run: Any, latents: Tensor, scheduler: Any, rounds: int) -> Tensor:
    """The current step taken back and made again `rounds` times (arXiv 2302.07121, algorithm 1). For `latents` hooks.

    scheduler: a copy of the run's from before the step, as some count their steps.
    """
    for number in range(rounds):
        noisy = renoised(run, latents, noise_like(run, latents, 1000 + run.step * rounds + number))
        prediction = run.predict(noisy, run.timestep)
        run.scheduler = copy.deepcopy(scheduler)
        latents = run.adapter.advance(run, prediction, noisy)
    return latents


def ahead(run: Any, latents: Tensor, steps: int) -> None:
    """The first `steps` steps from the starting latents, for what techniques see in them. For `start` hooks.

    Afterwards the run stands where it stood: its scheduler, its step and its generators are what they were.
    """
    generators, scheduler = [one for one in as_list(run.generators) if one is not None], run.scheduler
    drawn = [one.get_state() for one in generators]
    run.scheduler = copy.deepcopy(scheduler)
    try:
        for step in range(steps):
            run.step = step
            latents = run.adapter.advance(run, run.predict(latents, run.timestep), latents)
    finally:
        run.scheduler, run.step = scheduler, 0
        for generator, before in zip(generators, drawn, strict=True):
            generator.set_state(before)


def repeated(run: Any, latents: Tensor, scheduler: Any, before: Callable[[Any, Tensor], Tensor | None]) -> Tensor:
    """From the first latents to the current step once more; the latents there. For `before` hooks (arXiv 2411.18301).

    before: what changes latents before each prediction. scheduler: a copy of the run's from before its first step. All
    samples have to pass, so that schedulers which remember steps have one history.
    """
    stop, run.scheduler = run.step, scheduler
    for step in range(stop):
        run.step = run._level = step
        changed = before(run, latents)
        latents = latents if changed is None else changed
        latents = run.adapter.advance(run, run.predict(latents), latents)
    run.step = run._level = stop
    return latents
