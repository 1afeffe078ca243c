"""Latents beside a run, and masks of what a prompt names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell import language
from showtell.bridges.base import Technique, Text
from showtell.steer.companions import Companion, Parts, guided, texts_of
from showtell.steer.masks import disjoint_masks, entity_regions, first_regions
from steering import FAMILIES, PROMPTS, bridge_of, sampled
from tiny import keywords


@pytest.mark.parametrize("name", FAMILIES)
def test_a_companion_of_the_same_text_is_the_run_itself(name: str) -> None:
    found: dict[str, Any] = {}

    class Beside(Technique):
        def before(self, run: Any, latents: torch.Tensor) -> None:
            if run.step == 1:
                run.state(self).same = Companion.of(run, latents, run.text)
                run.state(self).other = Companion.of(run, latents, run.encode(PROMPTS[::-1]))
            if run.step >= 1:
                asked = guided(run, run.state(self).same.latents, run.text)
                assert torch.allclose(run.state(self).same.step(run), asked, atol=1e-5)
                run.state(self).other.step(run)
                found.update(same=run.state(self).same.latents, other=run.state(self).other.latents)

    plain = sampled(name)
    assert torch.equal(sampled(name, Beside()), plain), "the run does not notice"
    assert torch.allclose(found["same"], plain, atol=1e-4) and not torch.allclose(found["other"], plain, atol=1e-2)


def test_disjoint_masks_by_hand() -> None:
    maps = torch.tensor([[[0.9, 0.8, 0.0, 0.0]], [[0.0, 5.0, 5.0, 0.0]]])
    assert disjoint_masks(maps).tolist() == [[[True, False, False, False]], [[False, True, True, False]]]
    assert not disjoint_masks(torch.ones(2, 3, 3)).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_entity_regions(name: str) -> None:
    lm, call = language.load(), keywords(name, num_inference_steps=2, output_type="latent")
    splits = [lm.split(prompt) for prompt in PROMPTS]
    images, regions = entity_regions(bridge_of(name), splits, seed=1, **call)
    assert [[one.prompt for one in each] for each in regions] == [["a red ring", "a blue star"], ["a dog", "the table"]]
    for each in regions:
        masks = torch.stack([torch.as_tensor(one.where) for one in each])
        assert masks.sum(dim=0).max() == 1, "no place has two owners"
    assert torch.equal(images[0], bridge_of(name).generate(PROMPTS, seed=1, **call)[0])

    class First(Technique):
        def start(self, run: Any, latents: torch.Tensor) -> None:
            self.found = first_regions(run, latents, splits)

    first = First()
    again = bridge_of(name).generate(PROMPTS, seed=1, using=[first], **call)
    assert torch.equal(again[0], images[0]), "the run does not notice"
    for one, other in zip(regions, first.found, strict=True):
        assert [a.prompt for a in one] == [b.prompt for b in other]
        assert all(torch.equal(torch.as_tensor(a.where), torch.as_tensor(b.where)) for a, b in zip(one, other))


def test_further_texts_and_their_differences_by_hand() -> None:
    """Predictions that are the texts' own numbers: 1, 2 and 10 where the sample's own prompt gives 4."""
    numbers = {"a": 1.0, "b": 2.0, "c": 10.0, "own": 4.0}

    class Numbers:
        prompts, given = ["own", "own", "own"], torch.zeros(3, 1, 1, 1)
        text = Text(torch.zeros(3, 1, 1))

        def encode(self, prompts: list[str]) -> Text:
            return Text(torch.tensor([numbers[one] for one in prompts]).view(-1, 1, 1))

        def evaluate(self, latents: torch.Tensor, text: Text) -> torch.Tensor:
            return latents + text.tokens[..., None]

    run: Any = Numbers()
    further = [["a", "b"], ["c"], []]
    assert [text.tokens.flatten().tolist() for text in texts_of(run, further)] == [[1.0, 10.0, 4.0], [2.0, 4.0, 4.0]]
    origin = torch.full((3, 1, 1, 1), 4.0)
    assert Parts.of(run, further).differences(run, origin).flatten().tolist() == [-3.0 - 2.0, 6.0, 0.0]
    assert Parts.of(run, further, shared=True).differences(run, origin).flatten().tolist() == [-2.5, 6.0, 0.0]
