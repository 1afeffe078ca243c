"""Regions of the image: boxes and masks on any grid, prompts of their own for regions, words kept to regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..bridges.base import Run, Technique, spread
from ..errors import ShowtellError
from ..world.language.english import without_article
from .companions import texts_of

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in fractions of the width and height, from 0 to 1."""


def mask_on(region: Box | torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """How much of every cell of a grid a region covers, (*grid,) in [0, 1].

    region: a box, whose cover is exact, or a mask (height, width) of any size, which is averaged over each cell.
    grid: (height, width), or (frames, height, width): the same in every frame.
    Raises ShowtellError for a box that is empty or leaves the image.
    """
    *frames, height, width = grid
    if isinstance(region, torch.Tensor):
        if region.ndim != 2:
            raise ShowtellError(f"a mask has the shape (height, width), not {tuple(region.shape)}.")
        cover = F.adaptive_avg_pool2d(region[None].float(), (height, width))[0]
    else:
        left, top, right, bottom = region
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ShowtellError(f"box {tuple(region)}: use (left, top, right, bottom) with 0 <= left < right <= 1.")
        cover = _covered(top, bottom, height)[:, None] * _covered(left, right, width)
    return cover.expand(*frames, height, width)


def cells(region: Box | torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The cells of a grid that belong to a region: those it covers at least by half, or else most; bool (*grid,).

    An empty mask has none.
    """
    cover = mask_on(region, grid)
    return (cover >= cover.max().clamp(max=0.5)) & (cover > 0)


def owned(regions: Sequence[Sequence[Box | torch.Tensor]], grid: Sequence[int]) -> torch.Tensor:
    """Which image tokens belong to each region of each sample, bool (n, most regions of a sample, tokens); see `cells`.

    Regions that a sample lacks own nothing. `phrases.membership` says the same of text tokens.
    """
    found = torch.zeros(len(regions), max(1, *map(len, regions)), *grid, dtype=torch.bool)
    for row, each in enumerate(regions):
        for k, region in enumerate(each):
            found[row, k] = cells(region, grid)
    return found.flatten(2)


def named_boxes(phrases: Sequence[str], boxes: Any) -> dict[str, Box]:
    """Phrase -> box of the things of one prompt, without their articles. boxes: (k, 4), as `Box`, for each phrase."""
    each = zip(map(without_article, phrases), boxes, strict=True)
    return {name: tuple(float(side) for side in box) for name, box in each}  # type: ignore[misc]


def apart(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys every query may attend to, bool (n, queries, keys): not those that belong to other subjects alone.

    queries: (n, subjects, queries), keys: (n, subjects, keys), bool: what belongs to whom. What belongs to nobody
    attends to everything and is attended by all.
    """
    together = torch.einsum("nsq,nsk->nqk", queries.float(), keys.float()) > 0
    return together | ~(queries.any(dim=1)[:, :, None] & keys.any(dim=1)[:, None])


def _covered(low: float, high: float, cells: int) -> torch.Tensor:
    """The part of each of `cells` equal cells of [0, 1] that lies in [low, high]."""
    edges = torch.arange(cells + 1, dtype=torch.float64).clamp(low * cells, high * cells)
    return edges.diff().float()


@dataclass(frozen=True)
class Region:
    """A prompt for a part of the image. where: a box or a mask (height, width). weight: against other regions."""

    prompt: str
    where: Box | torch.Tensor
    weight: float = 1.0


class RegionalPrompts(Technique):
    """Every region is denoised with its own prompt; where regions overlap, their guided predictions are averaged.

    The composition of MultiDiffusion (arXiv 2302.08113, eq. 5) on predictions. What no region covers follows the call's
    own prompt. regions: the same for all samples, or one list per sample. until: fraction of the sampling.
    """

    makes = ("prediction",)

    def __init__(self, regions: Sequence[Region] | Sequence[Sequence[Region]], until: float = 1.0) -> None:
        self.regions, self.until = regions, until

    def start(self, run: Run, latents: torch.Tensor) -> None:
        lists = _per_sample(self.regions, len(run.prompts))
        state = run.state(self)
        state.texts = texts_of(run, [[region.prompt for region in one] for one in lists])
        state.masks = []
        for k in range(len(state.texts)):  # a sample with fewer regions than others has empty masks
            masks = [_weighted(one[k] if k < len(one) else None, latents.shape[2:]) for one in lists]
            state.masks.append(torch.stack(masks)[:, None].to(latents))

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor | None:
        state = run.state(self)
        if run.progress >= self.until or run.given is None:
            return None
        cover = sum(state.masks)
        share = cover.clamp(min=1)
        result = guided * (1 - cover / share)
        for text, mask in zip(state.texts, state.masks, strict=True):
            if not mask.any():
                continue
            own = run.evaluate(run.given, text)
            if unconditional is not None and run.guidance != 1:
                own = unconditional + run.guidance * (own - unconditional)
            result = result + mask / share * own
        return result


def _per_sample(regions: Any, count: int) -> list[list[Region]]:
    listed = list(regions)
    if all(isinstance(region, Region) for region in listed):
        return [listed] * count
    if len(listed) != count:
        raise ShowtellError(f"regions: got {len(listed)} lists for {count} samples; give one list, or one per sample.")
    return [list(one) for one in listed]


def _weighted(region: Region | None, grid: Sequence[int]) -> torch.Tensor:
    return torch.zeros(*grid) if region is None else region.weight * mask_on(region.where, grid)


class WordRegions(Technique):
    """Keeps words to their regions: outside of it, the image does not attend to a word.

    regions: word or phrase -> box or mask; the same for all samples (words that a prompt lacks are left alone), or
    one mapping per sample. strength: None removes the word outside (no weight at all); a number is subtracted from its
    scores outside and added inside, softly; 0 changes nothing. until: fraction of the sampling.
    """

    def __init__(
        self,
        regions: Mapping[str, Box | torch.Tensor] | Sequence[Mapping[str, Box | torch.Tensor]],
        strength: float | None = None,
        until: float = 1.0,
    ) -> None:
        self.regions, self.strength, self.until = regions, strength, until

    def wants(self, run: Run, place: Any) -> bool:
        return place.text is not None and run.progress < self.until

    def attention(self, run: Run, site: Any) -> None:
        text = site.text.stop - site.text.start
        cover = word_regions(run, self.regions, site.grid, text)[:, None]  # (n, 1, image, text), NaN: anywhere
        if self.strength is None:
            site.mask(~(cover <= 0.5))
        else:
            site.bias(self.strength * (2 * cover - 1).nan_to_num(0.0))


def word_regions(run: Run, regions: Any, grid: Sequence[int], text: int, occurrence: int | None = None) -> torch.Tensor:
    """(n, image tokens, text tokens): how much of each image token its region gives to each word; NaN for tokens
    without a region. regions: as `WordRegions` takes them. occurrence: of a repeated word, None for all.
    """
    each = [regions] * len(run.prompts) if isinstance(regions, Mapping) else list(regions)
    if len(each) != len(run.prompts):
        raise ShowtellError(f"regions: got {len(each)} mappings for {len(run.prompts)} samples.")
    tokens = 1
    for side in grid:
        tokens *= side
    result = torch.full((len(each), tokens, text), float("nan"))
    for row, (prompt, named) in enumerate(zip(run.prompts, each, strict=True)):
        for phrase, region in named.items():
            positions = positions_of(run, prompt, phrase, occurrence)
            result[row, :, positions] = mask_on(region, grid).flatten()[:, None]
    return result


def positions_of(run: Run, prompt: str, phrase: str, occurrence: int | None = None) -> list[int]:
    """Text tokens of a phrase in a prompt of this run; none where the prompt lacks it."""
    words = words_of(run, prompt)
    if phrase not in words:
        return []
    return list(words[phrase] if occurrence is None else words.find(phrase, occurrence))


def grounded(run: Run, boxes: Any) -> list[list[tuple[list[int], Any]]]:
    """What the prompt of each sample names: (text tokens, box). What a prompt lacks is left out.

    boxes: phrase -> box, or whatever else there is for it, the same for all samples or a list of one mapping each.
    Raises ShowtellError for another number of mappings than of samples.
    """
    each = zip(run.prompts, spread(boxes, len(run.prompts), "boxes"), strict=True)
    return [
        [(at, box) for phrase, box in named.items() if (at := positions_of(run, prompt, phrase))]
        for prompt, named in each
    ]


def words_of(run: Run, prompt: str) -> Any:
    """`run.words(prompt)`, with the options of this call that decide where tokens lie."""
    return run.words(prompt)
