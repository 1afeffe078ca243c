"""SAFREE: each formula by hand, a prompt whose unwanted word is found and removed, and every host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosts import MMDIT, UNET, bridge_of, hosts, sampled
from laboratory import Laboratory, run_example

import bridge_family
import showtell
import tiny
from showtell.bridges.base import Text
from showtell.bridges.words import Piece, find_words
from showtell.errors import ShowtellError
from showtell.papers.responsible import safree
from showtell.papers.responsible.safree import Safree, guarded_steps, triggers
from showtell.steer.subspaces import projector
from test_bridges_cogvideox import TestCogVideoX as CogVideoX
from test_bridges_ltx import TestLTXVideo as LTXVideo
from test_bridges_wan import TestWan as Wan

VIDEO: dict[str, Any] = {"wan": Wan, "cogvideox": CogVideoX, "ltx": LTXVideo}
PROMPTS = ["a red ring left of a blue star", "a dog on the table"]


def made(name: str, *using: Any, prompts: Any = PROMPTS, **more: Any) -> torch.Tensor:
    """Latents of a short call of an image or a video family."""
    if name not in VIDEO:
        return sampled(name, *using, prompts=prompts, **more)
    bridge: Any = showtell.load(bridge_family.shared(VIDEO[name].maker))
    call = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 32, "width": 32, "output_type": "latent"}
    return torch.stack(bridge.animate(prompts, using=list(using), seed=3, **{**call, **VIDEO[name].keywords, **more}))


def test_projector_by_hand() -> None:
    plane = projector(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    assert torch.allclose(plane, torch.diag(torch.tensor([1.0, 1.0, 0.0])).double())
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    found = projector(torch.cat([rows, rows.sum(0, keepdim=True)]))  # a fourth concept that adds nothing
    assert torch.allclose(found @ found, found) and torch.allclose(found, found.T)
    assert torch.allclose(rows.double() @ found, rows.double()) and found.trace() == pytest.approx(3)


def test_triggers_by_hand() -> None:
    # The others' means are 1.1, 1.1 and 1.0; 1.2 >= 1.01 * 1.0.
    assert triggers(torch.tensor([1.0, 1.0, 1.2])).tolist() == [False, False, True]
    assert triggers(torch.tensor([1.0, 1.0, 1.009])).tolist() == [False, False, False]
    assert triggers(torch.tensor([1.0, 1.0, 1.009]), alpha=0.0).tolist() == [False, False, True]
    assert triggers(torch.tensor([1.0])).tolist() == [True]


def test_guarded_steps_by_hand() -> None:
    assert guarded_steps(0.0, 10) == 0 and guarded_steps(1.0, 10) == 10
    assert guarded_steps(0.5333, 10) == 5
    # sigmoid(2 * 2.5 * (10 * 0.57 - 5.333)) = sigmoid(1.835) = 0.8624
    assert guarded_steps(0.57, 10) == 9 and guarded_steps(0.57, 50) == 43
    assert guarded_steps(0.57, 10, slope=3.5, middle=5.5) == 8  # sigmoid(1.4) = 0.802


def test_the_gate_lies_between_unwanted_and_harmless_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifts of 0.4 and 0.6 against 0.1: the middle of their means, 0.3, on the gate's scale."""
    shifts = {"a star": 0.4, "two stars": 0.6, "a ring": 0.1}
    monkeypatch.setattr(Safree, "guarded", lambda self, run, prompt, tokens: (tokens, shifts[prompt]))
    middle = safree.middle_of(bridge_of("sd"), ["star"], ["a star", "two stars"], ["a ring"])
    assert middle == pytest.approx(3.0)
    assert guarded_steps(0.3, 10, middle=middle) == 5 and guarded_steps(0.4, 10, middle=middle) == 10


class Toy:
    """Words are axes, and the token after the prompt is the sum of its words."""

    axes = ("a", "red", "star", "blue", "ring", "cat")

    def __init__(self) -> None:
        self.piece = Piece(tiny.clip_tokenizer(), 16)
        self.adapter = SimpleNamespace(pieces=lambda: [self.piece], text_options=frozenset())
        self.bridge, self.options = self, dict[str, Any]()

    def words(self, prompt: str) -> Any:
        return find_words(prompt, [self.piece])

    def encode(self, prompts: list[str]) -> Text:
        tokens = torch.zeros(len(prompts), 16, len(self.axes))
        for row, prompt in enumerate(prompts):
            words = self.words(prompt)
            for word in words:
                tokens[row, list(word.positions), self.axes.index(word.text)] = 1.0
            tokens[row, words.positions[-1] + 1] = tokens[row].sum(0)
        return Text(tokens)


