"""Proximal policy optimisation (PPO, arXiv 1707.06347) of writers, which may pick more than a word at every token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from showtell.train import policy
from showtell.train.policy import Drawn


class Writer(Protocol):
    """What `ppo` trains: a module around a causal language model (see `train.policy`).

    model: that model, as which the critic begins. draw(prompts, seed=...) -> the arrays of `Drawn` and, for each kind
    of pick, its numbers (n, length) under its name and their log-probabilities under "log NAME". logits(drawn) -> name
    -> (n, length, k), of which each place speaks of the next one.
    """

    model: Any

    def draw(self, prompts: Sequence[str], *, seed: int) -> dict[str, Tensor]: ...

    def logits(self, drawn: Drawn) -> dict[str, Tensor]: ...


def ppo(
    writer: Any, prompts: Sequence[str], reward: Callable[[list[str], dict[str, Tensor]], Tensor], rounds: int = 60,
    batch: int = 16, lr: float = 5e-5, kl: float = 0.02, only: Collection[str] | None = None,
    betas: tuple[float, float] = (0.9, 0.9), seed: int = 0,
) -> Any:  # fmt: skip
    """Trains a `Writer` in place so that what it draws earns more; the writer.

    reward(prompts, drawn) -> (n,). Each round draws for `batch` prompts and takes one step, on the sum over the kinds
    of picks (those in `only`, by default all) of the clipped objective (equation 7). The advantage of a kind is the
    reward, less `kl` times the log-ratio to the writer as it was (its mean over the answer), less what the critic
    expects of the request; the critic learns the first kind's.
    """
    both, before = policy.ActorCritic(writer, writer.model), copy.deepcopy(writer).requires_grad_(False).eval()

    @torch.no_grad()
    def rollout(number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, number))
        each = [prompts[i] for i in rng.choice(len(prompts), batch, replace=batch > len(prompts))]
        drawn = writer.draw(each, seed=int(rng.integers(2**31)))
        what = Drawn(drawn["ids"], drawn["mask"], drawn["said"])
        rewards, expected = torch.as_tensor(reward(each, drawn)).float(), both.values(what)
        for i, (name, logits) in enumerate(before.logits(what).items()):
            first = policy.chosen(logits, drawn[name], what.said)
            # Not `policy.divergence`: never negative, as a reward it would drive the writer away from what it was.
            paid = rewards - kl * policy.per_answer(drawn[f"log {name}"] - first, what.said)
            drawn |= {f"advantage {name}": paid - expected, **({"paid": paid} if i == 0 else {})}
        return {**drawn, "rewards": rewards, "expected": expected}

    def loss(model: policy.ActorCritic, batch: dict[str, Tensor]) -> Tensor:
        what = Drawn(batch["ids"], batch["mask"], batch["said"])
        total = policy.value_loss(model.values(what), batch["expected"], batch["paid"])
        for name, logits in model.actor.logits(what).items():
            if only is None or name in only:
                new = policy.chosen(logits, batch[name], what.said)
                total = total + policy.surrogate(new, batch[f"log {name}"], batch[f"advantage {name}"], what.said)
        return total

    policy.practise(both, rollout, loss, rounds, lr=lr, betas=betas, seed=seed)
    return writer.eval()
