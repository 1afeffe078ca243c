"""SPIN-Diffusion: opponents drawn by the last model, the reference that moves with them, where it rests, every host."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hosts import hosts
from test_popalign import HOSTS, PROMPTS, fresh, latents
from worlds import WorldLab

import showtell
from showtell.papers.align import spin_diffusion as module
from showtell.papers.align.spin_diffusion import opponents, spin
from showtell.train.networks import with_denoiser
from showtell.train.noising import Noising
from showtell.train.preference import gains, preference_loss

SHORT = {"num_inference_steps": 2}


def call_of(options: dict[str, Any]) -> dict[str, Any]:
    return {**SHORT, **options}


@pytest.mark.parametrize("name", hosts("spin_diffusion", *HOSTS))
def test_hosts_come_to_tell_data_from_their_own_images(name: str) -> None:
    bridge, options = fresh(name)
    before = copy.deepcopy(bridge.adapter.denoiser)
    own = opponents(bridge, PROMPTS, **call_of(options))
    data = torch.randn(own.shape, generator=torch.Generator().manual_seed(5))
    net = spin(bridge, data, PROMPTS, 1, 10, 4, lr=1e-3, call=call_of(options), **options)
    assert net is bridge.adapter.denoiser and not any(p.requires_grad for p in net.parameters())
    noising = Noising(bridge, **options)
    text, reference = noising.text(PROMPTS * 8), with_denoiser(bridge.adapter, before)
    gained = []
    for side in (data, own):
        at = noising.noised(side.repeat(8, *[1] * (side.ndim - 1)), torch.Generator().manual_seed(4))
        with torch.no_grad():
            gained.append(float(gains(noising, reference, at, text).mean()))
    assert gained[0] > gained[1]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every call of `prefer` was given; it moves the denoiser by one number."""
    calls: list[dict[str, Any]] = []

    def prefer(bridge: Any, prompts: Any, pairs: Any, steps: int, *more: Any, **options: Any) -> Any:
        calls.append({**pairs, "steps": steps, "at": float(bridge.adapter.denoiser.conv_out.bias[0])})
        with torch.no_grad():
            bridge.adapter.denoiser.conv_out.bias += 0.5
        return bridge.adapter.denoiser

    monkeypatch.setattr(module, "prefer", prefer)
    return calls


def test_each_iteration_plays_against_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, options = fresh("sd")
    calls, data = watched(monkeypatch), latents(bridge, options, 2)
    start = float(bridge.adapter.denoiser.conv_out.bias[0])
    spin(bridge, data, PROMPTS, iterations=3, steps=7, call=call_of(options), **options)
    assert [one["at"] for one in calls] == pytest.approx([start, start + 0.5, start + 1.0])
    assert all(torch.equal(one["winner"], data) and one["steps"] == 7 for one in calls)
    assert not torch.allclose(calls[0]["loser"], calls[1]["loser"], atol=1e-3)
    with torch.no_grad():  # the losers of an iteration are what the model of that iteration draws
        bridge.adapter.denoiser.conv_out.bias -= 0.5
    assert torch.allclose(calls[2]["loser"], opponents(bridge, PROMPTS, 2, **call_of(options)), atol=1e-5)


def test_the_first_opponent_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, options = fresh("sd")
    calls = watched(monkeypatch)
    spin(bridge, latents(bridge, options, 2), PROMPTS, 2, 7, fixed=True, call=call_of(options), **options)
    assert len(calls) == 1 and calls[0]["steps"] == 14


def test_a_model_that_draws_the_data_has_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, options = fresh("sd")
    own, calls = opponents(bridge, PROMPTS, seed=3, **call_of(options)), watched(monkeypatch)
    other = torch.randn(own.shape, generator=torch.Generator().manual_seed(5))
    denoiser, norms = bridge.adapter.denoiser.requires_grad_(True), []
    loss = preference_loss(bridge, PROMPTS, **options)
    spin(bridge, own, PROMPTS, 1, 1, 2, seed=3, call=call_of(options), **options)
    with torch.no_grad():
        denoiser.conv_out.bias -= 0.5  # as it was when the loser was drawn
    for data in (calls[0]["winner"], other):
        denoiser.zero_grad()
        batch = {"winner": data, "loser": calls[0]["loser"], "row": torch.tensor([0, 1])}
        loss(denoiser, batch, torch.Generator().manual_seed(0))[0].backward()
        norms.append(sum(float(p.grad.norm()) for p in denoiser.parameters() if p.grad is not None))
    assert norms[0] < 1e-2 * norms[1]


def test_the_experiment_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"IMAGES": 2, "STEPS": 1, "BATCH": 2, "SAMPLING": 1}.items():
        monkeypatch.setattr(module, name, small)
    fidelity, distance = module.experiment(WorldLab(seeds=1))
    assert next(iter(fidelity.scores)) == "spin" and fidelity.control == "another real image"  # type: ignore[attr-defined]
    assert distance.scores["spin"].shape == (1, 2)  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    run_small(module.EXAMPLE, monkeypatch)


def run_small(source: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A training paper's example on a bridge of its own, with two steps a call; its image is 32x32."""
    bridge, _ = fresh("sd")
    bridge.adapter.steps = 2
    bridge.adapter.size = lambda height=None, width=None, **more: (height or 32, width or 32)
    monkeypatch.setitem(showtell.__dict__, "load", lambda name: bridge)
    space: dict[str, Any] = {}
    exec(source, space)
    assert space["image"].size == (32, 32)
    return space
