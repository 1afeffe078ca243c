"""EnMMDiT: the losses by hand, detection and going back to the start, every host."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hosts import MMDIT, PROMPTS, hosts, sampled, words_of
from laboratory import Laboratory, run_example

from showtell.papers.compose import enmmdit
from showtell.papers.compose.enmmdit import Enmmdit, Excite, block_alignment
from showtell.steer.maps import TokenMaps


class Watched(Enmmdit):
    """Notes the losses, the steps at which they were asked for and the masks in force."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.losses: list[torch.Tensor] = []
        self.steps: list[int] = []
        self.masked: list[list[bool]] = []
        self.latents_seen: list[torch.Tensor] = []

    def gradient(self, run: Any, latents: torch.Tensor) -> Any:
        found = super().gradient(run, latents)
        self.losses.append(found[0])
        self.steps.append(run.step)
        self.masked.append([mask is not None for mask in run.state(self).masks])
        self.latents_seen.append(latents.detach())
        self.starts, self.subjects_found = run.state(self).starts, run.state(self).subjects
        return found


def test_block_alignment_by_hand() -> None:
    left, right = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    even = torch.full((2, 2), 0.25)
    blocks = torch.stack([torch.stack([left, right]), torch.stack([even, right]), torch.stack([left, right])])
    assert block_alignment(blocks, 2).item() == pytest.approx((0 + 0.5) / 2, abs=1e-6)
    blocks.requires_grad_()
    [slope] = torch.autograd.grad(block_alignment(blocks, 2), blocks)
    assert not slope[2].any() and slope[1].any(), "later blocks are the target"


def test_detection_and_separation_by_hand() -> None:
    means = torch.tensor([[[0.8, 0.5, 0.0]], [[0.0, 0.3, 0.4]]])
    assert Enmmdit.separate(means).tolist() == [[[True, False, False]], [[False, True, True]]]
    assert Enmmdit(tolerated=0.2).ambiguous(means) and not Enmmdit(tolerated=None).ambiguous(means)


def test_each_text_encoder_has_its_own_maps_and_loss() -> None:
    values = torch.rand(1, 8, 2, 2)
    maps = [TokenMaps(None, values), TokenMaps(None, values)]  # type: ignore[arg-type]
    technique = Enmmdit(weights=(0.0, 1.0, 0.0))
    state: Any = type("State", (), {})()
    state.starts, state.subjects = [0, 4], [[[1, 5], [2]]]  # the second subject is cut off by the second encoder
    state.masks, state.means = [None], [None]
    run: Any = type("Run", (), {"state": lambda self, technique: state})()
    found = technique.subject_maps(run, maps, 0)
    assert found.shape == (2, 2, 2, 2, 2) and torch.allclose(found.sum(dim=(-2, -1)), torch.ones(2, 2, 2))
    assert torch.allclose(found[0, 1, 0], values[0, 5] / values[0, 5].sum())
    expected = 1 - torch.cosine_similarity(values[0, 1].flatten(), values[0, 5].flatten(), dim=0)
    assert float(technique.loss_of(run, maps)) == pytest.approx(float(expected), abs=1e-5)
    state.masks = [torch.ones(2, 2, 2).bool()]
    inside = Enmmdit(weights=(0.0, 0.0, 1.0))
    inside.ambiguity(run, maps, 0)
    assert float(inside.loss_of(run, maps)) == pytest.approx(0.0, abs=1e-5), "all attention is inside of its mask"


@pytest.mark.parametrize("name", hosts("enmmdit", *MMDIT))
def test_it_attaches_and_goes_back_to_the_start(name: str) -> None:
    plain, technique = sampled(name), Watched(until=0.5, refinements=2, tolerated=0.0, subjects=["ring", "star", "dog"])
    changed = sampled(name, technique)
    assert not torch.allclose(changed, plain, atol=1e-3) and torch.isfinite(changed).all()
    assert technique.subjects_found[0] == [list(words_of(name, PROMPTS[0])[word]) for word in ("ring", "star")]
    assert len(technique.starts) == (2 if name == "sd3" else 1)
    first = technique.losses[0]
    assert first[0] > 0 and first[1] == 0, "one subject is not ambiguous"
    # Steps 0 and 1 twice: the second time the first sample has masks, and all begins from the same noise.
    if technique.masked[-1][0]:
        assert technique.steps == [0, 0, 1, 1] * 2 and technique.masked == [[False] * 2] * 4 + [[True, False]] * 4
        assert torch.equal(technique.latents_seen[4], technique.latents_seen[0])
    else:
        assert technique.steps == [0, 0, 1, 1]
    assert torch.allclose(changed[1], plain[1], atol=1e-4), "what names one subject is left alone"
    assert torch.equal(sampled(name, Enmmdit(size=0.0)), plain)


def test_small_steps_go_down_and_samples_are_alone() -> None:
    technique = Watched(size=0.002, until=0.3, refinements=6, tolerated=None)
    sampled("sd3", technique)
    assert technique.losses[-1][0] < technique.losses[0][0]
    both = {"until": 0.5, "tolerated": 0.0, "refinements": 1}
    together = sampled("sd3", Enmmdit(**both))  # type: ignore[arg-type]
    alone = sampled("sd3", Enmmdit(**both), prompts=PROMPTS[:1])  # type: ignore[arg-type]
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    assert not torch.allclose(sampled("sd3", Excite(until=0.3, tolerated=None))[0], together[0], atol=1e-3)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    success, complete, _ = enmmdit.experiment(Laboratory(seeds=1))
    assert next(iter(success.scores)) == "enmmdit"
    assert "judge" in inspect.signature(success.metric).parameters, "the second judge is asked too"
    assert (success.scores["plain"] == 0).all() and (complete.scores["plain"] > 0).all(), "all of a picture or nothing"
    assert run_example(enmmdit.EXAMPLE, monkeypatch, "sd3")["image"].size == (32, 32)
