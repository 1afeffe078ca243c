"""Arithmetic on encoded prompts: weights of words, interpolation, directions, and prompts that change while sampling.

The techniques replace `run.text` of a denoising run, so that what other techniques encode (regions, targets)
is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..bridges.base import Run, Technique, Text, spread
from ..errors import ShowtellError
from .regions import positions_of


class WordWeights(Technique):
    """Weighs words in the encoded prompt: token <- pivot + weight (token - pivot).

    weights: word or phrase -> weight, for all samples (words that a prompt lacks are left alone) or one
    mapping per sample. 1 changes nothing; 0 gives the pivot; negative ones point away. pivot: "empty", the empty
    prompt's token at that place, or "zero", where texts of different length make that impossible.
    """

    def __init__(self, weights: Mapping[str, float] | Sequence[Mapping[str, float]], pivot: str = "empty") -> None:
        if pivot not in ("empty", "zero"):
            raise ShowtellError(f"pivot={pivot!r}: use 'empty' or 'zero'.")
        self.weights, self.pivot = weights, pivot

    def start(self, run: Run, latents: torch.Tensor) -> None:
        each = spread(
            dict(self.weights) if isinstance(self.weights, Mapping) else self.weights, len(run.prompts), "weights"
        )
        factors = torch.ones(run.text.tokens.shape[:2])
        for row, (prompt, named) in enumerate(zip(run.prompts, each, strict=True)):
            for phrase, weight in named.items():
                factors[row, positions_of(run, prompt, phrase)] = weight
        run.text = run.text.with_tokens(weighted(run.text, factors, self.pivot))


def weighted(text: Text, factors: torch.Tensor, pivot: str | torch.Tensor = "empty") -> torch.Tensor:
    """Token embeddings (n, tokens, channels) with each token scaled by factors (n, tokens) around its pivot.

    pivot: "empty", "zero", or embeddings broadcastable to the tokens. Differentiable in the factors, at 1 too.
    """
    tokens = text.tokens
    if isinstance(pivot, torch.Tensor):
        centre = pivot.to(tokens)
    else:
        centre = torch.zeros_like(tokens[:1]) if pivot == "zero" else text.empty.to(tokens)
    if centre.shape[1] != tokens.shape[1]:
        raise ShowtellError(
            f"the empty prompt has {centre.shape[1]} tokens and this text {tokens.shape[1]}; use pivot='zero'."
        )
    return tokens + (factors[..., None].to(tokens) - 1) * (tokens - centre)


def renormalised(tokens: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Token embeddings (n, tokens, channels) times factors (n, tokens), brought back to the mean that they had.

    A sample whose mean would change by more than a factor of 2 (embeddings around zero) is left at its new one.
    """
    changed = tokens * factors[..., None].to(tokens)
    ratio = tokens.mean((1, 2), keepdim=True) / changed.mean((1, 2), keepdim=True)
    return changed * torch.where((ratio > 0.5) & (ratio < 2), ratio, 1.0)


def null_tokens(text: Text) -> torch.Tensor:
    """The empty prompt's token embeddings at the length of this text, (1, tokens, channels).

    Models that do not pad to one length have fewer of them: the last one is repeated, as padding would.
    """
    empty, length = text.empty.to(text.tokens), text.tokens.shape[1]
    missing = max(length - empty.shape[1], 0)
    return torch.cat([empty[:, :length], empty[:, -1:].expand(-1, missing, -1)], dim=1)


def mixed(first: Text, second: Text, amount: float) -> Text:
    """Between two texts of equal shape: amount 0 is the first, 1 the second; beyond them it extrapolates.

    Token and pooled embeddings are interpolated linearly; a token that either attends stays attended.
    """
    if first.tokens.shape != second.tokens.shape:
        raise ShowtellError(
            f"texts of the shapes {tuple(first.tokens.shape)} and {tuple(second.tokens.shape)} cannot be mixed."
        )
    if amount in (0, 1):
        return second if amount else first
    pooled = first.pooled
    if pooled is not None and second.pooled is not None:
        pooled = torch.lerp(pooled, second.pooled, amount)
    mask = first.mask
    if mask is not None and second.mask is not None:
        mask = torch.maximum(mask.long(), second.mask.long()).to(mask)
    return replace(first, tokens=torch.lerp(first.tokens, second.tokens, amount), pooled=pooled, mask=mask)


