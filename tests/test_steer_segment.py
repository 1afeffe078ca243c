"""Thresholds and masks by hand; maps of words from a run."""

from __future__ import annotations

import pytest
import torch

import tiny
from showtell.errors import UnsupportedError
from showtell.steer.segment import masks_of, normalised, otsu, partition, word_maps
from steering import FAMILIES, bridge_of


def test_otsu_separates_two_heaps() -> None:
    values = torch.cat([torch.linspace(0.0, 0.2, 300), torch.linspace(0.7, 1.0, 100)])
    assert 0.2 < otsu(values) < 0.7
    assert otsu(torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(0.5, abs=0.02)
    assert otsu(torch.full((9,), 3.0)) == 3.0


def test_masks_and_partition_by_hand() -> None:
    maps = torch.full((2, 4, 4), 0.1)
    maps[0, :2] = 0.9
    maps[1, 2:] = 50.0
    assert masks_of(maps)[0].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    assert partition(maps).tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    assert normalised(maps).amax() == 1 and normalised(maps).amin() == 0
    assert not normalised(torch.ones(1, 3, 3)).any() and not masks_of(torch.ones(1, 3, 3)).any()
    assert masks_of(torch.tensor([[[0.0, 0.5, 1.0]]]), 0.4).tolist() == [[[False, True, True]]]


@pytest.mark.parametrize("name", FAMILIES)
def test_word_maps(name: str) -> None:
    keywords = tiny.keywords(name, num_inference_steps=2)
    image, maps = word_maps(bridge_of(name), "a red ring and a big hundred", **keywords)
    assert [word for word, _ in maps] == ["a", "red", "ring", "and", "a", "big", "hundred"]
    assert image.shape == (32, 32, 3)
    grid = (8, 8) if name == "sd" else (4, 4)
    assert all(heat.shape == grid and heat.min() > 0 for _, heat in maps)
    assert not torch.equal(maps[0][1], maps[4][1])  # both "a", at their own places
    assert sum(heat for _, heat in maps).max() < 1.0 + 1e-5


def test_a_bridge_without_attention_says_so() -> None:
    class Blind:
        can = frozenset({"generate"})

        def unsupported(self, ability: str) -> UnsupportedError:
            return UnsupportedError(f"cannot {ability}")

    with pytest.raises(UnsupportedError, match="cannot attend"):
        word_maps(Blind(), "a ring")  # type: ignore[arg-type]
