"""Going back a step with new noise and taking it again: time travel, self-recurrence."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

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
