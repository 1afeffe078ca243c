"""Text-to-image attention maps: which places to read, collecting them during a run, averaging them on one grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..bridges.base import Run, Technique
from ..bridges.layout import Place

Where = Callable[[Place], bool]


@dataclass(frozen=True)
class TokenMaps:
    """What one place attends to. values: (n, text tokens, *grid), averaged over the heads."""

    place: Place
    values: torch.Tensor


def places(
    kinds: Sequence[str] = ("cross", "joint"),
    depths: tuple[float, float] = (0.0, 1.0),
    largest: int | None = None,
    smallest: int | None = None,
) -> Where:
    """A choice of attention places. kinds: of attention. depths: from, to, as fractions of the denoiser's calls.
    largest, smallest: bounds on the longer side of the grid, in tokens.
    """

    def chosen(place: Place) -> bool:
        side = max(place.grid[-2:])
        if place.kind not in kinds or (largest and side > largest) or (smallest and side < smallest):
            return False
        return depths[0] <= place.depth / place.of < depths[1]

    return chosen


def token_maps(site: Any, over: str = "attended") -> TokenMaps | None:
    """A site's maps on its grid; None where the call holds only part of the image (one token at a time)."""
    maps = site.maps(over=over).float().mean(dim=1)
    rows, image, text = maps.shape
    fold, grid = site.fold, site.grid
    tokens = 1
    for side in grid:
        tokens *= side
    if image == tokens * fold or (image == tokens and fold == 1):
        return TokenMaps(site.place, maps.transpose(1, 2).reshape(rows, text, *grid))
    if image == tokens:  # frames lie in the batch
        maps = maps.reshape(rows // fold, fold, image, text).permute(0, 3, 1, 2)
        return TokenMaps(site.place, maps.reshape(rows // fold, text, fold, *grid[-2:]))
    return None


def averaged(maps: Sequence[TokenMaps], grid: Sequence[int] | None = None) -> torch.Tensor:
    """The mean of maps of several places, (n, text tokens, height, width); frames are averaged.

    grid: (height, width) to bring them to (bilinear), the largest among them by default. Differentiable.
    """
    size = tuple(grid or max((one.place.grid[-2:] for one in maps), key=lambda g: g[0] * g[1]))
    flat = [one.values.flatten(2, -3).mean(2) if one.values.ndim > 4 else one.values for one in maps]
    resized = [
        values if tuple(values.shape[-2:]) == size else F.interpolate(values, size, mode="bilinear") for values in flat
    ]
    return torch.stack(resized).mean(dim=0)


def near(run: Any, place: Place, side: int = 16) -> bool:
    """Whether a place's grid is the one, of all that this denoiser has, whose longer side is nearest to `side` tokens.

    16 is 16x16 in Stable Diffusion at 512 pixels, the level that most papers read, and the only grid of transformers.
    """
    sides = {max(grid[-2:]) for grid in getattr(run, "grids", [place.grid])}
    return max(place.grid[-2:]) == min(sides, key=lambda one: (abs(one - side), one))


def among_words(maps: torch.Tensor, first: int = 1, last: int | None = None, sharpness: float = 100.0) -> torch.Tensor:
    """What each place attends to most: maps (n, text tokens, height, width) of which tokens `first` to `last` (as in a
    slice; 1 leaves the start token out) became a softmax of `sharpness` times their attention, all of them `smoothed`
    (Attend-and-Excite, arXiv 2301.13826, section 3.2)."""
    compared = (sharpness * maps[:, first:last]).softmax(dim=1)
    return smoothed(torch.cat([maps[:, :first], compared, maps[:, first + compared.shape[1] :]], dim=1))


def smoothed(maps: torch.Tensor, sigma: float = 0.5, size: int = 3) -> torch.Tensor:
    """Maps (n, k, height, width) under a Gaussian of `size` x `size` cells, reflected at the borders, as Attend-and-
    Excite smooths them (arXiv 2301.13826, section 3.2). sigma: in cells.
    """
    offsets = torch.arange(size, dtype=maps.dtype, device=maps.device) - (size - 1) / 2
    bell = torch.exp(-(offsets**2) / (2 * sigma**2))
    bell = bell / bell.sum()
    rows, edge = maps.flatten(0, 1)[:, None], size // 2
    padded = F.pad(rows, (edge, edge, edge, edge), mode="reflect" if min(maps.shape[-2:]) > edge else "replicate")
    return F.conv2d(padded, (bell[:, None] * bell)[None, None])[:, 0].view_as(maps)


class RecordMaps(Technique):
    """Averages text-to-image maps over places and steps, and hands them over when the run ends.

    receive: called with the run and the maps, (n, text tokens, height, width) on the CPU. where: which places.
    steps: from, to, as fractions of the sampling. over: "text" compares words alone, "attended" keeps the model's
    probabilities. Images do not change.
    """

    def __init__(
        self,
        receive: Callable[[Run, torch.Tensor], None],
        where: Where | None = None,
        steps: tuple[float, float] = (0.0, 1.0),
        over: str = "attended",
    ) -> None:
        self.receive, self.where, self.steps, self.over = receive, where or places(), steps, over

    def wants(self, run: Run, place: Place) -> bool:
        return place.text is not None and self.steps[0] <= run.progress < self.steps[1] and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        found = token_maps(site, self.over)
        if found is None:
            return
        state = run.state(self)
        if site.grid == (1, 1):  # one image token after the other: step and place in the image are one
            state.__dict__.setdefault("line", {}).setdefault(run.step, []).append(found.values.detach()[..., 0, 0])
            return
        sums = state.__dict__.setdefault("sums", {})
        total, count, place = sums.get(site.grid, (0.0, 0, site.place))
        sums[site.grid] = (total + found.values.detach(), count + 1, place)

    def finish(self, run: Run, outputs: list[Any]) -> None:
        sums = getattr(run.state(self), "sums", {})
        line, grid = getattr(run.state(self), "line", {}), getattr(run, "grid", None)
        if grid is not None and len(line) == grid[0] * grid[1]:
            steps = [torch.stack(line[step]).mean(dim=0) for step in sorted(line)]
            self.receive(run, torch.stack(steps, dim=-1).unflatten(-1, grid).cpu())
        elif sums:
            means = [TokenMaps(place, total / count) for total, count, place in sums.values()]
            self.receive(run, averaged(means).cpu())
