"""Noise refinement: losses by hand, repaired noise, second passes of what failed, every host."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hosts import PROMPTS, UNET, bridge_of, hosts, keywords, sampled
from laboratory import Laboratory, run_example

from showtell import language
from showtell.errors import ShowtellError
from showtell.language.demands import demands
from showtell.papers.compose import noise_refinement
from showtell.papers.compose.noise_refinement import Aligned, failures, instead, loss, refined

LM = language.load()
WANTED = [demands(LM.split(prompt)) for prompt in PROMPTS]


def test_losses_by_hand() -> None:
    maps = torch.zeros(3, 4, 10)
    maps[0, 0, 7] = 0.5  # centre x 0.75
    maps[1, 0, 2] = 0.8  # centre x 0.25
    maps[2, 0, 7] = 0.1
    assert float(loss(maps, [("thing", [[0]])])) == pytest.approx(0.5)
    assert float(loss(maps, [("thing", [[0]]), ("thing", [[1]])])) == pytest.approx(0.5 + 0.2)
    assert float(loss(maps, [("attribute", [[2], [0]])])) == pytest.approx(0)
    assert float(loss(maps, [("attribute", [[2], [1]])])) == pytest.approx(1)
    assert float(loss(maps, [("left of", [[0], [1]])])) == pytest.approx(0.2 + 0.5)
    assert float(loss(maps, [("right of", [[0], [1]])])) == 0 and float(loss(maps, [])) == 0
    assert float(loss(maps, [("above", [[0], [1]])])) == pytest.approx(0.2)
    assert float(loss(maps, [("apart", [[0], [1], [2]])])) == pytest.approx((0 + 0.5 + 0) / 3)


class Watched(Aligned):
    """Notes the noise that sampling starts from and the losses."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.losses: list[torch.Tensor] = []

    def gradient(self, run: Any, latents: torch.Tensor) -> Any:
        found = super().gradient(run, latents)
        self.losses.append(found[0])
        return found

    def start(self, run: Any, latents: torch.Tensor) -> Any:
        noise = super().start(run, latents)
        self.given, self.noise = latents, noise
        return noise


@pytest.mark.parametrize("name", hosts("noise_refinement", *UNET))
def test_it_attaches(name: str) -> None:
    plain, failed = sampled(name), [WANTED[0][2:3], []]
    technique = Watched(WANTED, failed, iterations=2, size=5.0)
    changed = sampled(name, technique)
    assert not torch.allclose(changed, plain, atol=1e-3) and torch.isfinite(changed).all()
    assert len(technique.losses) == 2 + 2, "two iterations of repair, then the first two of three steps"
    assert torch.equal(technique.noise[1], technique.given[1]), "what did not fail keeps its noise"
    assert not torch.allclose(technique.noise[0], technique.given[0], atol=1e-4)
    assert float(technique.noise[0].norm()) == pytest.approx(float(technique.given[0].norm()), rel=1e-4)
    assert technique.losses[0][1] == 0 and technique.losses[2][1] > 0, "repair knows the failed demands only"
    assert torch.equal(sampled(name, Aligned(WANTED, WANTED, size=0.0)), plain)


def test_repair_lowers_the_failed_loss_and_samples_are_alone() -> None:
    technique = Watched(WANTED, WANTED, iterations=6, size=2.0, until=0.0)
    together = sampled("sd", technique)
    assert (technique.losses[5] < technique.losses[0]).all()
    alone = sampled("sd", Aligned(WANTED[:1], WANTED[:1], 6, 2.0, 0.0), prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    with pytest.raises(ShowtellError, match="demands: got 1 for 2"):
        sampled("sd", Aligned(WANTED[:1]))


def test_only_what_failed_is_drawn_again() -> None:
    asked: list[Any] = []

    def verify(images: list[Any], questions: list[list[str]]) -> list[list[bool]]:
        asked.append(questions)
        return [[question != "is there a star?" for question in each] for each in questions]

    call = {**keywords("sd"), "num_inference_steps": 2}
    first = bridge_of("sd").generate(PROMPTS, using=[Aligned(WANTED)], **call)
    [star, none] = failures(first, WANTED, verify)
    assert [one.kind for one in star] == ["thing", "apart"] and not none and "" not in asked[0][0]
    images = refined(bridge_of("sd"), PROMPTS, WANTED, verify, **call)
    assert torch.equal(images[1], first[1]) and not torch.allclose(images[0], first[0], atol=1e-3)
    with pytest.raises(ShowtellError, match="got 1 for 2"):
        refined(bridge_of("sd"), PROMPTS, WANTED[:1], verify)


def test_the_control_repairs_what_is_met() -> None:
    failed = [WANTED[0][:4], WANTED[1]]
    chosen, none = instead(WANTED, failed, random.Random(0))
    assert set(chosen) == set(WANTED[0][4:]) and not none, "all that is met, where that is less than what failed"
    for seed in range(5):
        [star], _ = instead(WANTED, [WANTED[0][1:2], []], random.Random(seed))
        assert star != WANTED[0][1]


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        noise_refinement, "says_yes", lambda images, asked: [[i % 2 == 0 for i in range(len(each))] for each in asked]
    )
    facts, relations = noise_refinement.experiment(Laboratory(seeds=1))
    assert next(iter(facts.scores)) == next(iter(relations.scores)) == "noise refinement"
    assert facts.expect.startswith("noise refinement > first pass"), "what the control has to lose"
    source = noise_refinement.EXAMPLE.replace(
        "verify, seed=0", "lambda images, asked: [[False] * len(asked[0])], seed=0"
    )
    assert run_example(source, monkeypatch)["images"][0].size == (32, 32)
