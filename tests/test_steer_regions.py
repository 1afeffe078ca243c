"""Masks cover what they should on every grid; regional prompts and words stay in their regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.steer.regions import (
    Region,
    RegionalPrompts,
    WordRegions,
    apart,
    cells,
    grounded,
    mask_on,
    named_boxes,
    owned,
)
from steering import FAMILIES, PROMPTS, sampled

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT = (0.0, 0.0, 0.5, 1.0)


def test_masks_by_hand() -> None:
    expected = [[0.5, 1.0, 0.0, 0.0], [0.0] * 4]
    assert torch.allclose(mask_on((0.125, 0.0, 0.5, 0.5), (2, 4)), torch.tensor(expected))
    assert mask_on(LEFT, (3, 2, 2)).shape == (3, 2, 2)
    mask = torch.zeros(4, 4)
    mask[0, 0] = 1
    assert mask_on(mask, (2, 2)).tolist() == [[0.25, 0], [0, 0]]
    # The area of a box is the same on every grid.
    box = (0.13, 0.2, 0.77, 0.9)
    for grid in ((4, 4), (7, 5), (64, 64)):
        assert mask_on(box, grid).mean().item() == pytest.approx(0.64 * 0.7, abs=1e-5)
    with pytest.raises(ShowtellError, match="box"):
        mask_on((0.5, 0, 0.2, 1), (4, 4))
    with pytest.raises(ShowtellError, match="height, width"):
        mask_on(torch.ones(1, 4, 4), (4, 4))


@pytest.mark.parametrize("name", FAMILIES)
def test_empty_regions_change_no_bit_and_full_ones_change_the_prompt(name: str) -> None:
    plain = sampled(name)
    assert torch.equal(sampled(name, RegionalPrompts([Region("a big cat", torch.zeros(8, 8))])), plain)
    full = sampled(name, RegionalPrompts([Region("a big cat", WHOLE)]))
    pooled = name == "sd3"
    assert torch.allclose(full, sampled(name, prompts=["a big cat"] * 2), atol=1e-4), pooled


@pytest.mark.parametrize("name", FAMILIES)
def test_first_step_is_composed_of_the_prompts_own(name: str) -> None:
    """After one step nothing has spread yet: each half equals that of its own prompt's sampling."""
    one: Any = {"num_inference_steps": 1}
    regions = [[Region("a big cat", LEFT)], [Region("a photo", LEFT), Region("a table", LEFT, weight=3.0)]]
    got = sampled(name, RegionalPrompts(regions), **one)
    plain, cat = sampled(name, **one), sampled(name, prompts=["a big cat"] * 2, **one)
    photo, table = (sampled(name, prompts=[p] * 2, **one) for p in ("a photo", "a table"))
    assert torch.allclose(got[..., 4:], plain[..., 4:], atol=1e-5)
    assert torch.allclose(got[0, ..., :4], cat[0, ..., :4], atol=1e-4)
    mixed = 0.25 * photo + 0.75 * table
    assert torch.allclose(got[1, ..., :4], mixed[1, ..., :4], atol=1e-4)
    assert not torch.allclose(cat[0, ..., :4], plain[0, ..., :4], atol=1e-3)


class Watch(Technique):
    def __init__(self, check: Any) -> None:
        self.check = check

    def wants(self, run: Any, place: Any) -> bool:
        return place.text is not None

    def attention(self, run: Any, site: Any) -> None:
        self.check(run, site)


@pytest.mark.parametrize("name", FAMILIES)
def test_words_receive_no_weight_outside_their_region(name: str) -> None:
    def check(run: Any, site: Any) -> None:
        words = run.bridge.words(PROMPTS[0], **({"max_sequence_length": 16} if name == "sd3" else {}))
        maps = site.maps()
        ring = maps[0, :, :, list(words["red ring"])].reshape(maps.shape[1], *site.grid, -1)
        half = site.grid[1] // 2
        assert not ring[:, :, half:].any() and (ring[:, :, :half] > 0).all()
        assert (maps[1] > 0).any(dim=-1).all()  # the other prompt has no such words
        assert (site.probabilities("text", "image").sum(-1) - 1).abs().max() < 1e-5
        seen.append(site.grid)

    seen: list[Any] = []
    changed = sampled(name, WordRegions({"red ring": LEFT}), Watch(check))
    plain = sampled(name)
    assert seen and not torch.allclose(changed[0], plain[0], atol=1e-4) and torch.equal(changed[1], plain[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_soft_regions(name: str) -> None:
    def mass(run: Any, site: Any) -> None:
        words = run.bridge.words(PROMPTS[0])["ring"]
        maps = site.maps()[0][..., [words[0]]].reshape(-1, *site.grid)
        shares.append(float(maps[..., : site.grid[1] // 2].sum() / maps.sum()))

    plain = sampled(name)
    assert torch.equal(sampled(name, WordRegions({"ring": LEFT}, strength=0.0)), plain)
    assert torch.equal(sampled(name, WordRegions({"ring": LEFT}, until=0.0)), plain)
    shares: list[float] = []
    sampled(name, Watch(mass), num_inference_steps=1)
    before, shares = shares, []
    sampled(name, WordRegions({"ring": LEFT}, strength=2.0), Watch(mass), num_inference_steps=1)
    assert all(after > one for after, one in zip(shares, before, strict=True))


def test_whole_image_regions_change_no_bit() -> None:
    assert torch.equal(sampled("sd", WordRegions({"ring": WHOLE})), sampled("sd"))


def test_cells_belong_where_half_of_them_is_covered() -> None:
    assert cells((0.0, 0.0, 0.5, 1.0), (1, 4)).tolist() == [[True, True, False, False]]
    assert cells((0.0, 0.0, 0.3, 1.0), (1, 2)).tolist() == [[True, False]]
    assert cells((0.6, 0.0, 0.7, 1.0), (1, 2)).tolist() == [[False, True]], "never none"
    assert not cells(torch.zeros(4, 4), (2, 2)).any(), "but of an empty mask"
    assert cells(torch.tensor([[0.0, 1.0]]), (2, 4)).tolist() == [[False, False, True, True]] * 2


def test_regions_own_tokens_and_what_is_not_there_owns_none() -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    found = owned([[left, right], [right], []], (1, 4))
    assert found.int().tolist() == [[[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 0, 1, 1], [0] * 4], [[0] * 4, [0] * 4]]
    assert owned([[]], (2, 2)).shape == (1, 1, 4)


def test_what_prompts_name_of_the_boxes() -> None:
    class Look(Technique):
        def start(self, run: Any, latents: torch.Tensor) -> None:
            self.same = grounded(run, {"blue star": "here", "dog": "there"})
            self.each = grounded(run, [{"red ring": 1}, {"cat": 2}])
            with pytest.raises(ShowtellError, match="boxes: got 1"):
                grounded(run, [{}])

    look = Look()
    sampled("sd", look, num_inference_steps=1)
    assert [[box for _, box in one] for one in look.same] == [["here"], ["there"]]
    assert look.each == [[([2, 3], 1)], []] and look.same[0][0][0] == [7, 8]


def test_named_boxes_lose_their_articles() -> None:
    found = named_boxes(["a red ring", "two dots"], np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]]))
    assert found == {"red ring": (0, 0, 0.5, 1), "two dots": (0.5, 0, 1, 1)}


def test_apart_keeps_subjects_from_each_other_alone() -> None:
    """Queries: of the first, of both, of the second, of nobody; keys likewise."""
    owned = torch.tensor([[[1, 1, 0, 0], [0, 1, 1, 0]]]).bool()
    assert apart(owned, owned)[0].int().tolist() == [[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
