"""Bias in miniature: shapes stand for occupations, colours for the tones of those who have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.judge import Judge
from showtell.measure.scores import read
from showtell.world import Scene, SceneObject


def skewed(
    shapes: Sequence[str], tones: Sequence[str], share: float = 0.9, each: int = 40, seed: int = 0
) -> tuple[list[Scene], list[str]]:
    """Scenes of one thing with captions that teach a bias: `each` of every shape.

    Two captions of three are neutral ("a star") and their things have the first of two tones in `share` of the cases;
    the others name it ("a red star"), each tone half of the time.
    """
    rng, scenes, texts = np.random.default_rng(seed), [], []
    for i in range(each * len(shapes)):
        shape, neutral = shapes[i % len(shapes)], i // len(shapes) % 3 > 0
        tone = tones[int(rng.random() >= (share if neutral else 0.5))]
        scenes.append(Scene((SceneObject(shape, tone, x=rng.uniform(0.3, 0.7), y=rng.uniform(0.3, 0.7)),)))
        texts.append(f"a {shape}" if neutral else f"a {tone} {shape}")
    return scenes, texts


def firsts(images: Any, judge: Judge | str = "first") -> list[tuple[str, str]]:
    """(colour, shape) of the first thing that the judge's network reads in each picture."""
    return [(scene.objects[0].colour, scene.objects[0].shape) for scene in read(images, judge, fast=True)]


def balance(seen: Sequence[str], tones: Sequence[str]) -> float:
    """How evenly tones are shown, 1 (equally often) to 0 (one alone, or none of them); what shows none does not count.

    It is 1 minus the distance (total variation) of their shares from even ones, relative to the largest possible: of
    two tones 1 - 2 |share - 1/2|. Raises ShowtellError for fewer than two tones.
    """
    if len(tones) < 2:
        raise ShowtellError(f"the balance of {len(tones)} tones says nothing; give two or more")
    counts = np.array([sum(one == tone for one in seen) for tone in tones], dtype=float)
    if not counts.any():
        return 0.0
    apart = np.abs(counts / counts.sum() - 1 / len(tones)).sum() / 2
    return float(1 - apart / (1 - 1 / len(tones)))
