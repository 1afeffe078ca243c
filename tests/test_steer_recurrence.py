"""Steps taken again: a look ahead leaves the run where it stood, going back to the start comes out where it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from showtell.bridges.base import Technique
from showtell.steer.recurrence import ahead, repeated
from steering import FAMILIES, sampled


class Watched(Technique):
    """Notes the latents that are predicted for, step by step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seen: list[tuple[int, torch.Tensor]] = []

    def start(self, run: Any, latents: torch.Tensor) -> None:
        ahead(run, latents, self.steps)

    def prediction(self, run: Any, *predicted: Any) -> None:
        self.seen.append((run.step, run.given))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_steps_are_taken_twice_alike(name: str) -> None:
    noisy = {"scheduler": EulerAncestralDiscreteScheduler()} if name == "sd" else {}  # draws noise in every step
    technique = Watched(2)
    assert torch.equal(sampled(name, technique, **noisy), sampled(name, **noisy))
    assert [step for step, _ in technique.seen] == [0, 1, 0, 1, 2]
    assert all(torch.equal(technique.seen[step][1], technique.seen[2 + step][1]) for step in (0, 1))


def test_what_goes_wrong_ahead_leaves_no_trace() -> None:
    class Failing(Watched):
        def start(self, run: Any, latents: torch.Tensor) -> None:
            scheduler, state = run.scheduler, run.generators[0].get_state()
            with pytest.raises(ValueError, match="seen"):
                super().start(run, latents)
            assert run.scheduler is scheduler and run.step == 0 and torch.equal(run.generators[0].get_state(), state)

        def prediction(self, run: Any, *predicted: Any) -> None:
            if run.step == 1 and not self.seen:
                self.seen.append((1, run.given))
                raise ValueError("seen")

    sampled("sd", Failing(2), scheduler=EulerAncestralDiscreteScheduler(), seed=[3, 4])


@pytest.mark.parametrize("name", FAMILIES)
def test_back_to_the_start_comes_out_where_it_was_unless_something_changes(name: str) -> None:
    class Back(Watched):
        """At step 2 goes back once; latents of the second round may be changed before each prediction."""

        change = 0.0

        def start(self, run: Any, latents: torch.Tensor) -> None:
            pass

        def before(self, run: Any, latents: torch.Tensor) -> Any:
            if run.step == 0:
                self.first = latents, copy.deepcopy(run.scheduler)
            if run.step != 2:
                return None
            again = repeated(run, *self.first, lambda run, z: z + self.change if self.change else None)
            self.same = torch.equal(again, latents)
            return again

    technique = Back(2)
    assert torch.equal(sampled(name, technique), sampled(name)) and technique.same
    assert [step for step, _ in technique.seen] == [0, 1, 0, 1, 2]
    technique.change = 0.1
    sampled(name, technique)
    assert not technique.same
