"""Further latents denoised beside a run, with texts and a scheduler of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..bridges.base import Run, Text


def texts_of(run: Run, prompts: Sequence[Sequence[str]]) -> list[Text]:
    """Each sample's further prompts, encoded: the k-th text has the k-th prompt of every sample, (n, ...).

    A sample that has fewer than others repeats its own prompt there.
    """
    most = max(map(len, prompts), default=0)
    rows = list(zip(prompts, run.prompts, strict=True))
    return [run.encode([own[k] if k < len(own) else said for own, said in rows]) for k in range(most)]


@dataclass
class Parts:
    """Further prompts of the samples, each with a weight. texts: as of `texts_of`. weights: (n, prompts)."""

    texts: list[Text]
    weights: torch.Tensor

    @classmethod
    def of(cls, run: Run, prompts: Sequence[Sequence[str]], shared: bool = False) -> Parts:
        """A weight of 1 for each prompt; shared: of 1 for all prompts of a sample together."""
        texts = texts_of(run, prompts)
        weights = torch.zeros(len(prompts), len(texts), device=run.text.tokens.device)
        for row, own in enumerate(prompts):
            weights[row, : len(own)] = 1 / len(own) if shared and own else 1.0
        return cls(texts, weights)

    def differences(self, run: Any, origin: torch.Tensor) -> torch.Tensor:
        """The weighed sum, like `origin` (n, ...), of what the texts' predictions for `run.given` differ from it."""
        total = torch.zeros_like(origin)
        for text, weight in zip(self.texts, self.weights.unbind(dim=1), strict=True):
            own = run.evaluate(run.given, text) - origin
            total = total + weight.to(own).view(-1, *[1] * (own.ndim - 1)) * own
        return total


def guided(run: Any, latents: torch.Tensor, text: Text) -> torch.Tensor:
    """The run's guided prediction for `latents` (n, ...) with another text: its negative prompts, its family's rule of
    guidance, no `prediction` hooks.
    """
    branches = {**run.adapter.branches(run), "text": run._complete(text)}
    return run.adapter.guide(run, run._forward(latents, branches, None))


@dataclass
class Companion:
    """Latents (n, ...) that are denoised with a text of their own, one step at each step of a run."""

    text: Text
    latents: torch.Tensor
    scheduler: Any

    @classmethod
    def of(cls, run: Any, latents: torch.Tensor, text: Text) -> Companion:
        """From where the run stands, with a copy of its scheduler, as some count their steps."""
        return cls(text, latents, copy.deepcopy(run.scheduler))

    def step(self, run: Any) -> torch.Tensor:
        """One guided prediction, which is returned, and the scheduler's step with it. For `before` hooks."""
        kept, run.scheduler = run.scheduler, self.scheduler
        try:
            prediction = guided(run, self.latents, self.text)
            self.latents = run.adapter.advance(run, prediction, self.latents)
        finally:
            run.scheduler = kept
        return prediction
