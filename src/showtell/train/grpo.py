"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) of language models that write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.train import policy
from showtell.train.policy import Drawn


def grpo(
    model: Any, tokenizer: Any, prompts: Sequence[str], reward: Callable[[list[str], list[str]], Tensor],
    request: Callable[[str], str] = str, read: Callable[[str, str], str] = lambda said, prompt: said, rounds: int = 40,
    batch: int = 4, group: int = 8, updates: int = 2, lr: float = 1e-5, beta: float = 0.04, clip: float = 0.2,
    max_tokens: int = 96, shuffled: bool = False, seed: int = 0,
) -> Any:  # fmt: skip
    """Trains a causal language model (see `train.policy`) in place so that what it writes earns more; the model.

    reward(texts, prompts) -> (n,): what each text is worth for its prompt. request: what the model is given of a
    prompt. read(answer, prompt): the text in an answer.
    Rounds of `batch` prompts with `group` answers of at most `max_tokens` tokens each, drawn at temperature 1, on which
    `updates` steps of the ratio clipped at `clip` are taken; advantages are rewards relative to their group. beta: of
    the divergence from the model as it was. shuffled: rewards are permuted within their groups (a control).
    """
    before = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def rollout(number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, number))
        each = [prompts[i] for i in rng.choice(len(prompts), batch, replace=batch > len(prompts)) for _ in range(group)]
        asked = [request(prompt) for prompt in each]
        drawn = policy.write(model, tokenizer, asked, 1.0, max_tokens, seed=int(rng.integers(2**31)))
        texts = [read(said, prompt) for said, prompt in zip(policy.texts_of(tokenizer, drawn), each, strict=True)]
        rewards = torch.as_tensor(reward(texts, each)).float().view(batch, group)
        used = torch.from_numpy(rng.permuted(rewards.numpy(), axis=1)) if shuffled else rewards
        gained = policy.group_advantages(used).flatten()
        old, first = (policy.log_probabilities(one, drawn) for one in (model, before))
        return {**drawn.arrays(), "rewards": rewards.flatten(), "gained": gained, "old": old, "first": first}

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        drawn = Drawn(batch["ids"], batch["mask"], batch["said"])
        new = policy.log_probabilities(model, drawn)
        away = policy.divergence(new, batch["first"], drawn.said).mean()
        return policy.surrogate(new, batch["old"], batch["gained"], drawn.said, clip) + beta * away

    policy.practise(model, rollout, loss, rounds, updates, lr=lr, seed=seed)
    return model.eval()
