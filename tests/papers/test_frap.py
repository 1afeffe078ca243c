"""FRAP: the losses as worked out by hand, weights that move down the slope and stay in bounds, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import DIT, MMDIT, PROMPTS, UNET, hosts, sampled, words_of
from laboratory import Laboratory, run_example

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.papers.compose import frap
from showtell.papers.compose.frap import Frap, objective


class Watched(Frap):
    """Notes the weights before every step, and the loss of every evaluation that is differentiated."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.weights: list[torch.Tensor] = []
        self.seen: list[torch.Tensor] = []

    def before(self, run: Any, latents: torch.Tensor) -> None:
        super().before(run, latents)
        self.weights.append(run.state(self).weights.detach().clone())
        self.adapted = run.state(self).adapted

    def losses(self, run: Any, maps: Any) -> torch.Tensor:
        self.seen.append(super().losses(run, maps))
        return self.seen[-1]


def test_the_objective_by_hand() -> None:
    maps = torch.zeros(4, 2, 2)
    maps[0] = torch.tensor([[0.5, 0.1], [0.0, 0.0]])  # the ring: largest 0.5, shares 5/6 and 1/6
    maps[1] = torch.tensor([[0.2, 0.0], [0.0, 0.2]])  # red: shares 1/2 and 1/2; smaller ones with the ring: 1/2
    maps[2] = torch.tensor([[0.0, 0.0], [0.8, 0.0]])  # the star, in two tokens with the next
    maps[3] = torch.tensor([[0.0, 0.0], [0.2, 0.0]])
    assert objective(maps, [((0,), [])]).item() == pytest.approx(0.5)
    assert objective(maps, [((0,), [(1,)])]).item() == pytest.approx(0.5 - 0.5)
    assert objective(maps, [((0,), [(1,)])], binding=0.0).item() == pytest.approx(0.5)
    assert objective(maps, [((0,), [(1,)]), ((2, 3), [])]).item() == pytest.approx((0.5 + 0.5) / 2 - 0.5)
    assert objective(maps, []).item() == 0


@pytest.mark.parametrize("name", ["sd", "pixart"])
def test_maps_are_compared_among_words(name: str) -> None:
    """The start token takes no part; what stands out is near 1, what does not near 0."""
    seen: dict[str, torch.Tensor] = {}

    class Seeing(Frap):
        def losses(self, run: Any, maps: Any) -> torch.Tensor:
            values = torch.full_like(maps[0].values, 0.01)
            values[:, 0], values[:, 3] = 0.9, 0.2
            flat = [frap.TokenMaps(maps[0].place, values)]
            seen["sharp"] = frap.compared(run, flat)
            return super().losses(run, maps)

    sampled(name, Seeing())
    sharp = seen["sharp"]
    first = 1 if name == "sd" else 0  # T5 writes no start token
    assert torch.allclose(sharp[:, first:].sum(dim=1), torch.ones(()), atol=1e-4)
    assert float(sharp[:, 3].min()) > 0.99 if first else float(sharp[:, 3].max()) < 0.01
    assert float(sharp[:, 4].max()) < 0.01


@pytest.mark.parametrize("name", hosts("frap", *UNET, *DIT, *MMDIT))
def test_it_attaches(name: str) -> None:
    plain, technique = sampled(name), Watched(step_size=1e4)
    changed = sampled(name, technique, num_inference_steps=3)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    first, second, third = technique.weights
    assert (first == 1).all() and (second != 1).any(dim=1).all()
    # Objects and modifiers move, nothing else does, and not beyond the bounds.
    adapted = technique.adapted
    assert (second[~adapted] == 1).all() and float(second.min()) >= 0.6 and float(second.max()) <= 1.4
    words = words_of(name, PROMPTS[0])
    expected = {at for word in ("red", "ring", "blue", "star") for at in words[word]}
    assert set(adapted[0].nonzero().flatten().tolist()) == expected
    assert len(technique.seen) == 2, "steps 0 and 1 of three begin in the first half"
    assert (third[~adapted] == 1).all()
    assert torch.equal(sampled(name, Frap(step_size=0.0)), plain)
    assert torch.equal(sampled(name, Frap(until=0.0)), plain)


@pytest.mark.parametrize("name", ["sd", "sd3", "pixart"])
def test_the_update_goes_down_the_slope(name: str) -> None:
    """A small update lowers every sample's loss at the same latents, against it the loss rises."""

    class Again(Watched):
        def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> None:
            super().prediction(run, guided, conditional, unconditional)
            state, text = run.state(self), run.text
            if len(self.seen) != 1:
                return
            weights = state.weights
            for sign in (1, -1):
                moved = 1 + sign * (weights - 1)
                run.text = state.own.with_tokens(frap.weighted(state.own, moved, state.null))
                state.weights = moved.requires_grad_()
                with torch.enable_grad():
                    run.evaluate(run.given)
                self.losses(run, state.maps)
            state.weights, run.text, state.maps = weights, text, []

    technique = Again(step_size=0.05, bounds=(0.0, 2.0))
    sampled(name, technique)
    start, down, up = (losses.detach() for losses in technique.seen[:3])
    assert (down < start).all() and (up > start).all()


def test_weights_are_frozen_after_the_first_half() -> None:
    technique = Watched()
    sampled("sd", technique, num_inference_steps=5)
    start, first, second, third, last = technique.weights
    assert not torch.equal(start, first) and not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(last, third) and len(technique.seen) == 3


def test_one_evaluation_a_step_and_samples_alone() -> None:
    class Counted(Technique):
        calls = 0

        def conditioning(self, run: Any, text: Any) -> None:
            Counted.calls += 1

    together = sampled("sd", Frap(step_size=100.0), Counted())
    assert Counted.calls == 3
    alone = sampled("sd", Frap(step_size=100.0), prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-3)


def test_given_things_and_what_is_refused() -> None:
    given = Watched(step_size=1e4, things={"ring": ["red"], "cat": []})
    sampled("sd", given)
    assert given.adapted.nonzero().tolist() == [[0, 2], [0, 3]], "start token, a, red, ring"
    with pytest.raises(ShowtellError, match="low <= 1"):
        Frap(bounds=(1.1, 1.4))
    with pytest.raises(ShowtellError, match="no attention to words"):
        sampled("sd", type("Blind", (Frap,), {"wants": lambda self, run, place: False})())


def test_random_signs_keep_the_size() -> None:
    signed, random = Watched(step_size=2.0), type("Signed", (frap.RandomSigns, Watched), {})(step_size=2.0)
    sampled("sd", signed), sampled("sd", random)
    assert torch.allclose((signed.weights[1] - 1).abs(), (random.weights[1] - 1).abs(), atol=1e-6)
    assert not torch.allclose(signed.weights[1], random.weights[1], atol=1e-4)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    binding, present = frap.experiment(Laboratory())
    assert list(binding.scores) == list(present.scores) and next(iter(binding.scores)) == "frap"
    found = run_example(frap.EXAMPLE, monkeypatch)
    assert found["image"].size == (32, 32)
