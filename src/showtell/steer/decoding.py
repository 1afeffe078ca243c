"""Control of token-by-token decoding: functions on logits (..., vocabulary), and a technique on the `logits` hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_amused import gumbel_noise
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..bridges.base import Run, Technique, apply_hooks, as_list
from ..bridges.decoding import steered
from ..errors import ShowtellError


def shaped(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """Logits after temperature, then top-k, then nucleus (top-p) filtering, by transformers' own processors.

    Tokens that are filtered out are -inf. The defaults change nothing. Raises ShowtellError for values out of range.
    """
    steps = LogitsProcessorList()
    try:
        if temperature != 1:
            steps.append(TemperatureLogitsWarper(float(temperature)))
        if top_k is not None:
            steps.append(TopKLogitsWarper(top_k))
        if top_p is not None:
            steps.append(TopPLogitsWarper(top_p))
    except ValueError as error:
        raise ShowtellError(" ".join(str(error).split())) from None
    if not steps:
        return logits
    flat = logits.reshape(-1, logits.shape[-1])
    return steps(torch.zeros(len(flat), 0, dtype=torch.long, device=flat.device), flat).view_as(logits)


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on logits (arXiv 2306.17806): u + scale (c - u) of the log-probabilities; 1 gives c."""
    if scale == 1:
        return conditional
    c, u = conditional.log_softmax(dim=-1), unconditional.log_softmax(dim=-1)
    return u + scale * (c - u)


def constrained(logits: torch.Tensor, allowed: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Logits with -inf for all but the allowed tokens: their ids, or a mask broadcastable to the logits."""
    if isinstance(allowed, torch.Tensor) and allowed.dtype == torch.bool:
        mask = allowed
    else:
        mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        mask[torch.as_tensor(allowed, dtype=torch.long, device=logits.device)] = True
    if not bool(mask.any(dim=-1).all()):
        raise ShowtellError("no token is allowed; allow at least one.")
    return logits.masked_fill(~mask, float("-inf"))


def drawn(probabilities: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token per row of probabilities (..., vocabulary); they need not be normalised."""
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).view(probabilities.shape[:-1])


def uniform(run: Any, count: int) -> torch.Tensor:
    """Random numbers in [0, 1) for the samples of a run, (n, count), each row from its sample's own generator."""
    if isinstance(run.generators, list):
        return torch.stack([torch.rand(count, generator=one) for one in run.generators])
    return torch.rand(len(run.prompts), count, generator=run.generators)


def residual(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """max(0, p - q), normalised: what to draw from after a rejection (arXiv 2211.17192, section 2.3)."""
    rest = (target - draft).clamp(min=0)
    total = rest.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp(min=1e-30), target)


