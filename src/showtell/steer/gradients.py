"""Gradient steps on the latents that lower a loss on attention, as Attend-and-Excite and layout guidance take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..bridges.base import Run, Technique
from ..bridges.layout import Place
from ..errors import ShowtellError
from .maps import TokenMaps, Where, among_words, averaged, near, places, token_maps
from .regions import Box, mask_on, positions_of

Loss = Callable[[Run, list[TokenMaps]], torch.Tensor]
"""Attention maps of one evaluation -> a loss per sample, (n,). A sample's loss may use no other sample's maps."""


class AttentionGradient(Technique):
    """Before a step: latents <- latents - size * gradient of the loss on the conditional attention maps.

    loss: see `Loss`. where: the places to read. size: of a step, a number or a function of the progress.
    until: fraction of the sampling. refinements: gradient steps at each sampling step, a number or a function of it.
    enough: a sample whose loss is at most this is left alone. normalised: divides the gradient by its largest
    absolute value. nearest: of the places, those alone whose grid is the nearest to so many tokens (`maps.near`).
    Each gradient step costs one conditional evaluation and its backward pass. size 0 changes nothing.
    """

    def __init__(
        self,
        loss: Loss,
        where: Where | None = None,
        size: float | Callable[[float], float] = 1.0,
        until: float = 0.5,
        refinements: int | Callable[[int], int] = 1,
        enough: float | None = None,
        normalised: bool = False,
        nearest: int | None = None,
    ) -> None:
        self.loss, self.where, self.size, self.until = loss, where or places(), size, until
        self.refinements, self.enough, self.normalised, self.nearest = refinements, enough, normalised, nearest

    def wants(self, run: Run, place: Place) -> bool:
        if getattr(run.state(self), "maps", None) is None or place.text is None or not self.where(place):
            return False
        return self.nearest is None or near(run, place, self.nearest)

    def attention(self, run: Run, site: Any) -> None:
        found = token_maps(site)
        if found is not None:
            run.state(self).maps.append(found)

    def before(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        size = self.size(run.progress) if callable(self.size) else self.size
        if run.progress >= self.until or size == 0:
            return None
        count = self.refinements(run.step) if callable(self.refinements) else self.refinements
        for _ in range(count):
            losses, gradient = self.gradient(run, latents)
            active = losses > self.enough if self.enough is not None else torch.ones_like(losses, dtype=torch.bool)
            if not active.any():
                break
            shape = (-1, *[1] * (latents.ndim - 1))
            if self.normalised:
                largest = gradient.flatten(1).abs().amax(dim=1).clamp(min=1e-12)
                gradient = gradient / largest.view(shape)
            latents = torch.where(active.view(shape), latents - size * gradient.to(latents), latents)
        return latents

    def gradient(self, run: Run, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses (n,), gradient like the latents) at the current noise level."""
        latents = latents.detach().requires_grad_()
        return self.slope(run, latents, latents)

    def slope(self, run: Run, latents: torch.Tensor, of: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses (n,), gradient like `of`) at the current noise level. of: what requires a gradient, the latents or
        what `run.text` was made from inside `torch.enable_grad()`.
        """
        state = run.state(self)
        state.maps = []
        try:
            with torch.enable_grad():
                run.look(latents)
                if not state.maps:
                    raise ShowtellError("no attention place was chosen to read; widen `where`.")
                losses = self.loss(run, state.maps)
                [gradient] = torch.autograd.grad(losses.sum(), of)
        finally:
            state.maps = None
        return losses.detach(), gradient


def falling(size: float) -> Callable[[float], float]:
    """Step sizes by the progress: `size` times the root of what falls from 1 to 1/2 over the sampling, as the released
    code of Attend-and-Excite (arXiv 2301.13826) has them, with a size of 20.
    """
    return lambda progress: size * (1 - progress / 2) ** 0.5


def excite(*phrases: str) -> Loss:
    """The loss of Attend-and-Excite (arXiv 2301.13826, eq. 2): one minus the strongest attention to the most neglected
    phrase, on maps compared `among_words` but the first token.
    """

    def loss(run: Run, maps: list[TokenMaps]) -> torch.Tensor:
        peaks = among_words(averaged(maps)).flatten(2).amax(dim=2)
        rows = []
        for row, prompt in enumerate(run.prompts):
            columns = [list(positions_of(run, prompt, phrase)) for phrase in phrases]
            found = [1 - peaks[row, column].mean() for column in columns if column]
            rows.append(torch.stack(found).amax() if found else peaks[row].sum() * 0)
        return torch.stack(rows)

    return loss


def inside(regions: Mapping[str, Box | torch.Tensor]) -> Loss:
    """The layout loss (arXiv 2304.03373, eq. 3): (1 - the part of a phrase's attention inside its region) squared, mean
    over places and summed over phrases.
    """

    def loss(run: Run, maps: list[TokenMaps]) -> torch.Tensor:
        rows = []
        for row, prompt in enumerate(run.prompts):
            total = maps[0].values[row].sum() * 0
            for phrase, region in regions.items():
                positions = positions_of(run, prompt, phrase)
                for one in maps if positions else ():
                    attention = one.values[row, positions]
                    mask = mask_on(region, one.place.grid).to(attention)
                    part = (attention * mask).sum() / attention.sum().clamp(min=1e-12)
                    total = total + (1 - part) ** 2 / len(maps)
            rows.append(total)
        return torch.stack(rows)

    return loss
