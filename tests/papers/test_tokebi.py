"""TokeBi: later phrases lose what earlier ones explain, tokens are mixed within phrases alone, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import PROMPTS, UNET, hosts, sampled, words_of
from laboratory import Laboratory, run_example

import test_bridges_clip
from showtell.bridges.base import Technique
from showtell.bridges.clip import ClipBridge
from showtell.papers.compose import tokebi
from showtell.papers.compose.tokebi import TokeBi, explained, phrase_angle, projected_out, random_part, separation
from showtell.steer.phrases import phrases


class Watched(TokeBi):
    """Notes the text before every step, the mixing matrices and the losses."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.texts: list[torch.Tensor] = []

    def start(self, run: Any, latents: torch.Tensor) -> None:
        self.own = run.text.tokens
        super().start(run, latents)

    def before(self, run: Any, latents: torch.Tensor) -> None:
        super().before(run, latents)
        self.texts.append(run.text.tokens)
        self.mixing, self.groups = run.state(self).mixing, run.state(self).groups


@pytest.mark.parametrize("name", hosts("tokebi", *UNET))
def test_it_attaches(name: str) -> None:
    plain, technique = sampled(name), Watched(until=0.5)
    changed = sampled(name, technique)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    assert technique.groups[0] == [list(words_of(name, PROMPTS[0])[one]) for one in ("red ring", "blue star")]
    first, second, third = technique.texts
    assert not torch.equal(first, second) and torch.equal(second, third), "two of three steps begin in the first half"
    named = {at for group in technique.groups[0] for at in group}
    others = [at for at in range(first.shape[1]) if at not in named]
    assert torch.equal(third[0, others], technique.own[0, others])
    # Tokens are mixed with those of their own phrase, no others.
    mixed = (technique.mixing[0] - torch.eye(first.shape[1])).nonzero().tolist()
    assert mixed and all(any({i, j} <= set(group) for group in technique.groups[0]) for i, j in mixed)
    assert torch.equal(sampled(name, TokeBi(amount=0.0, size=0.0)), plain)
    for part in (TokeBi(amount=0.0, until=0.5), TokeBi(size=0.0), TokeBi(size=0.0, part=random_part)):
        assert not torch.equal(sampled(name, part), plain)


@pytest.mark.parametrize("name", hosts("tokebi", "clip"))
def test_phrases_that_a_clip_encoder_reads_are_driven_apart(name: str) -> None:
    bridge: Any = ClipBridge(*test_bridges_clip.make(name))
    inputs = bridge.processor.tokenizer([PROMPTS[0]], return_tensors="pt")
    with torch.no_grad():
        tokens = bridge.model.text_model(**inputs).last_hidden_state[0]
    groups = [list(phrase.positions) for phrase in phrases(bridge.words(PROMPTS[0]))]
    freed = projected_out(tokens, groups)
    earlier, later = groups
    assert torch.equal(freed[earlier], tokens[earlier])
    assert torch.allclose(freed[later].norm(dim=-1), tokens[later].norm(dim=-1), rtol=1e-4)
    assert torch.allclose(freed[later] @ tokens[earlier].T, torch.zeros(2, 2), atol=1e-3)
    assert phrase_angle(freed, groups) == pytest.approx(90, abs=0.1) and phrase_angle(tokens, groups) < 89


def test_projection_by_hand() -> None:
    tokens = torch.tensor([[9.0, 9.0, 9.0], [2.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 3.0, 4.0]])
    groups = [[1], [2], [3]]
    freed = projected_out(tokens, groups)
    assert torch.allclose(freed, torch.tensor([[9.0, 9.0, 9.0], [2.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]]))
    half = projected_out(tokens, groups, amount=0.5)[2]
    assert torch.allclose(half, 5 * torch.tensor([1.5, 4.0, 0.0]) / 18.25**0.5)
    assert torch.equal(projected_out(tokens, groups, amount=0.0), tokens)
    assert torch.allclose(explained(tokens[2:3], tokens[1:2]), torch.tensor([[3.0, 0.0, 0.0]]))
    random = random_part(tokens[2:], tokens[1:2])
    assert torch.allclose(random.norm(dim=-1), torch.tensor([3.0, 0.0]), atol=1e-5), "as much as is explained"
    assert phrase_angle(tokens, [[1], [2]]) == pytest.approx(53.13, abs=0.01)


def test_the_loss_by_hand() -> None:
    maps = torch.zeros(4, 2, 2)
    maps[0, 0, 0], maps[1, 0, 0], maps[1, 0, 1] = 1.0, 1.0, 1.0  # a cosine of 0.707
    maps[2, 1, 1] = maps[3, 1, 1] = 0.5
    assert separation(maps, [[0, 1]]).item() == pytest.approx(1 - 0.5**0.5)
    assert separation(maps, [[0, 1], [2, 3]]).item() == pytest.approx((1 - 0.5**0.5) / 2, abs=1e-6)
    assert separation(maps, [[0], [1]]).item() == pytest.approx(0.5**0.5)
    assert separation(maps, [[0, 2], [1, 3]]).item() > 1 and separation(maps, []).item() == 0


def test_gradient_steps_lower_the_loss() -> None:
    losses: list[torch.Tensor] = []

    def noted(*args: Any) -> torch.Tensor:
        losses.append(loss(*args))
        return losses[-1]

    loss, tokebi.binding_loss = tokebi.binding_loss, noted  # type: ignore[assignment]
    try:
        sampled("sd", TokeBi(size=0.05, steps=4, until=0.1))
    finally:
        tokebi.binding_loss = loss
    assert len(losses) == 4 and (losses[3] < losses[0]).all()


def test_samples_alone_without_guidance_and_given_things() -> None:
    class Count(Technique):
        calls = 0

        def conditioning(self, run: Any, text: Any) -> None:
            self.calls += 1

    counted = Count()
    together = sampled("sd", TokeBi(), counted)
    assert counted.calls == 4, "one evaluation more, in the first of three steps"
    alone = sampled("sd", TokeBi(things={"ring": ["red"], "star": ["blue"]}), prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    unguided = sampled("sd", TokeBi(), guidance_scale=1.0)
    assert torch.isfinite(unguided).all() and not torch.equal(unguided, sampled("sd", guidance_scale=1.0))
    nothing = ["left of"]
    assert torch.equal(sampled("sd", TokeBi(), prompts=nothing), sampled("sd", prompts=nothing))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    complete, present = tokebi.experiment(Laboratory(seeds=1))
    assert list(complete.scores) == list(present.scores) and next(iter(complete.scores)) == "TokeBi"
    assert run_example(tokebi.EXAMPLE, monkeypatch, "sdxl")["image"].size == (32, 32)