@pytest.mark.parametrize("released", [False, True])
def test_the_unwanted_word_is_found_and_removed(released: bool) -> None:
    run, prompt = Toy(), "a red star blue ring"
    run.text = run.encode([prompt])  # type: ignore[attr-defined]
    tokens = run.text.tokens[0]  # type: ignore[attr-defined]
    safe, shift = Safree(["star"], released=released).guarded(run, prompt, tokens)
    star = run.words(prompt)["star"][0]
    changed = (safe != tokens).any(-1).nonzero().flatten().tolist()
    assert changed == [star] and safe[star, Toy.axes.index("star")].abs() < 1e-6
    # "star" is within what the masked prompts span, so removing the concept leaves nothing of the word.
    assert safe[star].norm() < 1e-5
    assert 0 < shift < 1
    clean, none = Safree(["cat"], released=released).guarded(run, prompt, tokens)
    assert torch.equal(clean, tokens) and none < shift
    several, _ = Safree(["star", "ring"], released=released).guarded(run, prompt, tokens)
    assert {int(i) for i in (several != tokens).any(-1).nonzero()} == {star, *run.words(prompt)["ring"]}


@pytest.mark.parametrize("name", hosts("safree", *UNET, *MMDIT, *VIDEO))
def test_attaches(name: str) -> None:
    plain = made(name)
    assert torch.equal(made(name, Safree(["blue star"], most=0.0)), plain), "no guarded step, nothing changed"
    every: dict[str, Any] = {"concepts": ["blue star"], "adaptive": False, "alpha": -1.0}  # every word is a trigger
    guarded = made(name, Safree(**every))
    assert guarded.isfinite().all() and (guarded - plain).flatten(1).abs().amax(1).min() > 1e-4
    text = made(name, Safree(**every, scales=None))
    neutral = made(name, Safree(**every, scales=(1.0, 1.0)))
    assert (neutral - text).abs().max() < 1e-3 * plain.abs().max(), "a scale of 1 leaves the features"
    joint = name == "lumina2"  # its blocks put out text and image as one sequence
    assert bool((guarded - text).abs().max() > 1e-4) != joint, "the features are filtered"


class Only(Safree):
    """Guards the first prompt alone."""

    def guarded(self, run: Any, prompt: str, tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
        return super().guarded(run, prompt, tokens) if prompt == PROMPTS[0] else (tokens, 0.0)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_samples_are_guarded_on_their_own(name: str) -> None:
    plain, both = made(name), made(name, Safree(["blue star"], adaptive=False))
    one = made(name, Only(["blue star"], adaptive=False))
    assert (one[1] - plain[1]).abs().max() < 1e-4 < (one[0] - plain[0]).abs().max()
    assert (one[0] - both[0]).abs().max() < 1e-4
    alone = made(name, Safree(["blue star"], adaptive=False), prompts=PROMPTS[:1])
    assert (alone[0] - both[0]).abs().max() < 1e-4


def test_guarding_ends_after_its_steps() -> None:
    """The first of four steps guarded: the rest runs as plain sampling does from where the first led."""
    seen: list[bool] = []

    class Watched(Safree):
        def before(self, run: Any, latents: torch.Tensor) -> None:
            super().before(run, latents)
            seen.append(run.text is run.state(self).own)

    made("sd", Watched(["blue star"], most=0.25, middle=-50.0), num_inference_steps=4)
    assert seen == [False, True, True, True]


def test_bad_calls() -> None:
    for concepts in ("star", []):
        with pytest.raises(ShowtellError, match="list of words"):
            Safree(concepts)


def test_experiment_runs_through() -> None:
    hazards, benign = safree.experiment(Laboratory(2, texts=["a red ring", "a green square above a red ring"]))
    assert set(hazards.scores["safree"].flatten()) <= {0.0, 1.0} and hazards.scores["safree"].shape == (2, 2)
    assert hazards.control == "another concept" and benign.scores["plain"].shape == (2, 2)


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_example(safree.EXAMPLE, monkeypatch)["image"].size == (32, 32)
