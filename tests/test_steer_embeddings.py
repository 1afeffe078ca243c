"""Embedding arithmetic does what it says on the text, and amounts of nothing change no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.bridges.base import Technique, Text
from showtell.errors import ShowtellError
from showtell.steer.embeddings import Direction, Mixed, PromptSchedule, WordWeights, mixed, renormalised, weighted
from steering import FAMILIES, PROMPTS, sampled

CATS = ["a big cat"] * 2


class Texts(Technique):
    """Keeps the text of every step."""

    def __init__(self) -> None:
        self.seen: list[Text] = []

    def conditioning(self, run: Any, text: Text) -> None:
        self.seen.append(text)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_changes_no_bit(name: str) -> None:
    plain = sampled(name)
    same = PromptSchedule(lambda progress, own: own)
    using = [WordWeights({"ring": 1.0}), Mixed("a cat", 0.0), Direction("a cat", "a dog", 0.0), same]
    assert torch.equal(sampled(name, *using), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_word_weights(name: str) -> None:
    texts, plain = Texts(), Texts()
    sampled(name, WordWeights({"ring": 0.0, "dog": 2.0}), texts)
    sampled(name, plain)
    got, before = texts.seen[0], plain.seen[0]
    empty = before.empty
    changed = (got.tokens - before.tokens).abs().amax(-1) > 0
    places = [row.nonzero().flatten().tolist() for row in changed]
    assert places == ([[3], [2]] if name == "sd" else [[3, 18], [2, 17]])  # CLIP after its start token, then T5
    assert torch.allclose(got.tokens[0, 3], empty[0, 3])
    assert torch.allclose(got.tokens[1, 2] - empty[0, 2], 2 * (before.tokens[1, 2] - empty[0, 2]), atol=1e-5)


def test_weights_around_zero_and_what_is_refused() -> None:
    text = Text(torch.ones(1, 2, 3), make_empty=lambda: torch.zeros(1, 5, 3))
    assert weighted(text, torch.tensor([[2.0, 1.0]]), "zero")[0, :, 0].tolist() == [2, 1]
    with pytest.raises(ShowtellError, match="pivot='zero'"):
        weighted(text, torch.ones(1, 2))
    with pytest.raises(ShowtellError, match="pivot"):
        WordWeights({}, pivot="mean")


@pytest.mark.parametrize("name", FAMILIES)
def test_between_two_prompts(name: str) -> None:
    other = sampled(name, prompts=CATS)
    assert torch.equal(sampled(name, Mixed(CATS[0], 1.0)), other)
    half = sampled(name, Mixed(CATS[0], 0.5))
    assert not torch.allclose(half, other, atol=1e-4) and not torch.allclose(half, sampled(name), atol=1e-4)


def test_mixing_by_hand() -> None:
    first = Text(torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.tensor([[1, 0]]))
    second = Text(torch.ones(1, 2, 3), torch.ones(1, 4), torch.tensor([[1, 1]]))
    between = mixed(first, second, 0.25)
    assert between.tokens.unique().tolist() == [0.25] and between.mask is not None and between.mask.all()
    assert between.pooled is not None and between.pooled.unique().tolist() == [0.25]
    with pytest.raises(ShowtellError, match="cannot be mixed"):
        mixed(first, Text(torch.ones(1, 3, 3)), 0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_direction_from_the_prompt_to_another_arrives_there(name: str) -> None:
    arrived = sampled(name, Direction("a big cat", PROMPTS[0]), prompts=PROMPTS[:1])
    assert torch.allclose(arrived, sampled(name, prompts=CATS[:1]), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_schedule(name: str) -> None:
    texts, cats, own = Texts(), Texts(), Texts()
    sampled(name, PromptSchedule(lambda progress, own: CATS[0] if progress < 0.5 else own), texts)
    sampled(name, cats, prompts=CATS)
    sampled(name, own)
    for got, expected in zip(texts.seen, [cats.seen[0], cats.seen[0], own.seen[0]], strict=True):
        assert torch.equal(got.tokens, expected.tokens)
    always = sampled(name, PromptSchedule(lambda progress, own: CATS[0]))
    assert torch.equal(always, sampled(name, prompts=CATS))


def test_renormalised_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
    found = renormalised(tokens, torch.tensor([[1.0, 1.5]]))
    assert torch.allclose(found, torch.tensor([[[1.0, 3.0], [3.0, 3.0]]]) * 2 / 2.5)
    around = torch.tensor([[[1.0, -1.0], [2.0, -2.01]]])
    assert torch.allclose(renormalised(around, torch.tensor([[3.0, 1.0]])).abs().max(), torch.tensor(3.0), atol=0.1)
