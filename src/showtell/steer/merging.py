"""Token merging: similar image tokens pass through attention as one, and get the same answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..bridges.base import Run, Technique
from ..bridges.layout import Grid, Place
from ..errors import ShowtellError
from .features import features
from .maps import Where, places

Choice = tuple[torch.Tensor, torch.Tensor]
"""(n, tokens) each: the token that each may join (its own index for those that others join), and how alike they are."""
Choose = Callable[[torch.Tensor, Grid, torch.Generator], Choice]
"""Tokens (n, tokens, channels) on a grid -> Choice. The generator is for choices by chance."""


@dataclass(frozen=True)
class MergeMap:
    """slots: (n, tokens), the place of each token among those left. first: (n, left), the tokens that are left."""

    slots: torch.Tensor
    first: torch.Tensor

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """(n, heads, tokens, channels) -> (n, heads, left, channels): the mean of the tokens that share a place."""
        index = self.slots[:, None, :, None].expand_as(x)
        empty = x.new_zeros(*x.shape[:2], self.first.shape[1], x.shape[-1])
        return empty.scatter_reduce(2, index, x, "mean", include_self=False)

    def unmerge(self, x: torch.Tensor) -> torch.Tensor:
        """(n, heads, left, channels) -> (n, heads, tokens, channels): every token gets what its place got."""
        return x.gather(2, self.slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))

    def repeat(self, count: int) -> MergeMap:
        return MergeMap(self.slots.repeat(count, 1), self.first.repeat(count, 1))


def merge_map(choice: Choice, ratio: float, before: int = 0, after: int = 0) -> MergeMap:
    """Merges `ratio` of the tokens, those most like what they may join; fewer where not so many may.

    before, after: tokens of the sequence around these, such as text, that stay as they are.
    """
    target, alike = choice
    n, count = target.shape
    order = torch.arange(count, device=target.device)
    free = target != order
    most = min(round(ratio * count), int(free.sum(1).min()))
    joining = alike.masked_fill(~free, -torch.inf).topk(most, dim=1).indices
    left = torch.ones_like(target, dtype=torch.bool).scatter(1, joining, False)
    target = torch.where(left, order, target)
    edges = torch.arange(before + after, device=target.device).expand(n, -1)
    target = torch.cat([edges[:, :before], target + before, edges[:, before:] + count], dim=1)
    left = F.pad(left, (before, after), value=True)
    slots = (left.cumsum(1) - 1).gather(1, target)
    return MergeMap(slots, left.nonzero()[:, 1].view(n, -1))


def windows(grid: Grid, size: tuple[int, int]) -> torch.Tensor:
    """Token indices of the windows of that (height, width) on a grid, (windows, tokens); -1 fills up at the edges."""
    height, width = grid[-2:]
    index = torch.arange(height * width).view(height, width)
    padded = F.pad(index, (0, -width % size[1], 0, -height % size[0]), value=-1)
    rows, columns = padded.shape[0] // size[0], padded.shape[1] // size[1]
    return padded.view(rows, size[0], columns, size[1]).transpose(1, 2).reshape(rows * columns, -1)


def tome(stride: int = 2) -> Choose:
    """ToMe for Stable Diffusion (arXiv 2303.17604): in every window of `stride` x `stride` a token drawn by chance is
    joined, by whichever tokens of the whole image are most like it.
    """

    def choose(x: torch.Tensor, grid: Grid, generator: torch.Generator) -> Choice:
        found = windows(grid, (stride, stride)).to(x.device)
        score = torch.rand(found.shape, generator=generator).to(x.device).masked_fill(found < 0, -1)
        joined = found.gather(1, score.argmax(1, keepdim=True))[:, 0].sort().values
        unit = F.normalize(x.float(), dim=-1)
        alike, nearest = (unit @ unit[:, joined].transpose(1, 2)).max(dim=-1)
        target = joined[nearest]
        target[:, joined] = joined
        return target, alike

    return choose


class Merging(Technique):
    """Attention on merged image tokens. See `Choose` and `merge_map`.

    ratio: of the image tokens that are merged away; 0 changes nothing. interval: steps between two choices, which are
    kept in between. where: the places, by default self- and joint attention. seed: of choices by chance. report: called
    at the end with the share of the products of queries and keys that were left, at those places, in (0, 1].
    Tokens are compared as the attention module gets them, before its projections; queries, keys and values are averaged
    after them, which is the same where they are linear. The conditional branch chooses for all branches.
    """

    def __init__(
        self,
        choose: Choose,
        ratio: float = 0.5,
        interval: int = 1,
        where: Where | None = None,
        seed: int = 0,
        report: Callable[[Run, float], None] | None = None,
    ) -> None:
        if not 0 <= ratio < 1 or interval < 1:
            raise ShowtellError(f"ratio={ratio}, interval={interval}: use a ratio in [0, 1), an interval from 1.")
        self.choose, self.ratio, self.interval, self.seed, self.report = choose, ratio, interval, seed, report
        self.where = where or places(("self", "joint"))

    def around(self, run: Any) -> AbstractContextManager[Any]:
        seen = run.state(self).__dict__.setdefault("seen", {})

        def note(name: str) -> Callable[..., None]:
            def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen[name] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

            return given

        names = {name for name, kind in run.adapter.layout(run).calls if kind in ("self", "joint")}
        return features(run.adapter.denoiser, before={name: note(name) for name in names})

    def wants(self, run: Run, place: Place) -> bool:
        return self.ratio > 0 and place.kind in ("self", "joint") and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        state, length = run.state(self), site.query.shape[2]
        kept = state.__dict__.setdefault("maps", {})
        if run.step % self.interval == 0 or site.depth not in kept:
            x, image = state.seen[site.name][site.branches["text"]], site.image
            x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
            x = x[:, image] if x.shape[1] == length else x
            generator = torch.Generator().manual_seed(self.seed + 7919 * run.step + site.depth)
            choice = self.choose(x, site.grid, generator)
            kept[site.depth] = merge_map(choice, self.ratio, image.start, length - image.stop)
        found = kept[site.depth].repeat(len(site.branches))
        mask, causal = site._given
        if mask is not None:
            mask = _shortened(mask, found, length)
        query, key, value = (found.merge(x) for x in (site.query, site.key, site.value))
        shared = key.shape[1] != query.shape[1]
        output = F.scaled_dot_product_attention(
            query, key, value, mask, 0.0, causal, scale=site._scale, enable_gqa=shared
        )
        site.output = found.unmerge(output)
        state.full = getattr(state, "full", 0) + length**2
        state.done = getattr(state, "done", 0) + query.shape[2] ** 2

    def finish(self, run: Run, outputs: list[Any]) -> None:
        state = run.state(self)
        if self.report is not None:
            self.report(run, getattr(state, "done", 1) / getattr(state, "full", 1))


def _shortened(mask: torch.Tensor, found: MergeMap, length: int) -> torch.Tensor:
    """An attention mask for the tokens that are left, (n, 1 or heads, 1 or left, left)."""
    while mask.ndim < 4:
        mask = mask[None]
    rows = len(found.first)
    mask = mask.expand(rows, *mask.shape[1:])
    keys = found.first[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
    mask = mask.gather(3, keys)
    if mask.shape[2] == length:
        mask = mask.gather(2, found.first[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    return mask
