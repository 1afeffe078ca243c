"""Fewer steps from many: jumps along a denoiser's own path, and a discriminator inside a denoiser that judges them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from showtell.bridges.base import Text
from showtell.steer.features import features
from showtell.train.networks import with_denoiser
from showtell.train.noising import Noised, Noising


@dataclass(frozen=True)
class Levels:
    """The noise levels of a generator of even steps, (steps + 1,) each; level 0 is clean, the last pure noise."""

    times: Tensor
    alpha: Tensor
    sigma: Tensor

    def at(self, level: Tensor, latents: Tensor) -> Noised:
        """Latents (n, ...) that stand at these levels (n,); what is clean in them is not known."""
        shape = (-1, *[1] * (latents.ndim - 1))
        alpha, sigma = self.alpha[level].view(shape), self.sigma[level].view(shape)
        return Noised(latents, latents, latents, alpha, sigma, self.times[level])


def levels(noising: Noising, steps: int) -> Levels:
    """Even steps that end at the largest ("trailing"), so that the levels of fewer steps lie among those of more."""
    if noising.flow:
        run = noising.run([""])
        run.scheduler = copy.deepcopy(noising.scheduler)
        run.options = {**run.options, "sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}
        noising.adapter.set_timesteps(run, steps)
        sigma = run.scheduler.sigmas.float().flip(0)
        return Levels(1000 * sigma, 1 - sigma, sigma)
    train = int(noising.scheduler.config.num_train_timesteps)
    times = torch.arange(steps + 1) * train // steps - 1
    alpha, sigma = noising.level(times)
    return Levels(times.clamp(min=0), alpha, sigma)


def few_steps(bridge: Any, steps: int, kind: str | None = None) -> dict[str, Any]:
    """Keywords of `generate` for a model distilled to so many steps; kind: "sample" where it predicts clean latents."""
    scheduler = bridge.pipeline.scheduler
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0}
    if "FlowMatch" in type(scheduler).__name__:
        return call | {"sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}
    more = {"prediction_type": kind} if kind else {}
    one = DDIMScheduler.from_config(
        scheduler.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        thresholding=False,
        **more,
    )
    return call | {"scheduler": one}


def jump(
    noising: Noising, adapter: Any, here: Noised, there: Noised, text: Text, empty: Text | None = None,
    scale: float = 1.0, kind: str | None = None,
) -> Tensor:  # fmt: skip
    """The latents at the level of `there` that one step of the probability-flow ODE leads to, (n, ...).

    adapter: of the denoiser that steps. empty, scale: classifier-free guidance. kind: what it predicts, if not what
    the scheduler says. (DDIM, arXiv 2010.02502, equation 12; Euler's step for flows.)
    """
    run = noising.run([""] * len(text))
    predicted = adapter.predict(run, here.latents, here.times, text).float()
    if empty is not None and scale != 1:
        plain = adapter.predict(run, here.latents, here.times, empty).float()
        predicted = plain + scale * (predicted - plain)
    clean = predicted if kind == "sample" else noising.clean(predicted, here)
    noise = (here.latents - here.alpha * clean) / here.sigma
    return there.alpha * clean + there.sigma * noise


class _Enough(Exception):
    """Ends a forward pass at its middle."""


def halfway(noising: Noising, adapter: Any, at: Noised, text: Text) -> Tensor:
    """Features (n, channels, height, width) in the middle of a denoiser: a UNet's middle block, a transformer's last
    block of the first half. What comes after is not run.
    """
    denoiser, run, found = adapter.denoiser, noising.run([""] * len(text)), list[Any]()

    def stop(output: Any) -> None:
        found.extend(output if isinstance(output, tuple) else [output])
        raise _Enough

    try:
        with features(denoiser, after={_middle(denoiser): stop}):
            adapter.predict(run, at.latents, at.times, text)
    except _Enough:
        pass
    if hasattr(denoiser, "mid_block"):
        return found[0].float()
    grids = adapter.layout(run).grids
    tokens = next(x for x in found if x.ndim == 3 and x.shape[1] in grids)
    return tokens.transpose(1, 2).unflatten(2, grids[tokens.shape[1]]).float()


def _middle(denoiser: nn.Module) -> str:
    if hasattr(denoiser, "mid_block"):
        return "mid_block"
    lists = [(name, child) for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)]
    name, blocks = next((name, child) for name, child in lists if name.endswith("blocks"))
    return f"{name}.{max(len(blocks) // 2 - 1, 0)}"


class Discriminator(nn.Module):
    """Tells one generator's step from another's by features of a copy of the denoiser, which it trains too.

    Its head is two 4x4 convolutions of stride 2, each with group norm and SiLU, and one of 1x1, averaged over places.
    conditional: it also sees where the step began. frozen: the copy has random weights that stay, as a control.
    """

    def __init__(self, noising: Noising, text: Text, clean: Tensor, conditional: bool, frozen: bool = False) -> None:
        """text, clean: a row of each, to see how large features are."""
        super().__init__()
        self.noising, self.conditional = noising, conditional
        self.backbone = copy.deepcopy(noising.adapter.denoiser).requires_grad_(not frozen)
        if frozen:
            for weight in self.backbone.parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=0.02)
        self.adapter = with_denoiser(noising.adapter, self.backbone)
        with torch.no_grad():
            seen = halfway(noising, self.adapter, levels(noising, 2).at(torch.tensor([1]), clean[:1]), text.rows([0]))
        width = seen.shape[1] * (2 if conditional else 1)
        middle = max(width // 2, 8)

        def block(inside: int, outside: int) -> list[nn.Module]:
            norm = nn.GroupNorm(math.gcd(32, max(outside // 4, 1)), outside)  # no group of a single number
            return [nn.Conv2d(inside, outside, 4, stride=2, padding=1), norm, nn.SiLU()]

        second = block(middle, middle) if min(seen.shape[-2:]) >= 4 else []
        self.head = nn.Sequential(*block(width, middle), *second, nn.Conv2d(middle, 1, 1))

    def forward(self, there: Noised, here: Noised, text: Text) -> Tensor:
        """Logits (n,): larger for what looks like the teacher's step from `here` to `there`."""
        seen = [
            halfway(self.noising, self.adapter, at, text) for at in ((there, here) if self.conditional else (there,))
        ]
        return self.head(torch.cat(seen, dim=1)).flatten(1).mean(1)


def renoised(at: Noised, noising: Noising, noise: Tensor, times: Tensor) -> Noised:
    """Latents brought from their level to a noisier one by more noise, at timesteps (n,) in [0, 1000)."""
    shape = (-1, *[1] * (noise.ndim - 1))
    if noising.flow:
        sigma = (times / 1000).view(shape)
        alpha = 1 - sigma
    else:
        alpha, sigma = (x.view(shape) for x in noising.level(times))
    ratio = alpha / at.alpha
    added = (sigma.square() - (ratio * at.sigma).square()).clamp(min=0).sqrt()
    kept = ((alpha / sigma) < (at.alpha / at.sigma.clamp(min=1e-6))).expand_as(noise)
    latents = torch.where(kept, ratio * at.latents + added * noise, at.latents)
    flat = kept.flatten(1)[:, 0]
    back = [torch.where(flat.view(shape), new, old) for new, old in ((alpha, at.alpha), (sigma, at.sigma))]
    return replace(at, latents=latents, alpha=back[0], sigma=back[1], times=torch.where(flat, times, at.times))


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(fake), non-saturating (arXiv 1406.2661)."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake))."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()
