"""How two things of a prompt are to lie to each other: read off the prompt, and seen in their attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bridges.base import Run, Technique
from ..bridges.layout import Place
from ..world.layout import DIRECTIONS
from ..world.scene import Scene
from .maps import TokenMaps, averaged
from .overlaps import centroids, shares
from .phrases import phrases
from .regions import positions_of, words_of

Triplet = tuple[str, str, str]
"""The words of an object, a relation, the words of another object, as they are in the prompt."""
RELATIONS = tuple(DIRECTIONS)


def read(run: Run, prompt: str) -> list[Triplet]:
    """Relations between neighbouring things of a prompt: "a dog left of a cat" has ("dog", "left of", "cat")."""
    found, things = [], phrases(words_of(run, prompt))
    for one, two in pairwise(things):
        between = prompt[one.noun.stop : two.noun.start]
        found += [(one.text, relation, two.text) for relation in RELATIONS if relation in between]
    return found


def triplets_of(scene: Scene) -> list[Triplet]:
    """The relations that a scene states between two things, of which it names colour and shape."""
    found = []
    for stated in scene.relations:
        one, two = (scene.groups[i][0] for i in (stated.subject, stated.objects[0]))
        found.append((f"{one.colour} {one.shape}", stated.kind, f"{two.colour} {two.shape}"))
    return found


def paired_maps(site: Any, pairs: Sequence[Sequence[Sequence[int]]], side: int) -> Tensor:
    """What each head attends to of both objects, (n, 2, heads, side, side), each map's mean one. Differentiable.

    pairs: per sample the text tokens of both objects, whose maps are averaged. side: bilinear, of any site's grid.
    """
    maps = site.maps().float()
    own = torch.stack([torch.stack([maps[i, ..., list(at)].mean(-1) for at in pair]) for i, pair in enumerate(pairs)])
    own = own.unflatten(-1, site.grid)
    if tuple(site.grid) != (side, side):
        own = F.interpolate(own.flatten(0, 1), (side, side), mode="bilinear").view(*own.shape[:3], side, side)
    return side**2 * shares(own)


class RecordPairedMaps(Technique):
    """Writes down `paired_maps` at the steps next to each level. Images do not change.

    kept: a list to which (n, levels, 2, heads of all layers, side, side) float16 on the CPU is added; nan where the
    encoder does not read an object's words. triplets: one per sample. levels: shares of the sampling. Pictures may be
    inverted first.
    """

    def __init__(self, kept: list[Tensor], triplets: Sequence[Triplet], levels: Sequence[float], side: int) -> None:
        self.kept, self.triplets, self.levels, self.side = kept, triplets, levels, side

    def before(self, run: Run, latents: Tensor) -> None:
        state, steps = run.state(self), len(run.timesteps)
        if run.step == 0:
            state.found = [[] for _ in self.levels]
            state.pairs = [
                [positions_of(run, prompt, name) for name in (triplet[0], triplet[2])]
                for prompt, triplet in zip(run.prompts, self.triplets, strict=True)
            ]
        state.now = [i for i, level in enumerate(self.levels) if min(round(level * steps), steps - 1) == run.step]

    def wants(self, run: Run, place: Place) -> bool:  # not yet while pictures are inverted
        return place.text is not None and place.fold == 1 and bool(getattr(run.state(self), "now", ()))

    def attention(self, run: Run, site: Any) -> None:
        state = run.state(self)
        maps = paired_maps(site, state.pairs, self.side).half().cpu()
        for level in state.now:
            state.found[level].append(maps)

    def finish(self, run: Run, outputs: list[Any]) -> None:
        self.kept.append(torch.stack([torch.cat(one, dim=2) for one in run.state(self).found], dim=1))


def misplaced(pair: Tensor, relation: str, margin: float) -> Tensor:
    """How much the centres of two maps (2, height, width) lack of a distance, a scalar in [0, margin + 1].

    relation: of the first to the second, one of `RELATIONS`. margin: in shares of the picture's side, along its axis.
    """
    axis, sign = DIRECTIONS[relation]
    one, two = centroids(pair)
    return F.relu(margin - sign * (two - one)[axis])


def centroid_loss(run: Run, maps: list[TokenMaps], margin: float = 0.4) -> Tensor:
    """How much the maps of a prompt's first relation are `misplaced`, (n,) in [0, margin + 1].

    A loss of `gradients.AttentionGradient`; 0 for a prompt without a relation.
    """
    found = averaged(maps)
    rows = []
    for own, prompt in zip(found, run.prompts, strict=True):
        lost = own.sum() * 0
        for a, relation, b in read(run, prompt)[:1]:
            pair = torch.stack([own[positions_of(run, prompt, name)].mean(dim=0) for name in (a, b)])
            lost = misplaced(pair, relation, margin)
        rows.append(lost)
    return torch.stack(rows)
