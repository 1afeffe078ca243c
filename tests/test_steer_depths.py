"""Attention by layer: what is collected where, and how layers are combined."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.steer.depths import AttentionByDepth, across_depths
from steering import FAMILIES, sampled


def test_layers_are_combined_around_the_smallest_grid() -> None:
    words = {0: torch.full((1, 1, 4, 4), 1.0), 3: torch.full((1, 1, 2, 2), 2.0), 5: torch.full((1, 1, 4, 4), 4.0)}
    places = {0: torch.eye(16)[None] * 2, 4: torch.eye(16)[None] * 4}
    maps, attention = across_depths(words, places, spread=1.0)
    side = float(torch.tensor(-0.5).exp())
    assert maps.shape == (1, 1, 4, 4)
    assert torch.allclose(maps, torch.full((1, 1, 4, 4), (side + 2 + 4 * side) / (1 + 2 * side)))
    assert torch.allclose(attention, torch.eye(16)[None] * 3 * 4), "all of them, times those after the middle"
    joint = {0: words[0], 1: words[5]}
    found = across_depths(joint, {0: places[0], 1: places[4]})[1]
    assert torch.allclose(found, torch.eye(16)[None] * 9), "no layer comes after the middle: all and all"


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_collected(name: str) -> None:
    class Kept(AttentionByDepth):
        def finish(self, run: Any, outputs: Any) -> None:
            self.state, self.side = run.state(self), max(max(grid) for grid in run.grids)

    technique = Kept()
    assert torch.equal(sampled(name, technique), sampled(name)), "looking changes nothing"
    words, places = technique.state.words, technique.state.places
    assert words and places and len({one.shape[-2:] for one in words.values()}) == (2 if name == "sd" else 1)
    assert {one.shape[1:] for one in places.values()} == {(technique.side**2,) * 2}, "of the largest grid alone"
    rows = torch.stack([one.sum(dim=-1) for one in places.values()])
    assert rows.max() <= 3 + 1e-4, "three steps, whose rows sum to one, over image keys at most"
