"""SPDiffusion: Semantic Protection Diffusion Models for Multi-concept Text-to-image Generation.
Zhang, Zhang, Nie, Li, Chen, Hao, Zhang, Liu, Li, 2024, arXiv 2409.01327

Concepts bleed into each other where a region attends to another concept's words. A look ahead at the first steps
finds each concept's region from the prompt alone; then sampling starts again from the same noise, and no region attends
to the words of another region's concept.

Faithful: the first two of 20 steps are looked at; a noun's cross-attention, without the image's border, gives anchors
(above 0.9), self-attention to the anchors a map, what exceeds the mean of the others' maps a region (above 0.1); there
words of other concepts get no attention, while articles, verbs, start, end and padding stay visible; in the first
steps self-attention is what it was while looking. Thresholds and this replay are those of the released code.
Ours: maps are read on the grid nearest to 16x16 (the released code: a 32nd of the width), of which the border is a 24th
of the side, as in the released 24x24: none on 8x8 cells. Protection lasts for the whole sampling. Concepts without an
attribute are protected too, a place of two regions sees the words of both, a prompt of one concept stays as it is. Noun
phrases are found by `steer.phrases`. In joint attention nothing is replayed, as image and text share queries and keys.

Does not hold here of plain things of one shape (64 prompts, 3 seeds; `bindings` are not measured yet): 0.88 of the
attributes are right with it, 0.90 with regions of raw maps, 0.89 with scattered regions and 0.91 plainly. The base
binds colours well and leaves nothing to protect; what is lost is lost to any mask of that size. Checked: regions are
mostly right (12 validation prompts of `bindings`, one seed): they hold 0.78 of the cells where their thing comes to lie
in the plain image and 0.14 of the other's, those of raw maps 0.84 and 0.08.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.maps import near
from showtell.steer.phrases import at_site, group_maps, membership, things_of, tokens_of
from showtell.steer.recurrence import ahead
from showtell.steer.regions import apart
from showtell.steer.segment import normalised

EXAMPLE = """
import showtell
from showtell.papers.compose.spdiffusion import SPDiffusion

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
[image] = bridge.generate("a red book and a yellow vase", using=[SPDiffusion()], num_inference_steps=20, seed=0)
"""


def concept_regions(
    cross: torch.Tensor, own: torch.Tensor | None, anchor: float = 0.9, threshold: float = 0.1
) -> torch.Tensor:
    """SP-Extraction: the cells of every concept of one image, bool (concepts, height, width); at least two concepts.

    cross: attention of each cell to each concept, (concepts, height, width). own: how each cell attends to every other,
    (cells, cells); None leaves the regions to `cross`.
    """
    maps = normalised(cross)
    if edge := round(min(maps.shape[-2:]) / 24):
        maps = normalised(F.pad(maps[:, edge:-edge, edge:-edge], (edge,) * 4))
    if own is not None:
        anchors = (maps > anchor).flatten(1).to(own)
        maps = normalised((anchors / anchors.sum(dim=1, keepdim=True).clamp(min=1) @ own.T).view_as(maps))
    others = (maps.sum(dim=0) - maps) / (len(maps) - 1)
    return normalised((maps - others).relu()) > threshold


class SPDiffusion(Technique):
    """Finds each concept's region in a look ahead, and keeps other concepts' words out of it.

    look: steps to look at, each at the price of one more; 0 changes nothing. until: fraction of the sampling that is
    protected. anchor, threshold: see `concept_regions`. refine: whether self-attention makes the regions.
    things: noun -> its modifiers, where a prompt has them; None finds each prompt's own. In `using` it comes last, as
    the look ahead needs what other techniques prepare.
    """

    def __init__(
        self,
        look: int = 2,
        until: float = 1.0,
        anchor: float = 0.9,
        threshold: float = 0.1,
        refine: bool = True,
        things: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.look, self.until, self.anchor, self.threshold = look, until, anchor, threshold
        self.refine, self.things = refine, things

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state, things, length = run.state(self), things_of(run, self.things), run.text.tokens.shape[1]
        state.counts, state.looking, state.regions, state.sums, state.kept = [*map(len, things)], False, None, {}, {}
        state.nouns = membership([[noun for noun, _ in each] for each in things], length).to(latents.device)
        state.words = membership([[*map(tokens_of, each)] for each in things], length).to(latents.device)
        if self.look < 1 or self.until <= 0 or max(state.counts) < 2:
            return
        state.looking = True
        ahead(run, latents, min(self.look, run.steps))
        state.looking = False
        if self.refine and not state.sums.get("self"):
            raise ShowtellError(f"{run.bridge.name} shows no self-attention to find regions by; use refine=False.")
        cross = torch.stack(state.sums["cross"]).mean(dim=0)
        own = torch.stack(state.sums["self"]).mean(dim=0) if self.refine else None
        state.regions = torch.zeros_like(cross, dtype=torch.bool)
        for row, count in enumerate(state.counts):
            if count > 1:
                between = None if own is None else own[row]
                found = concept_regions(cross[row, :count], between, self.anchor, self.threshold)
                state.regions[row, :count] = self.placed(found)

    def placed(self, regions: torch.Tensor) -> torch.Tensor:
        """Where the concepts of a sample are protected, bool (concepts, height, width)."""
        return regions

    def wants(self, run: Run, place: Place) -> bool:
        state = run.state(self)
        if len(place.grid) != 2 or place.fold > 1 or max(getattr(state, "counts", [0])) < 2:
            return False
        if state.looking:
            return place.kind == "self" or near(run, place)
        protected = state.regions is not None and run.progress < self.until
        return protected and (place.text is not None or (run.step, place.depth) in state.kept)

    def attention(self, run: Run, site: Any) -> None:
        state, reads = run.state(self), near(run, site.place)
        if state.looking:
            if site.kind == "self":
                state.kept[run.step, site.depth] = site.query, site.key
            if reads and site.image_keys is not None and self.refine:
                own = site.probabilities("text", "image")[..., site.image_keys].detach().float().mean(dim=1)
                state.sums.setdefault("self", []).append(own)
            if reads and site.text is not None:
                state.sums.setdefault("cross", []).append(group_maps(state.nouns, site))
        elif site.text is not None:
            regions = F.interpolate(state.regions.float(), tuple(site.grid), mode="nearest").bool().flatten(2)
            site.mask(apart(regions, at_site(state.words, site))[:, None])
        elif len(site.query) == len(state.kept[run.step, site.depth][0]):
            site.query, site.key = state.kept[run.step, site.depth]


class Scattered(SPDiffusion):
    """The control: as many cells are protected, but anywhere. (With exchanged words all concepts would still be
    protected from each other, only in each other's places.)
    """

    def placed(self, regions: torch.Tensor) -> torch.Tensor:
        cells = regions.flatten(1)
        order = torch.randperm(cells.shape[1], generator=torch.Generator().manual_seed(0)).to(cells.device)
        return cells[:, order].view_as(regions)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("bindings", kinds="same-shape")

    def arm(*using: Technique, more: int = 0) -> Any:
        steps = bridge.adapter.steps + more
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed, num_inference_steps=steps)

    arms = {
        "SPDiffusion": arm(SPDiffusion()),
        "plain": arm(more=2),  # as many evaluations
        "raw maps": arm(SPDiffusion(refine=False)),
        "scattered regions": arm(Scattered()),
    }
    expect = "SPDiffusion > plain, SPDiffusion > raw maps"
    return lab.compare_by((prompts.binding, prompts.complete), arms, expect=expect, control="scattered regions")
