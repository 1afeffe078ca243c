"""ReToM: windows, representatives and merging by hand; attention on merged tokens; every host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hosts import hosts, sampled
from laboratory import Laboratory, run_example

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.papers.accelerate import retom as module
from showtell.papers.accelerate.retom import eighth, representatives, retom
from showtell.steer.merging import Merging, merge_map, tome, windows

RNG = torch.Generator().manual_seed(0)


def test_windows_by_hand() -> None:
    assert windows((2, 4), (2, 2)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert windows((3, 3), (2, 2)).tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    assert [eighth((side, side)) for side in (64, 32, 16, 8)] == [(8, 8), (4, 4), (2, 2), (2, 2)]


def test_the_representative_is_the_most_typical_token() -> None:
    """One window: three tokens around a direction, one across it; the middle one of the three represents."""
    angles = torch.tensor([0.0, 0.3, 0.6, 1.5])
    x = torch.stack([angles.cos(), angles.sin()], dim=-1)[None] * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None]
    target, alike = representatives()(x, (2, 2), RNG)
    # Mean cosines: token 0 .63, 1 .81, 2 .79 (with themselves 1), token 3 .37 + ... the largest is token 2's.
    means = torch.cos(angles[:, None] - angles).mean(1)
    assert target.tolist() == [[int(means.argmax())] * 4]
    assert torch.allclose(alike[0], torch.cos(angles - angles[means.argmax()]))


def test_merging_stays_in_its_window_and_other_tokens_of_the_edge_count_not() -> None:
    x = torch.randn(3, 35, 6, generator=RNG)
    target, _ = representatives(lambda grid: (2, 3))(x, (5, 7), RNG)
    for window in windows((5, 7), (2, 3)):
        own = window[window >= 0]
        for row in range(3):
            [joined] = set(target[row, own].tolist())
            cosines = F.cosine_similarity(x[row, own][:, None], x[row, own][None], dim=-1).mean(1)
            assert cosines[own.tolist().index(joined)] > cosines.max() - 1e-6


def test_merge_map_by_hand() -> None:
    """Tokens 0-3 may join 1, 4-5 may join 4; half of six are merged: those most alike."""
    target = torch.tensor([[1, 1, 1, 1, 4, 4]])
    alike = torch.tensor([[0.9, 1.0, 0.2, 0.8, 1.0, 0.7]])
    found = merge_map((target, alike), 0.5)
    assert found.first.tolist() == [[1, 2, 4]] and found.slots.tolist() == [[0, 0, 1, 0, 2, 2]]
    x = torch.arange(6.0)[None, None, :, None]
    merged = found.merge(x)
    assert merged.flatten().tolist() == pytest.approx([(0 + 1 + 3) / 3, 2.0, 4.5])
    assert found.unmerge(merged).flatten().tolist() == pytest.approx([4 / 3, 4 / 3, 2.0, 4 / 3, 4.5, 4.5])
    around = merge_map((target, alike), 0.5, before=1, after=2)
    assert around.first.tolist() == [[0, 2, 3, 5, 7, 8]] and around.slots.tolist() == [[0, 1, 1, 2, 1, 3, 3, 4, 5]]
    assert merge_map((target, alike), 0.99).first.tolist() == [[1, 4]], "those that others join stay"


def test_equal_tokens_lose_nothing() -> None:
    """Where all tokens of a window are equal, merging and copying back gives them back."""
    coarse = torch.randn(2, 4, 4, 5, generator=RNG)
    x = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    for choose in (representatives(), tome()):
        found = merge_map(choose(x, (8, 8), RNG), 0.75)
        back = found.unmerge(found.merge(x[:, None]))[:, 0]
        assert found.first.shape == (2, 16) and torch.allclose(back, x, atol=1e-6)


def test_tome_joins_across_the_image() -> None:
    """A token whose only like is far away joins it; ReToM keeps to its window."""
    x = torch.zeros(1, 16, 3)
    x[..., 0] = 1.0
    x[0, [0, 15]] = torch.tensor([0.0, 1.0, 0.0])
    far = {seed: tome()(x, (4, 4), torch.Generator().manual_seed(seed))[0][0] for seed in range(12)}
    assert any(target[0] == 15 for target in far.values()) and all(len(t.unique()) == 4 for t in far.values())
    assert representatives()(x, (4, 4), RNG)[0][0, 0] in (1, 4, 5)


HOSTS = ("sd", "sdxl", "pixart", "pixart-sigma", "hunyuan_dit", "sd3", "flux", "qwen_image", "lumina2", "cogview4")


@pytest.mark.parametrize("name", hosts("retom", *HOSTS))
def test_attaches(name: str) -> None:
    plain, shares = sampled(name), list[float]()
    assert torch.equal(sampled(name, retom(0.0)), plain)
    merged = sampled(name, retom(0.5, report=lambda run, share: shares.append(share)))
    assert merged.isfinite().all() and (merged - plain).abs().max() > 1e-4
    assert 0.2 < shares[0] < 0.9
    own = Merging(lambda x, grid, g: (torch.arange(x.shape[1]).expand(len(x), -1), x[..., 0]), 0.5)
    assert (sampled(name, own) - plain).abs().max() < 1e-3 * plain.abs().max(), "nobody may join: nothing changes"


@pytest.mark.host("retom", "sana", "its self-attention is linear, so fewer tokens would save nothing")
def test_linear_attention_is_left_as_it_is() -> None:
    assert torch.equal(sampled("sana", retom(0.5)), sampled("sana"))


class Compare(Technique):
    """Attention of the merged site against the same worked out with plain matrices."""

    def __init__(self, technique: Merging) -> None:
        self.technique, self.seen = technique, 0

    def wants(self, run: Any, place: Any) -> bool:
        return self.technique.wants(run, place)

    def attention(self, run: Any, site: Any) -> None:
        found = run.state(self.technique).maps[site.depth].repeat(len(site.branches))
        one = F.one_hot(found.slots).float()  # (rows, tokens, left)
        mean = (one / one.sum(1, keepdim=True)).transpose(1, 2)[:, None]
        q, k, v = mean @ site.query, mean @ site.key, mean @ site.value
        expected = one[:, None] @ ((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v)
        assert torch.allclose(site.output, expected, atol=1e-4)
        rows = site.branches["text"]
        text = [i for i in range(site.query.shape[2]) if not site.image.start <= i < site.image.stop]
        assert all((found.slots[rows] == found.slots[rows][:, i : i + 1]).sum() == len(one) // 2 for i in text)
        self.seen += 1


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_attention_is_that_of_the_averages(name: str) -> None:
    technique = retom(0.5)
    compare = Compare(technique)
    sampled(name, technique, compare)
    assert compare.seen > 3


def test_choices_are_kept_between_their_steps() -> None:
    calls: list[int] = []

    def choose(x: torch.Tensor, grid: Any, generator: Any) -> Any:
        calls.append(len(x))
        return representatives()(x, grid, generator)

    sampled("sd3", Merging(choose, 0.5, interval=2), num_inference_steps=3)
    places = 4  # three joint places and one of dual attention
    assert calls == [2] * places * 2, "at steps 0 and 2, of the conditional branch alone"


def test_bad_calls() -> None:
    for bad in ({"ratio": 1.0}, {"interval": 0}):
        with pytest.raises(ShowtellError, match="ratio in"):
            retom(**bad)


def test_experiment_runs_through() -> None:
    close, whole, cost = module.experiment(Laboratory(2))
    assert close.control == "random token" and (close.scores["retom"] < 0).all()
    assert np.all(cost.scores["retom"] < 0.5) and np.all(cost.scores["no merging"] == 1.0)
    assert whole.scores["tome"].shape == (2, 2)


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_example(module.EXAMPLE, monkeypatch)["image"].size == (32, 32)