def accepted(
    tokens: torch.Tensor, target: torch.Tensor, draft: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Speculative acceptance (arXiv 2211.17192, algorithm 1): drafted tokens become samples of the target.

    tokens: (n, k), drawn from draft. target: probabilities p (n, k + 1, vocabulary) of the model at the k places and
    the one after. draft: probabilities q (n, k, vocabulary) that the tokens were drawn from.
    A token x is kept with probability min(1, p(x) / q(x)) as long as all before it are; the place of the first
    rejection is drawn from the residual, and if none is rejected the place after them from p.
    Returns how many drafted tokens are kept (n,), and the tokens (n, k + 1): kept ones, the new one, then -1.
    """
    n, k = tokens.shape
    p = target[:, :k].gather(-1, tokens[..., None])[..., 0]
    q = draft.gather(-1, tokens[..., None])[..., 0]
    chance = torch.rand(n, k, generator=generator).to(p)
    keep = (chance * q < p).long().cumprod(dim=1)
    count = keep.sum(dim=1)
    rows = torch.arange(n, device=tokens.device)
    at = count.clamp(max=k - 1)
    last = torch.where((count == k)[:, None], target[:, k], residual(target[rows, at], draft[rows, at]))
    result = torch.full((n, k + 1), -1, dtype=tokens.dtype, device=tokens.device)
    result[:, :k] = torch.where(keep.bool(), tokens, -1)
    result[rows, count] = drawn(last, generator).to(tokens.dtype)
    return count, result


class TokenControl(Technique):
    """Temperature, top-k, top-p and an allowed vocabulary on every step of a token-decoding bridge.

    See `shaped` and `constrained`; the defaults change nothing.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        allowed: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        self.temperature, self.top_k, self.top_p, self.allowed = temperature, top_k, top_p, allowed
        shaped(torch.zeros(1, 2), temperature, top_k, top_p)  # refuses bad values now

    def logits(self, run: Run, logits: torch.Tensor) -> torch.Tensor:
        if self.allowed is not None:
            logits = constrained(logits, self.allowed)
        return shaped(logits, self.temperature, self.top_k, self.top_p)


class InGroups(Technique):
    """A model that writes token by token has to write equal groups of them at once: the baseline of parallel decoding.

    passes: through the model; as many as there are tokens, or more, change nothing. Of its own group a token knows
    nothing; in the place of those before it stands the last known token. Raises ShowtellError for less than one.
    """

    def __init__(self, passes: int = 12) -> None:
        if passes < 1:
            raise ShowtellError(f"passes={passes}: use 1 or more.")
        self.passes = passes

    def decode(self, run: Any, decoder: Any) -> torch.Tensor:
        names = ["text"] if run.negative is None else ["negative", "text"]
        known, tokens = run.own["next"], torch.zeros(len(run.prompts), 0, dtype=torch.long, device=decoder.device)
        for group in torch.arange(run.steps).tensor_split(min(self.passes, run.steps)):
            guesses = known[:, -1:].expand(-1, len(group) - 1, -1)
            logits = decoder.several(run, names, torch.cat([known, guesses], dim=1))[:, -len(group) :]
            keep = torch.ones_like(run.own["mask"], dtype=torch.bool)
            keep[:, keep.shape[1] - guesses.shape[1] :] = False
            decoder.forget(run, keep)
            parts, chosen = dict(zip(names, logits.chunk(len(names)), strict=True)), list[torch.Tensor]()
            for j, run.step in enumerate(group.tolist()):
                ready = steered(run, decoder, parts["text"][:, j], parts["negative"][:, j] if len(parts) > 1 else None)
                chosen.append(apply_hooks(run, "tokens", decoder.choose(run, ready)))
            tokens = torch.cat([tokens, torch.stack(chosen, dim=1)], dim=1)
            known = torch.cat([decoder.embed(run, one) for one in chosen], dim=1)
        return tokens


class UnmaskingOrder(Technique):
    """Masked decoding (aMUSEd's) in another order: which of the drawn tokens a step keeps, not what it draws.

    bonus: called with the run at every step; answers with what is added to the log-probabilities of the drawn tokens
    before the least are masked again, (n, positions), or None to leave the step as it is. Zeros change nothing.
    Techniques that change logits are listed before this one.
    """

    def __init__(self, bonus: Callable[[Run], torch.Tensor | None]) -> None:
        self.bonus = bonus

    def logits(self, run: Any, logits: torch.Tensor) -> None:
        if not hasattr(getattr(run, "scheduler", None), "temperatures"):
            raise ShowtellError("this model does not unmask its tokens in an order; use a masked one, such as aMUSEd.")
        state = run.state(self)
        state.logits, state.bonus = logits, self.bonus(run)
        state.random = [one.get_state() for one in as_list(run.generators)]

    def tokens(self, run: Any, chosen: torch.Tensor) -> torch.Tensor | None:
        state, generators = run.state(self), as_list(run.generators)
        masked = chosen == run.scheduler.config.mask_token_id
        if state.bonus is None or not bool(masked.any()):
            return None
        each, rows = len(chosen) // len(generators), []
        for i, (generator, before) in enumerate(zip(generators, state.random, strict=True)):
            part = slice(i * each, (i + 1) * each)
            generator.set_state(before)  # the scheduler's own draws again, up to the order
            rows.append(
                _reordered(run, state.logits[part], masked[part], run.tokens[part], state.bonus[part], generator)
            )
        return torch.cat(rows)


def _reordered(
    run: Any, logits: torch.Tensor, masked: torch.Tensor, tokens: torch.Tensor, bonus: torch.Tensor, generator: Any
) -> torch.Tensor:
    """The drawn tokens with as many masked again as in `masked`; tokens: those before this step."""
    scheduler = run.scheduler
    drawn = scheduler.step(logits, 0, tokens, generator=generator).prev_sample  # at time 0 nothing is masked again
    confidence = logits.softmax(dim=-1).gather(-1, drawn[..., None])[..., 0]
    temperature = scheduler.temperatures[(scheduler.timesteps == run.timestep).nonzero()]
    noise = temperature * gumbel_noise(confidence, generator=generator)
    order = confidence.clamp(min=1e-20).log() + bonus.to(confidence) + noise
    order = order.masked_fill(tokens != scheduler.config.mask_token_id, float("inf"))
    again = order.argsort(dim=-1).argsort(dim=-1) < masked.sum(dim=-1, keepdim=True)
    return torch.where(again, scheduler.config.mask_token_id, drawn)
