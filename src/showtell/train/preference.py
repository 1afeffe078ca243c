"""Preferences between images: how much better a denoiser fits them than it used to, and losses made of that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.bridges.base import Text
from showtell.train.batches import Pool
from showtell.train.networks import with_denoiser
from showtell.train.noising import Noised, Noising
from showtell.train.trainer import fit

Loss = tuple[Tensor, dict[str, Tensor]]
Batches = Callable[[int, int], dict[str, Any]]
"""(number, seed) -> arrays of one batch."""
Objective = Callable[[Tensor, Tensor], Tensor]
"""Gains of winners and losers, (n,) each -> scalar."""


def gains(noising: Noising, reference: Any, at: Noised, text: Text) -> Tensor:
    """By how much the squared error of the denoiser is below the reference's, (n,), the mean over each sample.

    It stands for log p / p_ref in diffusion models (arXiv 2311.12908, equation 14). reference: an adapter.
    """
    target = noising.target(at)
    with torch.no_grad():
        before = reference.predict(noising.run([""] * len(text)), at.latents, at.times, text).float()
    errors = [(x - target).square().flatten(1).mean(1) for x in (before, noising.predict(at, text))]
    return errors[0] - errors[1]


def paired_preference(winner: Tensor, loser: Tensor, beta: float = 5000.0) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908, equation 14): of two images, the one is preferred to the other.

    beta: the paper's beta T with errors averaged over a sample's entries, halved as in its code.
    """
    return -F.logsigmoid(beta / 2 * (winner - loser)).mean()


def preference_loss(
    bridge: Any, prompts: Sequence[str], objective: Objective = paired_preference, **options: Any
) -> Callable[[nn.Module, dict[str, Tensor], torch.Generator | None], Loss]:
    """A loss for `fit(bridge.adapter.denoiser, loss, ...)`; the reference is the denoiser as it is now.

    prompts: encoded once. Batches hold {"winner", "loser": latents (n, ...), "row": (n,) which of the prompts both are
    for}; the two share noise and noise level. "loser_row" gives losers prompts of their own: where winner and loser are
    one image, one prompt of it is preferred to another. options: as for `Noising`.
    """
    noising = Noising(bridge, **options)
    reference = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser).requires_grad_(False).eval())
    with torch.no_grad():
        texts = noising.text(prompts)

    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
        rows = torch.cat([batch["row"], batch.get("loser_row", batch["row"])]).long()
        one = noising.noised(batch["winner"], generator)
        other = replace(one, latents=one.alpha * batch["loser"] + one.sigma * one.noise, clean=batch["loser"])
        both = Noised(*(torch.cat([getattr(x, name) for x in (one, other)]) for name in Noised.__dataclass_fields__))
        winner, loser = gains(noising, reference, both, texts.rows(rows)).chunk(2)
        ahead = (winner > loser).float().mean()
        return objective(winner, loser), {"ahead": ahead, "winner": winner.mean(), "loser": loser.mean()}

    return loss


def prefer(
    bridge: Any, prompts: Sequence[str], pairs: Mapping[str, Any] | Batches, steps: int, batch_size: int = 8,
    lr: float = 1e-5, objective: Objective = paired_preference, seed: int = 0, **options: Any,
) -> Any:  # fmt: skip
    """Trains all weights of the bridge's denoiser in place on pairs; the denoiser.

    pairs: the arrays of `preference_loss`, or batches of them, whose size is then their own. The reference is the
    denoiser as it was before. options: as for `Noising`.
    """
    denoiser = bridge.adapter.denoiser.requires_grad_(True)
    loss = preference_loss(bridge, prompts, objective, **options)
    data: Batches = pairs  # type: ignore[assignment]
    if isinstance(pairs, Mapping):
        data = Pool({name: np.asarray(values) for name, values in pairs.items()}, batch_size)
    fit(denoiser, loss, data, steps=steps, lr=lr, schedule="constant", ema=None, precision="no", seed=seed,
        progress=False)  # fmt: skip
    return denoiser.eval().requires_grad_(False)
