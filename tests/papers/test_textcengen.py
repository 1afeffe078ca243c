"""TextCenGen: forces by hand, words that leave the area, every host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts import LEFT, PROMPTS, RIGHT, UNET, hosts, sampled, words_of
from laboratory import Laboratory, run_example

from showtell.measure import areas as measure_areas
from showtell.papers.compose import textcengen
from showtell.papers.compose.textcengen import RandomDirection, TextCenGen, areas, margin, repulsion, thresholded
from showtell.steer.overlaps import centroids
from showtell.world import Scene


def test_forces_by_hand() -> None:
    at, area = torch.tensor([[0.75, 0.5]]), torch.tensor([[0.25, 0.5]])
    assert torch.allclose(repulsion(at, area, 2.0, (16, 16)), torch.tensor([[4 / 8, 0.0]])), "8 cells to the right"
    assert torch.allclose(repulsion(area, at, 2.0, (16, 16)), torch.tensor([[-4 / 8, 0.0]]))
    assert torch.allclose(margin(torch.tensor([[0.5, 0.5]]), 1.0, (16, 16)), torch.zeros(1, 2), atol=1e-6)
    pushed = margin(torch.tensor([[1 / 16, 0.5]]), 0.5, (16, 16))
    assert torch.allclose(pushed, torch.tensor([[0.5 * (1 - 1 / 225), 0.0]]), atol=1e-5), "off the left border"
    soft = thresholded(torch.tensor([[[0.0, 2.0, 4.0]]]), sharpness=10.0)
    assert torch.allclose(soft, torch.tensor([[[0.0, 0.5, 1.0]]]))


def edited(technique: TextCenGen, column: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of one head before and after, (height, width) each, of a word in a 16 x 16 image."""
    maps = torch.full((1, 1, 16, 16), 0.01)
    maps[..., 4:12, column : column + 5] = 0.6
    said = torch.tensor([[False, True]])
    each = torch.stack([maps.flatten(2), maps.flatten(2)], dim=-1)  # the second token is a word, the first is none
    area = torch.zeros(1, 16, 16)
    area[..., :8] = 1
    run: Any = type("Run", (), {"step": 0})()
    found = technique.edited(run, each, area, said)
    assert torch.equal(found[..., 0], each[..., 0]), "what is no word stays"
    return maps[0, 0], found[0, 0, :, 1].view(16, 16)


def test_a_word_leaves_the_area() -> None:
    before, after = edited(TextCenGen(LEFT, kept=0.0))
    assert not after[:, :8].any() and after[:, 8:].sum() > 0.7 * before[4:12, 4:9].sum(), "it is on the right"
    assert centroids(after)[0] - centroids(before)[0] > 0.2
    shut, zeroed = edited(TextCenGen(LEFT, repel=0.0, inward=0.0, kept=0.0))
    assert not zeroed[:, :8].any() and torch.allclose(zeroed[:, 8:], shut[:, 8:], atol=1e-5), (
        "alone it is only shut out"
    )
    some, half = edited(TextCenGen(LEFT, repel=0.0, inward=0.0, kept=0.5))
    assert torch.allclose(half[:, :8], some[:, :8] / 2, atol=1e-5)
    clear, same = edited(TextCenGen(LEFT), column=10)
    assert torch.equal(clear, same), "a word outside of the area is left alone"
    far, random = edited(RandomDirection(LEFT, kept=1.0))
    moved = centroids(random) - centroids(far)
    assert moved.abs().max() > 0.05 and (moved[0] < 0.25 or moved[1].abs() > 0.05)


def test_moves_by_hand() -> None:
    """Half of the way to the border and straight away from the area, so that words end up in its other half, whole."""
    run: Any = None
    at, area = torch.tensor([[0.4, 0.5], [0.25, 0.45]]), torch.tensor([[0.25, 0.5], [0.25, 0.5]])
    beside, above = TextCenGen(LEFT).move(run, at, area, (8, 8))
    border = 1 - 0.5 / 8
    assert torch.allclose(beside, torch.tensor([(border - 0.4) / 2, 0.0]), atol=1e-4)
    assert 0 < above[0] < 0.1, "off the left border"
    assert float(above[1]) == pytest.approx((0.5 / 8 - 0.45) / 2, abs=1e-4)
    askew = TextCenGen(LEFT, inward=0.0, most=0.1).move(run, torch.tensor([[0.45, 0.4]]), area[:1], (8, 8))[0]
    assert float(askew[0] / askew[1]) == pytest.approx(-2, rel=0.1), "a clamped force keeps its direction"
    assert float(askew.norm()) == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("name", hosts("textcengen", *UNET))
def test_it_attaches(name: str) -> None:
    seen: list[float] = []

    class Watched(TextCenGen):
        def attention(self, run: Any, site: Any) -> None:
            super().attention(run, site)
            words = list(words_of(name, PROMPTS[0]).positions)
            maps = site.maps()[0].mean(0)[:, words].unflatten(0, site.grid)
            seen.append(float(maps[:, : site.grid[1] // 2].max()))

    plain, technique = sampled(name), Watched([LEFT, RIGHT], kept=0.0, theta=-1.0)
    changed = sampled(name, technique)
    assert not torch.allclose(changed, plain, atol=1e-3) and torch.isfinite(changed).all()
    assert len(seen) > 2 and max(seen) == 0, "no word attends to the area"
    assert torch.equal(sampled(name, TextCenGen(LEFT, repel=0.0, inward=0.0, kept=1.0)), plain)
    assert torch.equal(sampled(name, TextCenGen(LEFT, until=0.0)), plain)
    assert torch.equal(sampled(name, TextCenGen(LEFT, theta=2.0)), plain), "without conflict nothing changes"
    if name == "sd":
        alone = sampled(name, TextCenGen(LEFT, kept=0.0, theta=-1.0), prompts=PROMPTS[:1])
        assert torch.allclose(alone[0], changed[0], atol=1e-4)
        assert not torch.equal(sampled(name, TextCenGen(LEFT), guidance_scale=1.0), sampled(name, guidance_scale=1.0))


def test_areas_and_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = areas(40, 0)
    assert drawn == areas(40, 0) and len(set(drawn)) == 8
    assert {round((right - left) * (bottom - top), 3) for left, top, right, bottom in drawn} == {0.5, 0.333}
    seen = [Scene.parse("a red ring left of a blue star"), Scene.parse("a green square above a red ring")]
    monkeypatch.setattr(measure_areas, "read", lambda images, judge: seen)
    covered, *_ = textcengen.experiment(Laboratory(seeds=1))
    assert next(iter(covered.scores)) == "textcengen" and np.any(covered.scores["plain"] > 0)
    found = run_example(textcengen.EXAMPLE, monkeypatch)
    assert found["image"].size == (32, 32)
