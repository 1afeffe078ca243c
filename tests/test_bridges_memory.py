"""Gradients through a denoiser: they stop where nothing more is to be seen, and keep within a budget, unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.bridges.loop import DenoisingRun
from showtell.bridges.memory import Saved, within
from showtell.steer.gradients import AttentionGradient, inside
from steering import FAMILIES, bridge_of, sampled

LEFT = (0.0, 0.0, 0.5, 1.0)
BOXES = {"red ring": LEFT, "dog": LEFT}


def early(place: Any) -> bool:
    """The first place with text alone."""
    return place.depth <= 1


def technique(where: Any = early) -> AttentionGradient:
    return AttentionGradient(inside(BOXES), where=where, size=0.05, until=1.0, refinements=2)


@pytest.fixture
def ended(request: Any) -> Any:
    """How many passes of the denoiser reached its end."""
    counts = {"whole": 0}

    def watch(name: str) -> dict[str, int]:
        def passed(*_: Any) -> None:
            counts["whole"] += 1

        handle = bridge_of(name).adapter.denoiser.register_forward_hook(passed)
        request.addfinalizer(handle.remove)
        return counts

    return watch


@pytest.mark.parametrize("name", FAMILIES)
def test_a_look_ends_early_and_changes_nothing(name: str, ended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = ended(name)
    stopped = sampled(name, technique())
    # The first look is whole; five more (two in each of three steps) end early; three predictions are whole.
    assert counts["whole"] == 1 + 3
    monkeypatch.setattr(DenoisingRun, "look", DenoisingRun.evaluate)
    assert torch.equal(sampled(name, technique()), stopped)
    assert counts["whole"] == 4 + 6 + 3
    assert not torch.equal(stopped, sampled(name))


def test_a_place_wanted_at_later_steps_alone_is_reached() -> None:
    """The end of a look is found anew at every step: what `wants` says may depend on it."""
    seen: list[tuple[int, int]] = []

    class Deeper(AttentionGradient):
        def attention(self, run: Any, site: Any) -> None:
            seen.append((run.step, site.place.depth))
            super().attention(run, site)

    deepest: dict[int, int] = {}

    def where(place: Any) -> bool:
        deepest[0] = max(deepest.get(0, 0), place.depth)
        return place.depth <= 1 if place.step == 0 else True

    sampled("sd", Deeper(inside(BOXES), where=where, size=0.05, until=1.0))
    assert {depth for step, depth in seen if step == 0} == {1}
    assert max(depth for step, depth in seen if step == 2) == deepest[0] > 1


def test_offloaded_models_are_not_left_in_the_middle(ended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, denoiser = ended("sd"), bridge_of("sd").adapter.denoiser
    monkeypatch.setattr(denoiser, "_hf_hook", object(), raising=False)
    sampled("sd", technique())
    assert counts["whole"] == 6 + 3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_budget_changes_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = technique(where=lambda place: True)
    plain, bridge = sampled(name, everywhere), bridge_of(name)
    monkeypatch.setattr(bridge, "activation_budget", 0)
    assert torch.allclose(sampled(name, everywhere), plain, atol=1e-5)
    assert not any("forward" in vars(module) for module in bridge.adapter.denoiser.modules())


def test_less_is_kept_with_a_smaller_budget() -> None:
    def block() -> Any:
        from diffusers.models.attention import FeedForward

        torch.manual_seed(0)
        return torch.nn.Sequential(*[FeedForward(16) for _ in range(4)])

    def kept(budget: int | None) -> tuple[int, torch.Tensor]:
        model, x = block(), torch.randn(64, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with within(model, 10**12 if budget is None else budget) as saved:
            y = model(x).square().sum()
        [gradient] = torch.autograd.grad(y, x)
        return saved.bytes, gradient

    (all_of_it, wanted), (half, gradient), (least, other) = kept(None), kept(kept(None)[0] // 2), kept(0)
    assert torch.allclose(gradient, wanted, atol=1e-6) and torch.allclose(other, wanted, atol=1e-6)
    assert least < 0.2 * all_of_it < half < 0.9 * all_of_it


def test_weights_are_not_counted_and_memory_only_once() -> None:
    model = torch.nn.Linear(4, 4)
    saved, x = Saved(model), torch.zeros(10, 4)
    for tensor in (model.weight, model.weight.T, x, x[:5], x):
        assert saved.keep(tensor) is tensor
    assert saved.bytes == 160
