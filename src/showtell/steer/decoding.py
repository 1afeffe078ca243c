"""Control of token-by-token decoding: functions on logits (..., vocabulary), and a technique on the `logits` hook."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..bridges.base import Run, Technique
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
