"""Means and deviations of features: adaptive instance normalisation (arXiv 1703.06868)."""

from __future__ import annotations

from torch import Tensor

from ..bridges.base import Run, Technique


def normal(x: Tensor) -> Tensor:
    """Every channel of (..., tokens, channels) with mean 0 and deviation 1 over the tokens."""
    return (x - x.mean(-2, keepdim=True)) / x.std(-2, keepdim=True, correction=0).clamp(min=1e-6)


def attended(own: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """Features (..., tokens, channels) that take mean and deviation, at every place, from the places of others that it
    attends to (attention-weighted AdaIN of Ctrl-X, arXiv 2406.07540, equations 4 to 6).

    other: (..., tokens', channels). weights: (..., tokens, tokens') that sum to one over tokens'; where they are the
    same everywhere, it is AdaIN.
    """
    mean = weights @ other
    deviation = (weights @ other.square() - mean.square()).clamp(min=0).sqrt()
    return deviation * normal(own) + mean


class GlobalAdaIN(Technique):
    """At the end every channel of the latents takes the mean and deviation of a picture's.

    picture: latents, (n, ...) or (1, ...).
    """

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture

    def latents(self, run: Run, latents: Tensor) -> Tensor | None:
        if run.step + 1 < run.steps:
            return None
        own, other = latents.flatten(2).transpose(1, 2), self.picture.to(latents).flatten(2).transpose(1, 2)
        moved = normal(own) * other.std(1, keepdim=True, correction=0) + other.mean(1, keepdim=True)
        return moved.transpose(1, 2).reshape(latents.shape)
