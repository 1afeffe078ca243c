"""Masks of what a prompt names, from one run's attention, in the place of a detector and a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..bridges.base import Run, as_list
from ..errors import ShowtellError
from ..language.results import Entity, Split
from .maps import RecordMaps, Where
from .overlaps import shares
from .regions import Region, words_of
from .segment import masks_of


def disjoint_masks(maps: torch.Tensor, grid: Sequence[int] | None = None) -> torch.Tensor:
    """Masks, bool (k, *grid), of maps (k, height, width): where a map is above Otsu's threshold, and of several such
    maps the one with the largest share of its sum there: a map that lies everywhere takes no place from others.

    grid: (height, width) to bring the maps to before (bilinear), their own by default.
    """
    if grid is not None:
        maps = F.interpolate(maps[None], tuple(grid), mode="bilinear")[0]
    owner = torch.arange(len(maps), device=maps.device)[:, None, None]
    return masks_of(maps) & (shares(maps).argmax(dim=0) == owner)


def entity_map(run: Run, maps: torch.Tensor, prompt: str, entity: Entity) -> torch.Tensor:
    """The mean map, (height, width), of an entity's noun and modifiers. maps: of a sample, (tokens, height, width)."""
    words = words_of(run, prompt)
    said = [at for span in (entity.head, *entity.modifiers) for at in span.positions(words)]
    return maps[said].mean(dim=0) if said else torch.zeros_like(maps[0])


def entity_regions(
    bridge: Any, splits: Sequence[Split], where: Where | None = None, **options: Any
) -> tuple[list[Any], list[list[Region]]]:
    """An image of each prompt and, for each of its entities, where attention finds it, with its own phrase as prompt.

    splits: the prompts, taken apart by `language.load().split`. where: the attention to read. options: keywords of
    `bridge.generate`. An entity that attention finds nowhere has an empty mask. The images are those of plain sampling.
    """
    found: list[list[Region]] = []
    rest = iter(splits)

    def receive(run: Run, maps: torch.Tensor) -> None:  # once per batch
        for prompt, own in zip(run.prompts, maps, strict=True):
            entities = next(rest).entities
            if entities:
                placed = torch.stack([entity_map(run, own, prompt, one) for one in entities])
                masks = disjoint_masks(placed, run.latents.shape[-2:])
                found.append([Region(e.phrase.text, m.float()) for e, m in zip(entities, masks, strict=True)])
            else:
                found.append([])

    using = [*options.pop("using", ()), RecordMaps(receive, where)]
    images = bridge.generate([split.text for split in splits], using=using, **options)
    if len(found) != len(as_list(images)):
        raise ShowtellError(f"{bridge.name} showed no attention between these prompts' words and the image.")
    return images, found


def first_regions(run: Run, latents: torch.Tensor, splits: Sequence[Split]) -> list[list[Region]]:
    """The regions of `entity_regions` in a first image of each of a run's samples, for techniques that revise it.

    The image is sampled plainly from the same noise, with the run's options. latents: the starting noise, as `start`
    hooks are given it. splits: the run's prompts, taken apart.
    """
    call = {"height": run.height, "width": run.width, "negative_prompt": run.negative_prompts, **run.options}
    steps = getattr(run.scheduler, "num_inference_steps", None) or run.steps  # some schedulers take more than asked for
    call |= {"num_inference_steps": steps, "guidance_scale": run.guidance, "scheduler": run.scheduler}
    noise = latents / getattr(run.scheduler, "init_noise_sigma", 1.0)
    return entity_regions(run.bridge, splits, latents=noise, output_type="latent", **call)[1]
