"""Distilling a denoiser into a generator of few steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from showtell.train.networks import with_denoiser
from showtell.train.noising import Noising
from showtell.train.samples import paired
from showtell.train.trainer import fit

Loss = tuple[Tensor, dict[str, Tensor]]


def consistency_loss(
    bridge: Any, prompts: Sequence[str], grid: int = 16, scale: float = 5.0, **options: Any
) -> Callable[[nn.Module, dict[str, Tensor], torch.Generator | None], Loss]:
    """A loss for `fit(bridge.adapter.denoiser, loss, ...)`: the clean latents that it implies are to be the same from
    neighbouring levels of its own guided path (latent consistency distillation, arXiv 2310.04378, eq. 11).

    The teacher is the denoiser as it is now. grid: levels, evenly spaced ("trailing"). scale: the guidance that goes
    into the weights, so that the distilled model is sampled without. Predictions of noise imply the noisy latents
    themselves at the last level, so that no skip weights are needed; the target is the model's own, detached (arXiv
    2310.14189). Batches hold {"latents": (n, ...), "row": (n,) which of the prompts belongs to each}.
    """
    noising = Noising(bridge, **options)
    teacher = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser).requires_grad_(False).eval())
    with torch.no_grad():
        texts, empty = noising.text(prompts), noising.text([""])
    train = int(noising.scheduler.config.num_train_timesteps)

    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
        clean, text = batch["latents"], texts.rows(batch["row"].long())
        level = torch.randint(1, grid + 1, (len(clean),), generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        here = noising.at(clean, noise, level * train // grid - 1)
        with torch.no_grad():
            run = noising.run([""] * len(clean))
            told, untold = (teacher.predict(run, here.latents, here.times, one).float()
                            for one in (text, empty.repeat(len(clean))))  # fmt: skip
            ahead = noising.clean(untold + scale * (told - untold), here)
            remaining = (here.latents - here.alpha * ahead) / here.sigma
            later = noising.at(ahead, remaining, (level - 1) * train // grid - 1)
            # Without noise there is nothing to ask: the clean latents are the answer.
            asked = replace(later, times=later.times.clamp(min=0))
            there = noising.clean(noising.predict(asked, text), later)
            target = torch.where(later.sigma == 0, ahead, there)
        found = noising.clean(noising.predict(here, text), here)
        error = ((found - target).square() + 1e-6).sqrt().mean() - 1e-3  # pseudo-Huber, as latent consistency models
        return error, {"apart": error.detach()}

    return loss


def distil(
    bridge: Any,
    latents: Tensor,
    prompts: Sequence[str],
    steps: int,
    batch_size: int = 32,
    lr: float = 2e-4,
    seed: int = 0,
) -> nn.Module:
    """Makes the bridge's denoiser a generator of few unguided steps, in place, on latents (n, ...) and prompts (n)."""
    denoiser, loss = bridge.adapter.denoiser, consistency_loss(bridge, prompts)
    data = paired(latents, batch_size)
    fit(denoiser, loss, data, steps=steps, lr=lr, precision="no", seed=seed, progress=False)
    return denoiser.eval().requires_grad_(False)


def use_distilled(bridge: Any, weights: Mapping[str, Tensor]) -> None:
    """Makes a bridge the generator of few unguided steps that `distil` made of such a one: puts the weights into its
    denoiser, frozen, and lets its scheduler begin at the last level, whatever the number of steps ("trailing")."""
    bridge.adapter.denoiser.load_state_dict(weights)
    bridge.adapter.denoiser.requires_grad_(False)
    scheduler = bridge.pipeline.scheduler
    bridge.pipeline.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
