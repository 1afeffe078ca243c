"""SHYI: the hypergraph and its contrastive loss by hand, examples of the step before, every host."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hosts import PROMPTS, UNET, hosts, sampled
from laboratory import Laboratory, run_example

from showtell import language
from showtell.bridges.words import Words
from showtell.errors import ShowtellError
from showtell.measure.experiment import Lab
from showtell.papers.compose import shyi
from showtell.papers.compose.shyi import ACTIONS, Shyi, adjacency, beside, misattached, participants
from showtell.train.cosines import nt_xent

LM = language.load()
SPLITS = [LM.split(prompt) for prompt in PROMPTS]


def test_the_hypergraph_by_hand() -> None:
    split = LM.split("a red ring above a star, which is below a cat")
    words = Words(split.text, [(m.start(), m.end(), at) for at, m in enumerate(re.finditer(r"\w+", split.text))])
    tokens, pairs = adjacency(split, words)
    names = ["ring", "red", "star", "cat", "above", "below"]
    assert tokens == [at for name in names for at in words[name]]
    expected = [
        [1, 1, -1, -1, 1, -1],
        [1, 1, -1, -1, 1, -1],
        [-1, -1, 1, -1, 1, 1],
        [-1, -1, -1, 1, -1, 1],
        [1, 1, 1, -1, 1, 0],
        [-1, -1, 1, 1, 0, 1],
    ]
    assert pairs.tolist() == expected and torch.equal(pairs, pairs.T)
    alone, without = adjacency(split, words, actions=False)
    assert alone == tokens[:4] and torch.equal(without, pairs[:4, :4])
    wrong = misattached(split)
    assert [(link.subject, link.objects) for link in wrong.relations] == [(2, ()), (0, ())]
    assert adjacency(wrong, words)[1][4].tolist() == [-1, -1, -1, 1, 1, 0]
    two = LM.split("a red ring above a star")
    assert adjacency(misattached(two), words)[1][3].tolist() == [-1, -1, -1, 1], "of two things, over none"


def test_the_loss_by_hand() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    pairs = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    alike = nt_xent(torch.stack([one, 3 * one, other]), pairs)  # cosine 1 against a negative of cosine 0
    assert float(alike) == pytest.approx(-math.log(math.e**2 / (math.e**2 + 1)))
    mixed = nt_xent(torch.stack([one, other, other]), pairs)
    assert float(mixed) == pytest.approx((math.log(2) + math.log(1 + math.e**2)) / 2)
    assert float(nt_xent(torch.stack([one, other]), torch.tensor([[1, -1], [-1, 1]]))) == 0, "no positive pair"


class Watched(Shyi):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.losses: list[torch.Tensor] = []
        self.steps: list[int] = []
        self.had: list[bool] = []

    def gradient(self, run: Any, latents: torch.Tensor) -> Any:
        self.had.append(run.state(self).previous is not None)
        found = super().gradient(run, latents)
        self.losses.append(found[0])
        self.steps.append(run.step)
        return found


@pytest.mark.parametrize("name", hosts("shyi", *UNET))
def test_it_attaches(name: str) -> None:
    plain, technique = sampled(name), Watched(SPLITS, further={1: 1})
    changed = sampled(name, technique)
    assert not torch.allclose(changed, plain, atol=1e-3) and torch.isfinite(changed).all()
    assert technique.steps == [0, 1, 1], "one at each step of the first half, further ones where they are asked for"
    assert technique.had == [False, True, True] and all((loss > 0).all() for loss in technique.losses)
    assert torch.equal(sampled(name, Shyi(SPLITS, size=0.0)), plain)


def test_steps_go_down_and_samples_are_alone() -> None:
    technique = Watched(SPLITS, size=2.0, until=0.1, further={0: 4})
    together = sampled("sd", technique)
    assert len(technique.losses) == 5 and (technique.losses[-1] < technique.losses[0]).all()
    alone = sampled("sd", Shyi(SPLITS[:1], size=2.0, until=0.1, further={0: 4}), prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    conform = sampled("sd", Shyi(SPLITS, actions=False, size=2.0, until=0.1, further={0: 4}))
    assert not torch.allclose(conform, together, atol=1e-4), "actions make a difference"
    with pytest.raises(ShowtellError, match="splits: got 1 for 2"):
        sampled("sd", Shyi(SPLITS[:1]))


def test_every_prompt_of_the_experiment_has_an_action_and_a_bystander() -> None:
    found = beside(Lab(n=6, split="validation"), 6)
    for text, kind in zip(found.texts, [*ACTIONS, *ACTIONS], strict=True):
        split = LM.split(text)
        [link], [wrong] = split.relations, misattached(split).relations
        assert link.kind == kind and len(split.entities) == 3
        assert participants(link) == {0, 1} and participants(wrong) == {2}, "the control acts upon the bystander"


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shyi, "beside", lambda lab, count: lab.prompts("bystanders", count))
    relations, complete = shyi.experiment(Laboratory(seeds=1))
    assert next(iter(relations.scores)) == next(iter(complete.scores)) == "shyi"
    source = shyi.EXAMPLE.replace("prompt)])]", "prompt)], further={})]")
    assert run_example(source, monkeypatch)["image"].size == (32, 32)
