"""From images to the noise they come from: deterministic inversion (DDIM, flow) and edit-friendly DDPM inversion.

As techniques: the run starts from what the inversion gives and samples back with the call's own prompt, so a call with
the source prompt reconstructs and one with another prompt edits.
"""

from __future__ import annotations

from typing import Any

import torch

from ..bridges.base import Run, Technique, Text, spread
from ..errors import ShowtellError


def levels(run: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) at every timestep of the run and at its clean end: steps + 1 pairs."""
    return [run.noise_level(timestep) for timestep in run.timesteps] + [(1.0, 0.0)]


def coefficients(run: Any, index: int) -> tuple[float, float]:
    """(a, b) of the first-order deterministic step from timestep `index`: latents_next = a latents + b prediction.

    The DDIM step (arXiv 2010.02502, eq. 12 with eta 0) for any prediction type; for flow models a is 1 and b the
    step of sigma (Euler).
    """
    timestep = run.timesteps[index]
    (alpha, sigma), (alpha_next, sigma_next) = levels(run)[index : index + 2]
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    of_latents, of_prediction = float(run.clean(zero, one, timestep)), float(run.clean(one, zero, timestep))
    a = alpha_next * of_latents + sigma_next * (1 - alpha * of_latents) / sigma
    b = alpha_next * of_prediction - sigma_next * alpha * of_prediction / sigma
    return a, b


class Inversion(Technique):
    """Deterministic inversion of clean latents along the run's own timesteps; sampling then starts from what is found.

    DDIM inversion for noise- and v-predicting models (arXiv 2105.05233, app. F), Euler inversion for flow models. Each
    backward step solves latents_next = a latents + b prediction(latents) for latents by fixed-point iteration: one
    iteration is the classical approximation, more of them (arXiv 2309.04907) make the round trip exact if they
    converge, which strong guidance at few steps may prevent.
    latents: clean ones, (n, ...), such as `bridge.to_latents(images)`. prompt: the source prompt (default: the call's).
    guided: inverts with the call's guidance and techniques, for the call's own prompt; otherwise without guidance.
    Needs a first-order deterministic scheduler (DDIM, Euler, flow-matching Euler) for the way back to be the same.
    """

    def __init__(
        self, latents: torch.Tensor, prompt: str | list[str] | None = None, iterations: int = 1, guided: bool = False
    ) -> None:
        if guided and prompt is not None:
            raise ShowtellError("a guided inversion uses the call's own prompt; leave prompt out.")
        if iterations < 1:
            raise ShowtellError(f"iterations={iterations}: use 1 or more.")
        self.clean, self.source, self.iterations, self.guided = latents, prompt, iterations, guided

    def start(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        current = _clean(self.clean, latents)
        text = _source(run, self.source)
        for index in reversed(range(len(run.timesteps))):
            timestep = run.timesteps[index]
            a, b = coefficients(run, index)
            guess = current
            for _ in range(self.iterations):
                predicted = run.predict(guess, timestep) if self.guided else run.evaluate(guess, text, timestep)
                guess = (current - b * predicted) / a
            current = guess
        return current


class EditFriendlyInversion(Technique):
    """Edit-friendly DDPM inversion (arXiv 2304.06140): noisy latents drawn independently for every step, and the noise
    maps that make the sampler pass through them; sampling replays the maps under the call's own prompt and guidance.

    The scheduler's own step is replaced by the DDPM one (DDIM with eta 1) on the run's noise levels, so any scheduler
    and prediction type will do. With the source prompt and `guidance` the input comes back up to rounding.
    latents: clean ones, (n, ...). prompt: the source prompt (default: the call's). guidance: scale while inverting.
    skip: fraction of the steps left out at the noisy end: more keeps more of the input. seed: of the noisy latents.
    """

    unconditional = True

    def __init__(
        self,
        latents: torch.Tensor,
        prompt: str | list[str] | None = None,
        guidance: float = 3.5,
        skip: float = 0.36,
        seed: int = 0,
    ) -> None:
        if not 0 <= skip < 1:
            raise ShowtellError(f"skip={skip}: use a number from 0 to below 1.")
        self.clean, self.source, self.guidance, self.skip, self.seed = latents, prompt, guidance, skip, seed

    def start(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        clean, text, state = _clean(self.clean, latents), _source(run, self.source), run.state(self)
        generator = torch.Generator().manual_seed(self.seed)
        shape = clean.shape[1:]
        path = []
        for alpha, sigma in levels(run)[:-1]:
            noise = torch.randn(shape, generator=generator).to(clean)  # the same for every sample, whatever the batch
            path.append(alpha * clean + sigma * noise)
        path.append(clean)
        state.path, state.residuals, state.first = path, [], int(self.skip * len(run.timesteps))
        for index, timestep in enumerate(run.timesteps):
            conditional = run.evaluate(path[index], text, timestep)
            unconditional = run.evaluate(path[index], run.negative, timestep)
            predicted = unconditional + self.guidance * (conditional - unconditional)
            state.residuals.append(path[index + 1] - ddpm_mean(run, index, path[index], predicted))
        return path[0]

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> None:
        run.state(self).predicted = (guided, run.given)

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        state = run.state(self)
        if run.step < state.first:
            return state.path[run.step + 1]
        predicted, before = state.predicted
        return ddpm_mean(run, run.step, before, predicted) + state.residuals[run.step]


class SDEdit(Technique):
    """Sampling begins in the middle, from clean latents with noise (SDEdit, arXiv 2108.01073).

    latents: clean ones, (n, ...). strength: share of the steps that are taken, in [0, 1]: 0 gives the input back, 1
    ignores it. The steps before are evaluated too and have no effect, so schedulers must not look back (DDIM, Euler).
    """

    def __init__(self, latents: torch.Tensor, strength: float = 0.6) -> None:
        if not 0 <= strength <= 1:
            raise ShowtellError(f"strength={strength}: use a number from 0 to 1.")
        self.clean, self.strength = latents, strength

    def start(self, run: Any, latents: torch.Tensor) -> None:
        state = run.state(self)
        state.clean = _clean(self.clean, latents)
        state.noise = latents / getattr(run.scheduler, "init_noise_sigma", 1.0)
        state.first = len(run.timesteps) - round(self.strength * len(run.timesteps))

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        state = run.state(self)
        # After step i latents have the level of timestep i + 1, or are clean.
        return run.add_noise(state.clean, state.noise) if run.step + 1 == state.first else None


def ddpm_mean(run: Any, index: int, latents: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """The mean of the DDPM step from timestep `index` (arXiv 2010.02502, eq. 12 with eta 1) for any prediction."""
    (alpha, sigma), (alpha_next, sigma_next) = levels(run)[index : index + 2]
    clean = run.clean(predicted, latents, run.timesteps[index])
    noise = (latents - alpha * clean) / sigma
    variance = sigma_next**2 / sigma**2 * (sigma**2 - (alpha / alpha_next * sigma_next) ** 2)
    return alpha_next * clean + max(sigma_next**2 - variance, 0.0) ** 0.5 * noise


def _clean(given: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if given.shape != like.shape:
        raise ShowtellError(
            f"latents to invert have the shape {tuple(given.shape)}; this call has {tuple(like.shape)}."
        )
    return given.to(like)


def _source(run: Run, prompt: str | list[str] | None) -> Text:
    return run.text if prompt is None else run.encode(spread(prompt, len(run.prompts), "prompt"))
