"""Local Representative Token Guided Merging for Text-to-Image Generation (ReToM). Lee, Kim, Lee, 2025, arXiv 2507.12771

In every window of the token grid the token that is most like the others represents them; those that are most like their
representative join it for the attention, and get what it got. Salient detail stays, and matching costs little.

Faithful: windows by resolution, the representative by mean cosine similarity, one global ranking of how like it tokens
are, averaging, copies afterwards, choices at some steps kept for those in between, one map for all guidance branches.
Ours: window sizes (an eighth of the grid, at least 2), the interval (5 steps) and the ratio (0.5), as the paper's were
not to be had; attention alone is merged, not the layers around it. Where queries and keys are normalised or turned by
their positions (SD3.5, FLUX, Hunyuan-DiT), the averages are of what comes out. In the experiment the grids have 8x8
tokens, so windows have 2x2; wall time, which other work on the machine decides, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from showtell.bridges.layout import Grid
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.likeness import pixel_distance
from showtell.steer.merging import Choice, Choose, Merging, tome, windows

EXAMPLE = """
import showtell
from showtell.papers.accelerate.retom import retom

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
[image] = bridge.generate("a photo of a cat on the table", using=[retom(ratio=0.5)], seed=0)
"""

Window = Callable[[Grid], tuple[int, int]]


def eighth(grid: Grid) -> tuple[int, int]:
    """Larger windows at higher resolution: 8x8 on 64x64 tokens, 4x4 on 32x32, at least 2x2."""
    return max(2, grid[-2] // 8), max(2, grid[-1] // 8)


def representatives(window: Window = eighth, by_chance: bool = False) -> Choose:
    """Every token may join the representative of its window: argmax_i of the mean over j of cos(x_i, x_j).

    by_chance: any token of the window represents it, the control.
    """

    def choose(x: torch.Tensor, grid: Grid, generator: torch.Generator) -> Choice:
        found = windows(grid, window(grid)).to(x.device)
        inside = found >= 0
        unit = F.normalize(x.float(), dim=-1)[:, found.clamp(min=0)] * inside[..., None]  # (n, windows, tokens, c)
        alike = unit @ unit.transpose(-1, -2)
        typical = alike.sum(-1) / inside.sum(-1, keepdim=True)
        if by_chance:
            typical = torch.rand(typical.shape, generator=generator).to(x)
        best = typical.masked_fill(~inside, -torch.inf).argmax(-1, keepdim=True)  # (n, windows, 1)
        n, count = x.shape[:2]
        to = found.expand(n, -1, -1).gather(2, best).expand(-1, -1, found.shape[1])
        near = alike.gather(2, best[..., None].expand(-1, -1, -1, found.shape[1]))[:, :, 0]
        at = found[inside].expand(n, -1)
        target = torch.zeros(n, count, dtype=torch.long, device=x.device).scatter(1, at, to[:, inside])
        return target, torch.zeros(n, count, device=x.device).scatter(1, at, near[:, inside])

    return choose


def retom(ratio: float = 0.5, window: Window = eighth, interval: int = 5, **more: Any) -> Merging:
    """ReToM as a technique; see `showtell.steer.merging.Merging` for ratio, interval and further keywords."""
    return Merging(representatives(window), ratio, interval, **more)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts, costs = lab.base("dit"), lab.prompts("pairs"), dict[tuple[str, int], float]()
    choices: dict[str, Choose | None] = {
        "retom": representatives(), "tome": tome(), "no merging": None, "random token": representatives(by_chance=True)
    }  # fmt: skip

    @cache
    def made(name: str, seed: int) -> list[Any]:
        choose, using = choices[name], []
        if choose is not None:
            using = [Merging(choose, 0.5, 5, seed=seed, report=lambda run, cost: costs.update({(name, seed): cost}))]
        return bridge.generate(prompts.texts, using=using, seed=seed)

    def close(name: str, seed: int) -> np.ndarray:
        """Minus the root mean square distance to the images without merging, in [-1, 0]."""
        return -pixel_distance(made(name, seed), made("no merging", seed))

    def cost(name: str, seed: int) -> np.ndarray:
        """Products of queries and keys in attention among image tokens, as a share of those without merging."""
        made(name, seed)
        return np.full(len(prompts.texts), costs.get((name, seed), 1.0))

    def arms(measure: Any, *names: str) -> dict[str, Any]:
        return {name: partial(measure, name) for name in names}

    return [
        lab.compare(arms(close, "retom", "tome", "random token"), expect="retom > tome", control="random token",
                    name="closeness"),
        # The control is in the first comparison.
        lab.compare(arms(made, *choices), metric=prompts.whole, expect="retom >= tome - 0.02"),
        lab.compare(arms(cost, *choices), expect="no merging >= 1.5 * retom, retom ~ tome", name="attention"),
    ]  # fmt: skip
