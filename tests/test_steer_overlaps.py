"""Maps of words: shares, centres, overlap and translation, by hand."""

from __future__ import annotations

import pytest
import torch

from showtell.steer.overlaps import centroids, overlapping, pairwise_overlap, shares, translated


def test_shares_and_centroids() -> None:
    maps = torch.zeros(2, 3, 4)
    maps[0, 0, 3] = 5.0  # the right top corner of 4 x 3 cells
    maps[1] = 1.0
    assert shares(maps).sum(dim=(1, 2)).tolist() == pytest.approx([1, 1])
    assert torch.allclose(centroids(maps), torch.tensor([[3.5 / 4, 0.5 / 3], [0.5, 0.5]]))
    assert not shares(torch.zeros(1, 2, 2)).any()


def test_pairwise_overlap() -> None:
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    found = pairwise_overlap(torch.stack([left, right, torch.full((1, 2), 0.5)]))
    assert found.tolist() == pytest.approx([0, 0.25, 0.25])
    assert float(pairwise_overlap(torch.stack([left, left]))) == pytest.approx(0.5)
    assert not len(pairwise_overlap(left[None]))


def test_masks_overlap_above_what_is_tolerated() -> None:
    masks = torch.tensor([[[1, 1, 1, 0]], [[0, 0, 1, 1]]]).bool()  # 1 of 4 cells in common
    assert overlapping(masks, 0.2) and not overlapping(masks, 0.25)
    assert not overlapping(masks[:1], 0.0) and not overlapping(torch.zeros(2, 1, 4).bool(), 0.0)


def test_translation_moves_by_cells_and_brings_in_zeros() -> None:
    maps = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    moved = translated(maps, torch.tensor([[0.25, -1 / 3]]))[0, 0]  # one cell right, one up
    assert torch.allclose(moved[:2, 1:], maps[0, 0, 1:, :3], atol=1e-4)
    assert not moved[2].abs().gt(1e-4).any() and not moved[:, 0].abs().gt(1e-4).any()
    assert torch.allclose(translated(maps, torch.zeros(1, 2)), maps, atol=1e-5)
