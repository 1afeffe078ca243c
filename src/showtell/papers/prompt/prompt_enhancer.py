"""PromptEnhancer: A Simple Approach to Enhance Text-to-Image Models via Chain-of-Thought Prompt Rewriting.
Wang, Xing, Cheng and others, 2025, arXiv 2509.04545

A language model thinks aloud about a prompt (what is asked, what is open), then rewrites it for a frozen generator. It
learns first from examples, then by GRPO: several rewrites of one prompt are drawn and painted, and what fits the
ORIGINAL prompt better, key point by key point, becomes likelier.

Faithful: <think> and <answer> with the released code's fallbacks; supervised triples that are filtered; groups of 8
painted with one seed; the mean over the key points that apply; advantages within the group; a clipped ratio with a
penalty for leaving the supervised model; one greedy rewrite in use. Deviations: the key points are those that the
language model can ask about (`KEY_POINTS`, named after the paper's groups), each a mean over its questions; a model
that answers questions scores them, where the paper trained a reward model on labelled failures. The triples are made
backwards, as the embedded grammar reads no awkward prompts: from captions, which are then said awkwardly, and kept
where the grammar reads the caption back. Scaled down: a 3-layer writer of the world's words, few rounds, 6 steps.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell import language
from showtell.bridges.base import Run, Technique
from showtell.language import LanguageModel
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, SIDES
from showtell.train import policy
from showtell.train.grpo import grpo
from showtell.world import Scene, sample
from showtell.world.language.awkward import awkward
from showtell.world.questions import Question

KEY_POINTS = {
    "subject": ("existence",), "quantity": ("count",), "colour": ("colour",), "size": ("size",),
    "texture": ("texture",), "state": ("state",), "attribute": ("attribute",), "action": ("motion",),
    "relation": ("relation", "related"), "background": ("background",), "style": ("style",), "light": ("light",),
    "text": ("word",), "viewpoint": ("camera",),
}  # fmt: skip
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ASK = """Rewrite a prompt for a text-to-image model so that the picture shows exactly what is asked. Keep subjects,
actions, counts, styles, layouts, relations, attributes and written text. Say what must not be there by what is there
instead. First think: what is asked, what is ambiguous, how to phrase it. Then answer as
<think>thoughts</think><answer>prompt</answer>.
Prompt: """

EXAMPLE = """
import showtell
from showtell import language
from showtell.papers.prompt.prompt_enhancer import PromptEnhancer, rewriter

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
rewrite = rewriter(language.load("Qwen/Qwen2.5-7B-Instruct"))      # or a model that `train` has trained
[image] = bridge.generate("a ring and a star, the second one blue", using=[PromptEnhancer(rewrite)], seed=0)
"""


def answer_of(said: str, prompt: str) -> str:
    """The rewrite in an answer: what stands in <answer>, else what stands outside of <think>, else the prompt."""
    found = re.search(r"<answer>(.*?)</answer>", said, re.DOTALL)
    text = found[1] if found else re.sub(r"<think>.*", "", said.split("</think>")[-1], flags=re.DOTALL)
    return re.sub("|".join(TAGS), "", text).strip() or prompt


class PromptEnhancer(Technique):
    """Rewrites prompts before they are encoded. rewrite: a function from prompts to prompts, such as of `rewriter`."""

    def __init__(self, rewrite: Callable[[list[str]], list[str]]) -> None:
        self.rewrite = rewrite

    def prompt(self, run: Run, prompts: list[str]) -> list[str]:
        return self.rewrite(prompts)


def rewriter(model: Any, tokenizer: Any = None) -> Callable[[list[str]], list[str]]:
    """One greedy rewrite each, by a language model that chats, or by a trained causal model and its tokenizer."""

    def rewrite(prompts: list[str]) -> list[str]:
        if isinstance(model, LanguageModel):
            said = [found[0] for found in model.complete([ASK + prompt for prompt in prompts])]
        else:
            said = policy.texts_of(tokenizer, policy.write(model, tokenizer, list(map(asked, prompts)), 0.0, 128))
        return [answer_of(text, prompt) for text, prompt in zip(said, prompts, strict=True)]

    return rewrite


def asked(prompt: str) -> str:
    """A prompt as a trained model is given it."""
    return f"{prompt} <think>"


def align_score(checks: Sequence[Sequence[Question]], right: Callable[[list[Any], list[str]], Sequence[str]],
                images: Sequence[Any]) -> Tensor:  # fmt: skip
    """AlignEvaluator: (n,) in [0, 1], the mean over a prompt's key points of the share of its questions answered right.

    checks: the ORIGINAL prompts' questions. right(images, questions) -> answers.
    """
    pairs = [(row, question) for row, questions in enumerate(checks) for question in questions]
    answers = right([images[row] for row, _ in pairs], [question.question for _, question in pairs])
    points: list[dict[str, list[float]]] = [{} for _ in checks]
    group = {kind: point for point, kinds in KEY_POINTS.items() for kind in kinds}
    for (row, question), said in zip(pairs, answers, strict=True):
        hit = said.strip().lower().rstrip(".") == question.answer.lower()
        points[row].setdefault(group.get(question.kind, question.kind), []).append(float(hit))
    return torch.tensor([np.mean([np.mean(p) for p in found.values()]) if found else 0.0 for found in points]).float()


def triples(lm: LanguageModel, scenes: Sequence[Scene], seed: int = 0) -> list[tuple[str, str]]:
    """(awkward prompt, thoughts and rewrite) of the scenes whose caption the language model reads back as it was."""
    found, pick = [], random.Random(seed)
    for scene in scenes:
        text = scene.caption()
        if lm.parse(text).caption() != text:
            continue
        thoughts = "; ".join(lm.split(text).concepts)
        said = f"asked: {thoughts}</think><answer>{text}</answer>"
        found.append((asked(awkward(scene, pick)), said))
    return found


TRIPLES, IMITATION, ROUNDS, BATCH, GROUP = 600, 400, 30, 4, 8


def experiment(lab: Lab) -> Comparison:
    bridge, vlm, test, lm = lab.base("unet"), lab.base("vlm"), lab.prompts("pairs"), language.load()
    two: dict[str, Any] = {"objects": 2, "distinct": ("shape", "colour"), "relation": SIDES, **PLAIN}
    scenes, pick = sample(TRIPLES + TRIPLES // 4, lab.seed, "train", **two), random.Random(lab.seed)
    hard = [awkward(scene, pick) for scene in test.scenes]
    plain = {awkward(scene, random.Random(i)): scene.caption() for i, scene in enumerate(scenes[TRIPLES:])}
    lessons = triples(lm, scenes[:TRIPLES], lab.seed)
    tokenizer = policy.word_tokenizer([*(" ".join(pair) for pair in lessons), *hard, *plain], TAGS)

    def reward(rewrites: list[str], prompts: list[str]) -> Tensor:
        images = bridge.generate(rewrites, seed=[1] * len(rewrites), num_inference_steps=6)
        return align_score([lm.ask(plain[prompt]) for prompt in prompts], vlm.answer, images)

    def supervised(seed: int) -> Any:
        return policy.imitate(policy.small_writer(tokenizer, seed=seed), tokenizer, lessons, IMITATION, seed=seed)

    def enhanced(seed: int, shuffled: bool) -> Any:
        # The rate is that of a far smaller model.
        sizes: dict[str, Any] = {"rounds": ROUNDS, "batch": BATCH, "group": GROUP, "lr": 2e-4}
        start = made("supervised", seed)
        return grpo(start, tokenizer, list(plain), reward, asked, answer_of, shuffled=shuffled, seed=seed, **sizes)

    def made(name: str, seed: int) -> Any:
        learn: dict[str, Callable[[int], Any]] = {
            "supervised": supervised,
            "enhanced": partial(enhanced, shuffled=False),
            "shuffled": partial(enhanced, shuffled=True),
        }
        model = policy.small_writer(tokenizer)
        model.load_state_dict(lab.trained(name, learn[name], seed), strict=False)
        return model

    @cache
    def images(name: str, seed: int) -> list[Any]:
        using = [PromptEnhancer(rewriter(made(name, seed), tokenizer))] if name else []
        return bridge.generate(hard, using=using, seed=seed)

    arms = {
        "prompt enhancer": partial(images, "enhanced"),
        "supervised": partial(images, "supervised"),
        "original prompt": partial(images, ""),
        "shuffled rewards": partial(images, "shuffled"),
    }
    expect = "prompt enhancer > supervised > original prompt"
    return lab.compare(arms, metric=test.true_facts, expect=expect, control="shuffled rewards")