def mixture(texts: Sequence[Text], weights: torch.Tensor) -> Text:
    """The weighted sum of texts of equal shape, sample by sample.

    weights: (n, texts), each row summing to one. Token, pooled and further embeddings are summed; a token that any
    text of some weight attends stays attended.
    """
    if len({text.tokens.shape for text in texts}) > 1:
        raise ShowtellError(f"texts of {[text.tokens.shape[1] for text in texts]} tokens cannot be mixed.")

    def blend(parts: Sequence[Any], summed: bool = True) -> Any:
        if any(part is None for part in parts) or all(torch.equal(part, parts[-1]) for part in parts):
            return parts[-1]
        shares = [share.view(-1, *[1] * (parts[0].ndim - 1)) for share in weights.unbind(dim=1)]
        if summed and parts[0].is_floating_point():
            return sum(share.to(part) * part for share, part in zip(shares, parts, strict=True))
        seen = [torch.where(share > 0, part, torch.zeros_like(part)) for share, part in zip(shares, parts, strict=True)]
        return torch.stack(seen).amax(dim=0)

    return replace(
        texts[-1],
        tokens=blend([text.tokens for text in texts]),
        pooled=blend([text.pooled for text in texts]),
        mask=blend([text.mask for text in texts], summed=False),
        extra={name: blend([text.extra[name] for text in texts]) for name in texts[-1].extra},
    )


class Mixed(Technique):
    """Samples from between the call's prompt and another: see `mixed`. amount 0 changes nothing."""

    def __init__(self, prompt: str | list[str], amount: float) -> None:
        self.other, self.amount = prompt, amount

    def start(self, run: Run, latents: torch.Tensor) -> None:
        other = run.encode(spread(self.other, len(run.prompts), "prompt"))
        run.text = mixed(run.text, completed(other, run.text), self.amount)


class Direction(Technique):
    """Adds the difference of two prompts to the text: tokens + amount (encode(to) - encode(away)), pooled likewise.

    amount 0 changes nothing. With `to` equal to `away` nothing changes either.
    """

    def __init__(self, to: str, away: str, amount: float = 1.0) -> None:
        self.to, self.away, self.amount = to, away, amount

    def start(self, run: Run, latents: torch.Tensor) -> None:
        if self.amount == 0:
            return
        to, away = run.encode(self.to), run.encode(self.away)
        if not to.tokens.shape[1] == away.tokens.shape[1] == run.text.tokens.shape[1]:
            raise ShowtellError("a direction needs prompts of equal token count on this model.")
        tokens = run.text.tokens + self.amount * (to.tokens - away.tokens)
        pooled = run.text.pooled
        if pooled is not None and to.pooled is not None and away.pooled is not None:
            pooled = pooled + self.amount * (to.pooled - away.pooled)
        run.text = replace(run.text, tokens=tokens, pooled=pooled)


class PromptSchedule(Technique):
    """A prompt that changes while sampling.

    prompt: a function of the progress in [0, 1) and a sample's own prompt that gives the prompt to use, such as
    `lambda progress, own: "a cat" if progress < 0.3 else own`.
    """

    def __init__(self, prompt: Callable[[float, str], str]) -> None:
        self.choose = prompt

    def before(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        if not hasattr(state, "own"):
            state.own = run.text
        wanted = [self.choose(run.progress, own) for own in run.prompts]
        run.text = state.own if wanted == run.prompts else completed(run.encode(wanted), state.own)


def completed(text: Text, own: Text) -> Text:
    """A further text with what the call added to its own (sizes, reference images)."""
    missing = {name: value for name, value in own.extra.items() if name not in text.extra}
    extra: dict[str, Any] = {**text.extra, **missing}
    return replace(text, extra=extra)
