"""PromptEnhancer: answers read, key points by hand, a rewriter that learns what is rewarded, every kind of bridge."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from hosts import DIT, MMDIT, UNET, hosts, sampled
from laboratory import Laboratory, run_example
from test_vqascore import bridge as vlm_of

from showtell import language
from showtell.language import LanguageModel
from showtell.papers.prompt import prompt_enhancer as module
from showtell.papers.prompt.prompt_enhancer import (
    ASK,
    KEY_POINTS,
    TAGS,
    PromptEnhancer,
    align_score,
    answer_of,
    asked,
    awkward,
    rewriter,
    triples,
)  # fmt: skip
from showtell.train import policy
from showtell.train.grpo import grpo as group_relative
from showtell.world import Scene
from showtell.world.questions import KINDS, Question

PROMPTS = ["a ring and a star, the second blue", "a dog on the table"]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("<think>two things</think><answer>a red ring</answer>", "a red ring"),
        ("two things</think> <answer> a red ring </answer>", "a red ring"),
        ("<think>two things</think>\na red ring", "a red ring"),
        ("two things</think>a red ring", "a red ring"),
        ("a red ring", "a red ring"),
        ("<think>never ends", "the prompt"),
        ("<answer></answer>", "the prompt"),
        ("<think>x</think><answer>a red ring", "a red ring"),
    ],
)
def test_answers_and_fallbacks(said: str, text: str) -> None:
    assert answer_of(said, "the prompt") == text


def test_key_points_by_hand() -> None:
    checks = [
        [Question("existence", "a?", "yes"), Question("existence", "b?", "yes"), Question("colour", "c?", "red")],
        [Question("related", "d?", "yes"), Question("relation", "e?", "left of")],
        [],
    ]
    asked_of: list[tuple[Any, str]] = []

    def right(images: list[Any], questions: list[str]) -> list[str]:
        asked_of.extend(zip(images, questions, strict=True))
        return ["yes", "no", "Red.", "yes", "left of"]

    # Subjects: one of two; colour: right. Each point counts once, however many questions it has.
    assert align_score(checks, right, ["x", "y", "z"]).tolist() == [0.75, 1.0, 0.0]
    assert asked_of == [("x", "a?"), ("x", "b?"), ("x", "c?"), ("y", "d?"), ("y", "e?")]
    assert {kind for kinds in KEY_POINTS.values() for kind in kinds} <= {*KINDS, "related", "attribute", "motion"}


def test_lessons_lead_back_to_the_caption() -> None:
    scenes = [Scene.parse(text) for text in ("a red ring left of a blue star", "a green heart above a black cross")]
    ways = {awkward(scenes[0], random.Random(seed)).split(" ")[2] for seed in range(9)}
    assert len(ways) == 2, "apart from nouns, or by what they are not"
    for seed in range(9):
        said = awkward(scenes[0], random.Random(seed))
        assert said != scenes[0].caption() and all(word in said for word in ("ring", "star", "red", "blue", "left of"))
    for (request, answer), scene in zip(triples(language.load(), scenes), scenes, strict=True):
        assert request.endswith("<think>") and scene.caption() not in request
        assert answer_of(answer, "") == scene.caption() and scene.objects[0].shape in answer.split("</think>")[0]

    class Wrong(type(language.load())):  # type: ignore[misc]
        def parse(self, text: str) -> Scene:
            return scenes[1]

    assert len(triples(Wrong(), scenes)) == 1, "what is not read back is left out"


class Chatting(LanguageModel):
    """Writes what any prompt should have been."""

    def complete(self, conversations: Any, **more: Any) -> list[list[str]]:
        assert all(one.startswith(ASK) for one in conversations)
        return [[f"<think>{one[-9:]}</think><answer>a red ring</answer>"] for one in conversations]


@pytest.mark.parametrize("name", hosts("prompt_enhancer", *UNET, *DIT, *MMDIT))
def test_any_generator_sees_the_rewrite_alone(name: str) -> None:
    found = sampled(name, PromptEnhancer(rewriter(Chatting())), prompts=PROMPTS)
    assert torch.equal(found, sampled(name, prompts=["a red ring"] * 2))
    assert torch.equal(sampled(name, PromptEnhancer(lambda prompts: prompts), prompts=PROMPTS),
                       sampled(name, prompts=PROMPTS))  # fmt: skip


@pytest.mark.parametrize("name", hosts("prompt_enhancer", "janus", "emu3", "amused"))
def test_token_decoding_bridges_too(name: str) -> None:
    bridge: Any = tokens(name)
    size = {"height": 16, "width": 16, "num_inference_steps": 2} if name == "amused" else {}
    more: dict[str, Any] = {"output_type": "latent", "seed": 0, **size}
    found = bridge.generate(PROMPTS, using=[PromptEnhancer(rewriter(Chatting()))], **more)
    expected = bridge.generate(["a red ring"] * 2, **more)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@cache
def tokens(name: str) -> Any:
    if name != "amused":
        return vlm_of(name)
    import showtell
    from bridge_family import shared
    from test_bridges_amused import pipeline

    return showtell.load(shared(pipeline))


def writer() -> tuple[Any, Any]:
    tokenizer = policy.word_tokenizer([*PROMPTS, "asked : a red blue star ring"], TAGS)
    return policy.small_writer(tokenizer, width=32, layers=1), tokenizer


def taught() -> tuple[Any, Any]:
    """A rewriter that answers each prompt in one of two ways."""
    model, tokenizer = writer()
    pairs = [(asked(p), f"asked: a</think><answer>a {c} ring</answer>") for p in PROMPTS for c in ("red", "blue")]
    return policy.imitate(model, tokenizer, pairs, steps=80, batch_size=4, lr=5e-3), tokenizer


def test_imitation_is_learnt_and_greedy() -> None:
    model, tokenizer = taught()
    assert set(rewriter(model, tokenizer)(PROMPTS)) <= {"a red ring", "a blue ring"}


def grpo(*given: Any, **more: Any) -> None:
    group_relative(*given, asked, answer_of, **more)


def share(model: Any, tokenizer: Any) -> float:
    drawn = policy.write(model, tokenizer, [asked(p) for p in PROMPTS * 16], 1.0, 32, seed=3)
    return sum("blue" in text for text in policy.texts_of(tokenizer, drawn)) / 32


def test_groups_learn_what_is_rewarded_and_not_from_shuffled_rewards() -> None:
    seen: list[str] = []

    def reward(rewrites: list[str], prompts: list[str]) -> torch.Tensor:
        assert len(rewrites) == len(prompts) == 16 and prompts[0] == prompts[7] != ""
        assert set(prompts) <= set(PROMPTS), "the original prompts, whatever was written"
        seen.extend(rewrites)
        return torch.tensor([float(text == "a blue ring") for text in rewrites])

    model, tokenizer = taught()
    start = share(model, tokenizer)
    grpo(model, tokenizer, PROMPTS, reward, rounds=25, batch=2, lr=3e-3, beta=0.0)
    assert 0.2 < start < 0.8 and share(model, tokenizer) > 0.9 and len(seen) == 25 * 16
    model, _ = taught()
    grpo(model, tokenizer, PROMPTS, reward, rounds=25, batch=2, lr=3e-3, beta=0.0, shuffled=True)
    mixed = share(model, tokenizer)
    model, _ = taught()
    grpo(model, tokenizer, PROMPTS, reward, rounds=25, batch=2, lr=3e-3, beta=50.0)
    assert mixed < 0.9 and abs(share(model, tokenizer) - start) < 0.3, "a strong penalty keeps the supervised model"


def test_equal_rewards_change_nothing() -> None:
    model, tokenizer = taught()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grpo(model, tokenizer, PROMPTS, lambda texts, prompts: torch.ones(8), rounds=1, batch=1, updates=1, lr=1e-2)
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in model.state_dict().items())


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRIPLES": 4, "IMITATION": 2, "ROUNDS": 1, "BATCH": 1, "GROUP": 2}.items():
        monkeypatch.setattr(module, name, value)
    found = module.experiment(Laboratory(seeds=1, bases={"vlm": vlm_of("llava")}))
    assert list(found.scores) == ["prompt enhancer", "supervised", "original prompt", "shuffled rewards"]  # type: ignore[attr-defined]
    monkeypatch.setitem(language.__dict__, "load", lambda name: Chatting())
    assert run_example(module.EXAMPLE, monkeypatch, "sdxl")["image"].size == (32, 32)
