"""Thresholds and masks by hand; maps of words from a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import families
import showtell
import tiny
from showtell.errors import ShowtellError, UnsupportedError
from showtell.steer.segment import clusters, masks_of, normalised, otsu, partition, subject_masks, word_maps
from steering import FAMILIES, bridge_of

CLIPS = {
    "AnimateDiffPipeline": ({"num_frames": 3, "height": 32, "width": 32}, (8, 8)),
    "WanPipeline": ({"num_frames": 5, "height": 32, "width": 32, "max_sequence_length": 16}, (2, 2)),
    "CogVideoXPipeline": ({"num_frames": 5, "height": 32, "width": 32, "max_sequence_length": 16}, (2, 2)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_word_maps_of_a_clip(name: str) -> None:
    size, grid = CLIPS[name]
    call = {**size, "num_inference_steps": 2, "output_type": "np", "seed": 1}
    bridge: Any = showtell.load(families.pipeline(name))
    frame, maps = word_maps(bridge, "a red ring", **call)
    [clip] = bridge.animate("a red ring", **call)
    assert np.array_equal(frame, clip[len(clip) // 2]), "reading leaves the clip as it was; the middle frame is shown"
    assert [word for word, _ in maps] == ["a", "red", "ring"]
    assert {tuple(heat.shape) for _, heat in maps} == {grid} and all(heat.min() > 0 for _, heat in maps)


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


def test_clusters_are_found_and_stable() -> None:
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (60,), generator=generator)
    points = centres[truth] + 0.3 * torch.randn(60, 2, generator=generator)
    labels = clusters(points, 3)
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 3
    assert torch.equal(clusters(points, 3), labels)
    assert clusters(torch.zeros(4, 2), 2).tolist() == [0, 0, 0, 0]
    with pytest.raises(ShowtellError, match="5 clusters"):
        clusters(torch.zeros(4, 2), 5)


def test_subject_masks_follow_the_attention() -> None:
    """On a 4x4 grid, the ring is two cells in a box of four, the star fills its box, the rest is background."""
    kinds = torch.tensor([[0, 2, 2, 2], [0, 2, 2, 2], [2, 2, 1, 1], [2, 2, 1, 1]])
    attention = torch.nn.functional.one_hot(kinds.flatten()).float() @ torch.eye(3, 16)
    ring, star = subject_masks(attention, [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)], (4, 4), per_subject=1)
    assert torch.equal(ring, (kinds == 0).float()) and torch.equal(star, (kinds == 1).float())
    # Where no cluster lies mostly in a box, the box stays.
    box = (0.25, 0.0, 0.5, 0.5)
    assert subject_masks(attention, [box], (4, 4), per_subject=2) == [box]
    assert subject_masks(attention, [], (4, 4)) == []
