"""Focused cross-attention: attributes act in their object's focus only, phrases are encoded alone, every host."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hosts import MMDIT, PROMPTS, UNET, bridge_of, hosts, sampled, words_of
from laboratory import Laboratory, run_example

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.papers.compose import focused_cross_attention
from showtell.papers.compose.focused_cross_attention import DisCLIP, FocusedCrossAttention, WrongFocus


class Watched(FocusedCrossAttention):
    """Notes, of the first prompt, what attributes and the others get, where `red` and `blue` may act and where not."""

    def __init__(self, name: str, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.words = words_of(name, PROMPTS[0])
        self.outside: list[float] = []
        self.sums: list[float] = []
        self.edited: set[int] = set()

    def attention(self, run: Any, site: Any) -> None:
        before = site.maps().mean(1)[0]
        super().attention(run, site)
        if not site.touched:
            return
        self.edited.add(run.step)
        after, focus = site.maps().mean(1)[0], self.focus(run, site.grid)[0]
        for k, word in enumerate(("red", "blue")):
            columns = list(self.words[word])
            if not focus[k].all():
                self.outside.append(float(after[~focus[k]][:, columns].max()))
            both = focus[0] & focus[1]
            assert torch.allclose(after[both], before[both], atol=1e-5), "inside every focus nothing changes"
        self.sums.append(float((site.probabilities("text", "image").sum(-1) - 1).abs().max()))


@pytest.mark.parametrize("name", hosts("focused_cross_attention", *UNET, *MMDIT))
def test_it_attaches(name: str) -> None:
    plain, technique = sampled(name), Watched(name, threshold=0.9)
    changed = sampled(name, technique)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    assert technique.edited == {1, 2}, "the first step forms the maps"
    assert technique.outside and max(technique.outside) < 1e-4 and max(technique.sums) < 1e-4
    assert torch.equal(sampled(name, FocusedCrossAttention(strength=0.0), DisCLIP(amount=0.0)), plain)
    assert not torch.equal(sampled(name, DisCLIP()), plain)


def test_focus_by_hand() -> None:
    technique = FocusedCrossAttention(threshold=0.5)
    seen = torch.tensor([[[[0.8, 0.4], [0.41, 0.0]], [[0.1, 0.2], [0.0, 0.0]]]])
    state: Any = type("State", (), {"seen": seen, "focus": {}, "nouns": torch.ones(1, 2, 3, dtype=torch.bool)})
    run: Any = type("Run", (), {"state": lambda self, technique: state})()
    assert technique.focus(run, (2, 2))[0].tolist() == [[True, False, True, False], [False, True, False, False]]
    assert technique.focus(run, (4, 4)).shape == (1, 2, 16)
    state.focus = {}
    assert WrongFocus(0.5).focus(run, (2, 2))[0].tolist() == [[False, True, False, False], [True, False, True, False]]


class Look(Technique):
    def before(self, run: Any, latents: torch.Tensor) -> None:
        self.seen: Any = run.text.tokens


def test_phrases_are_encoded_alone() -> None:
    plain, other = Look(), Look()
    sampled("sd", plain, num_inference_steps=1)
    sampled("sd", DisCLIP(), other, num_inference_steps=1)
    words = words_of("sd", PROMPTS[0])
    changed = (plain.seen[0] != other.seen[0]).any(dim=-1).nonzero().flatten().tolist()
    # A causal encoder reads "a red ring" at the beginning as it would alone.
    assert changed == [*words["blue"], *words["star"]]
    alone, there = bridge_of("sd").encode("a blue star").tokens[0], list(words["blue star"])
    assert torch.equal(other.seen[0, there], alone[list(words_of("sd", "a blue star")["blue star"])])
    half = Look()
    sampled("sd", DisCLIP(0.5), half, num_inference_steps=1)
    assert torch.allclose(half.seen, (plain.seen + other.seen) / 2, atol=1e-6)


def test_a_phrase_alone_has_the_article_of_the_prompt() -> None:
    plain, other, prompt = Look(), Look(), "the red ring left of two dogs"
    sampled("sd", plain, prompts=[prompt], num_inference_steps=1)
    sampled("sd", DisCLIP(), other, prompts=[prompt], num_inference_steps=1)
    words = words_of("sd", prompt)
    assert torch.equal(other.seen[0, list(words["the red ring"])], plain.seen[0, list(words["the red ring"])])
    alone = bridge_of("sd").encode("dogs").tokens[0]
    assert torch.equal(other.seen[0, list(words["dogs"])], alone[list(words_of("sd", "dogs")["dogs"])])


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_samples_alone_and_without_guidance(scale: float) -> None:
    using = DisCLIP(), FocusedCrossAttention(0.9)
    together = sampled("sd", *using, guidance_scale=scale)
    assert torch.allclose(together[0], sampled("sd", *using, prompts=PROMPTS[:1], guidance_scale=scale)[0], atol=1e-4)


def test_given_things_and_what_is_refused() -> None:
    own = sampled("sd", FocusedCrossAttention(0.9), prompts=PROMPTS[:1])
    given = FocusedCrossAttention(0.9, things={"ring": ["red"], "star": ["blue"], "cat": ["old"]})
    assert torch.equal(sampled("sd", given, prompts=PROMPTS[:1]), own)
    assert math.isfinite(float(sampled("sd", FocusedCrossAttention(), prompts=["left of"]).sum())), "names nothing"
    with pytest.raises(ShowtellError, match="threshold=1"):
        FocusedCrossAttention(1.0)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    binding, present = focused_cross_attention.experiment(Laboratory(seeds=1))
    assert list(binding.scores) == list(present.scores) and next(iter(binding.scores)) == "FCA and DisCLIP"
    assert run_example(focused_cross_attention.EXAMPLE, monkeypatch)["image"].size == (32, 32)
