"""UNCAGE: Contrastive Attention Guidance for Masked Generative Transformers in Text-to-Image Generation.
Kang, Ahn, Lee, Galim, Oh, Koo, Cho, 2025, arXiv 2508.05399

A masked transformer keeps some of its tokens at every step and never revises them. Early on, those are kept first that
attend to one object and all of its attributes and to nothing of the other objects; what is drawn stays the model's own,
and no evaluation is added.

Faithful: eqs. 2 to 4 and algorithm 1: the least attention to an object's own words minus the largest to others' words,
the largest of that over objects, weight 3, added to log-probability and Gumbel noise, in the first quarter of the steps
(16 of 64); attention after the softmax, the mean over blocks and heads, under a Gaussian of 2 tokens.
Ours: the paper rescales the maps without saying how; here the largest value of any of a prompt's words is 1. Words of
several tokens are averaged, noun phrases come from `steer.phrases`. With one object the attention to it counts alone.
Scaled down: aMUSEd's network with cross-attention for Meissonic's single-stream blocks, 12 steps for 64, and 16x16
tokens, on which the Gaussian has half a token. Meissonic's noise falls from 1, aMUSEd's from 2; the base keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.decoding import UnmaskingOrder
from showtell.steer.maps import averaged, smoothed, token_maps
from showtell.steer.phrases import Thing, things_of, tokens_of

EXAMPLE = """
import showtell
from showtell.papers.compose.uncage import Uncage

bridge = showtell.load("amused/amused-512")
[image] = bridge.generate("a red bench and a yellow clock", using=[Uncage()], seed=0)
[image] = bridge.generate("a red bench", using=[Uncage(things={"bench": ["red"]})], seed=0)
"""


def contrast(maps: torch.Tensor, things: Sequence[Thing]) -> torch.Tensor:
    """Eqs. 2 and 3: how clearly each place shows one object alone, (height, width); 0 where there are no things.

    maps: (text tokens, height, width). things: the tokens of an object's noun and of each of its modifiers.
    """
    if not things:
        return torch.zeros_like(maps[0])
    words = [torch.stack([maps[list(at)].mean(dim=0) for at in (noun, *modifiers)]) for noun, modifiers in things]
    scores = []
    for i, own in enumerate(words):
        others = [word for j, one in enumerate(words) if j != i for word in one]
        negative = torch.stack(others).amax(dim=0) if others else 0.0
        scores.append(own.amin(dim=0) - negative)
    return torch.stack(scores).amax(dim=0)


class Uncage(UnmaskingOrder):
    """Keeps early what shows one object clearly. weight 0 changes nothing.

    weight: the paper's w_a. until: fraction of the steps. sigma: of the Gaussian, in tokens. things: noun -> its
    modifiers, where a prompt has them; None finds each prompt's own.
    """

    def __init__(
        self,
        weight: float = 3.0,
        until: float = 0.25,
        sigma: float = 2.0,
        things: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if sigma <= 0:
            raise ShowtellError(f"sigma={sigma}: use more than 0; 0.1 hardly smooths.")
        super().__init__(self.scores)
        self.weight, self.until, self.sigma, self.given = weight, until, sigma, things

    def wants(self, run: Run, place: Place) -> bool:
        return bool(self.weight) and run.progress < self.until and place.text is not None

    def attention(self, run: Run, site: Any) -> None:
        found = token_maps(site)
        if found is not None:
            run.state(self).__dict__.setdefault("maps", []).append(found)

    def things(self, run: Run) -> list[list[Thing]]:
        """The objects of every sample."""
        return things_of(run, self.given)

    def scores(self, run: Any) -> torch.Tensor | None:
        """The weighted contrast of every place, (n, positions)."""
        maps, run.state(self).maps = getattr(run.state(self), "maps", []), []
        if not maps:
            return None
        size = 2 * round(2 * self.sigma) + 1
        rows = smoothed(averaged(maps, run.grid), self.sigma, size)
        found = []
        for row, things in zip(rows, self.things(run), strict=True):
            words = [at for thing in things for at in tokens_of(thing)]
            found.append(contrast(row / row[words].amax() if words else row, things))
        return self.weight * torch.stack(found).flatten(1)


class Swapped(Uncage):
    """The control: every noun is given the modifiers of the next one."""

    def things(self, run: Run) -> list[list[Thing]]:
        rows = super().things(run)
        return [[(noun, row[(i + 1) % len(row)][1]) for i, (noun, _) in enumerate(row)] for row in rows]


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("masked"), lab.prompts("same-shape")

    def arm(*using: Technique, **more: Any) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed, **more)

    arms = {
        "uncage": arm(Uncage(sigma=0.5)),
        "confidence and noise": arm(),
        "confidence": arm(temperature=(0, 0)),
        "random order": arm(temperature=(1000, 1000)),
        "swapped modifiers": arm(Swapped(sigma=0.5)),
    }
    expect = "uncage > confidence and noise, uncage > confidence, uncage > random order"
    return lab.compare_by((prompts.complete, prompts.count), arms, expect=expect, control="swapped modifiers")
