"""Variants of classifier-free guidance, as techniques on the `prediction` hook.

Below, c and u are the conditional and unconditional predictions and w is the guidance scale; plain guidance is
u + w (c - u). `guidance_scale` of the call gives w unless a technique says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.guider_utils import rescale_noise_cfg

from ..bridges.base import Run, Technique
from ..errors import ShowtellError
from .companions import Parts
from .lists import lists_of


class RescaledGuidance(Technique):
    """Gives the guided prediction the standard deviation of the conditional one, against over-exposure.

    arXiv 2305.08891, section 3.4. amount: in [0, 1], how far; 0 changes nothing, the paper's choice is 0.7.
    """

    def __init__(self, amount: float = 0.7) -> None:
        self.amount = _within("amount", amount, 0, 1)

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        if unconditional is None or self.amount == 0:
            return None
        return rescale_noise_cfg(guided, conditional, self.amount)


class ScheduledGuidance(Technique):
    """A guidance scale that changes while sampling: u + w(progress) (c - u).

    scale: a number, or a function of the progress in [0, 1) that gives one. Replaces what earlier techniques did.
    """

    unconditional = True
    makes = ("prediction",)

    def __init__(self, scale: float | Callable[[float], float]) -> None:
        self.scale = scale

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
        scale = self.scale(run.progress) if callable(self.scale) else self.scale
        return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


class IntervalGuidance(Technique):
    """Guidance only at middle noise levels, the conditional prediction elsewhere.

    arXiv 2404.07724. low, high: the interval (low, high] of the noise-to-signal ratio sigma / alpha, which is the
    paper's sigma; the defaults are its values for SDXL. The interval (0, infinity] changes nothing.
    """

    makes = ("prediction",)

    def __init__(self, low: float = 0.28, high: float = 5.42) -> None:
        if not 0 <= low < high:
            raise ShowtellError(f"low={low}, high={high}: the interval needs 0 <= low < high.")
        self.low, self.high = low, high

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        alpha, sigma = run.noise_level()
        ratio = sigma / alpha if alpha > 0 else float("inf")
        return None if self.low < ratio <= self.high else conditional


class ProjectedGuidance(Technique):
    """Adaptive projected guidance: weakens the part of c - u that is parallel to c, which oversaturates.

    arXiv 2410.02416, algorithm 1, on clean-latent predictions as there. eta: weight of the parallel part (1 is plain
    guidance). threshold: largest norm of c - u, 0 for none. momentum: of c - u over the steps; negative pushes away
    from earlier directions. The defaults are the paper's for Stable Diffusion XL.
    """

    makes = ("prediction",)

    def __init__(self, eta: float = 0.0, threshold: float = 15.0, momentum: float = -0.5) -> None:
        self.eta, self.threshold, self.momentum = eta, threshold, momentum

    def start(self, run: Run, latents: torch.Tensor) -> None:
        run.state(self).average = MomentumBuffer(self.momentum)

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        if unconditional is None:
            return None
        clean_c, clean_u = run.clean(conditional, run.given), run.clean(unconditional, run.given)
        average = run.state(self).average
        clean = normalized_guidance(clean_c, clean_u, run.guidance, average, self.eta, self.threshold)
        # The clean latents are linear in the prediction, so what changes them changes it.
        return conditional + (clean - clean_c) / clean_slope(run)


class ComposedGuidance(Technique):
    """The guidance of several prompts, summed: u + w sum_i (c_i - u).

    Composable Diffusion, arXiv 2206.01714, eq. 11. parts: the prompts, the same for all samples or a list for each; the
    call's own prompt takes no part, and a sample without parts is unconditional. shared: their mean for their sum, so
    that together they have the scale w.
    """

    unconditional = True
    makes = ("prediction",)

    def __init__(self, parts: Sequence[str] | Sequence[Sequence[str]], shared: bool = False) -> None:
        self.parts, self.shared = parts, shared

    def start(self, run: Run, latents: torch.Tensor) -> None:
        run.state(self).parts = Parts.of(run, lists_of(self.parts, len(run.prompts), "parts"), self.shared)

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
        whole = unconditional + run.state(self).parts.differences(run, unconditional)
        return run.adapter.guide(run, {"text": whole, "negative": unconditional})


class ZeroStarGuidance(Technique):
    """CFG-Zero*: scales u to fit c best, and predicts nothing in the first steps. For flow-matching models.

    arXiv 2503.18886: s u + w (c - s u) with s = <c, u> / |u|^2, per sample. zero_steps: how many first steps predict 0.
    """

    makes = ("prediction",)

    def __init__(self, zero_steps: int = 1) -> None:
        self.zero_steps = zero_steps

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        if unconditional is None:
            return None
        if run.step < self.zero_steps:
            return torch.zeros_like(guided)
        scale = cfg_zero_star_scale(conditional.flatten(1), unconditional.flatten(1))
        fitted = unconditional * scale.view(-1, *[1] * (guided.ndim - 1))
        return fitted + run.guidance * (conditional - fitted)


class ManifoldGuidance(Technique):
    """CFG++: interpolates with a scale in [0, 1], and renoises with the unconditional noise instead of the guided one.

    arXiv 2406.08070, algorithm 2. Needs a first-order deterministic scheduler (DDIM, Euler, flow-matching Euler);
    another is a ShowtellError. scale: lambda; 0 is unconditional sampling. The call's `guidance_scale` is not used.
    """

    unconditional = True
    makes = ("prediction",)

    def __init__(self, scale: float = 0.6) -> None:
        self.scale = _within("scale", scale, 0, 1)

    def start(self, run: Run, latents: torch.Tensor) -> None:
        name = type(run.scheduler).__name__
        if name not in ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
            raise ShowtellError(
                f"CFG++ needs a first-order deterministic scheduler, not {name}; pass scheduler=DDIMScheduler(...)."
            )

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
        mixed = unconditional + self.scale * (conditional - unconditional)
        alpha, sigma = run.noise_level()
        # noise = (latents - alpha clean) / sigma, so a change of the prediction changes it by this much.
        run.state(self).noise = (unconditional - mixed) * (-alpha / sigma * clean_slope(run))
        return mixed

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        _, sigma = run.noise_level()
        return latents + sigma * run.state(self).noise


def clean_slope(run: Any, timestep: Any = None) -> float:
    """d(clean latents) / d(prediction) at the current noise level or at `timestep`: -sigma / alpha where the model
    predicts the noise, -sigma where it predicts a flow.
    """
    return float(run.clean(torch.ones(()), torch.zeros(()), timestep))


def _within(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise ShowtellError(f"{name}={value}: use a number from {low} to {high}.")
    return value
