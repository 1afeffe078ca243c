"""DiffusionGPT: LLM-Driven Text-to-Image Generation System. Qin, Wu, Chen, Ren, Li, Wu, Xiao, Wang, Wen, 2024,
arXiv 2401.10061

A language model in front of many expert generators: it takes out of what a user says what is to be drawn, walks down a
tree of models, chooses among those that remain by how well they once drew similar prompts, and words the prompt in the
way of the chosen model. Nothing is trained.

Faithful: four kinds of input; a tree of subjects, then styles, built from the models' tags and searched breadth first;
scores of every model on a corpus by a reward model; the 5 most similar prompts, the 5 best models of each, those that
are candidates too, most votes first, ties by mean score; rewriting by the model's own example prompts. Ours: where none
of the voted models is a candidate, the candidates are ranked by mean score over the similar prompts.
Scaled down: `world_controller` answers the four requests by rules, since the embedded grammar does not chat; five LoRA
experts of one small base and the base itself, so 2 models a prompt instead of 5; a corpus of 60 prompts instead of
10,000, scored by CLIP. The generalist and the random expert draw the content that was found, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from showtell import language
from showtell.errors import ShowtellError
from showtell.language.requests import by_tags, named, wanted, with_ending
from showtell.language.rules import Rules, tasked
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.likeness import clip_score
from showtell.measure.prompts import PLAIN, together
from showtell.steer.selection import routed
from showtell.train.lora import Adapted, add_lora, load_lora, train_lora
from showtell.train.samples import drawn
from showtell.world import sample

REQUESTS = {
    "parse": "A user wants a picture and says so by a prompt, an instruction, an inspiration (a wish) or a hypothesis "
    "(if ... then). Say which kind it is and what is to be drawn, without the rest.",
    "tree": "Sort these models, given with their tags, by what they draw, then by how: {subject: {style: [models]}}.",
    "pick": "Which of these branches of a tree of models fit the content? Give one or several.",
    "write": "Word this content for a text-to-image model in the way of its example prompts. Leave nothing out.",
}
EXAMPLE = """
import showtell
from showtell.measure.likeness import clip_score
from showtell.papers.prompt.diffusiongpt import DiffusionGPT

clip = showtell.load("openai/clip-vit-base-patch32")
agent = DiffusionGPT(lambda texts: clip.embed(texts=texts))        # lm="openai:gpt-4o-mini" for any input
agent.register("photo", showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5"), ["general", "photo"])
agent.register("poster", showtell.load("stabilityai/stable-diffusion-xl-base-1.0"), ["general", "poster"])
agent.score_corpus(["a red ring", "a cat"], lambda images, texts: clip_score(clip, images, texts))
print(agent.route("please draw a cat as a poster"))                # ('poster', 'a cat as a poster')
[image] = agent.generate("please draw a cat as a poster", seed=0)
"""
Tree = dict[str, dict[str, list[str]]]
"""subject -> style -> models."""


class Parsed(BaseModel):
    """kind: "prompt", "instruction", "inspiration" or "hypothesis". content: what is to be drawn."""

    kind: str
    content: str


class Worded(BaseModel):
    prompt: str


@dataclass
class Expert:
    """model: anything with a bridge's `generate`. tags: what it draws, how. examples: prompts in its way."""

    model: Any
    tags: list[str]
    examples: list[str]


class DiffusionGPT:
    """embed: texts -> unit vectors (n, d), by which prompts are similar. lm: of `showtell.language.load`; None is the
    rules of the embedded world. similar, keep: prompts of the corpus, and models of each, that vote.
    """

    def __init__(
        self, embed: Callable[[list[str]], torch.Tensor], lm: Any = None, similar: int = 5, keep: int = 5
    ) -> None:
        self.lm = world_controller() if lm is None else language.load(lm)
        self.embed, self.similar, self.keep = embed, similar, keep
        self.experts: dict[str, Expert] = {}
        self.tree: Tree = {}
        self.corpus: tuple[torch.Tensor, np.ndarray] | None = None
        """Vectors of the corpus (prompts, d), scores (models, prompts)."""

    def register(self, name: str, model: Any, tags: Sequence[str], examples: Sequence[str] = ()) -> None:
        """Adds a model; the tree and the scores are then to be made again."""
        self.experts[name] = Expert(model, list(tags), list(examples))
        self.tree, self.corpus = {}, None

    def build_tree(self) -> Tree:
        """Models that the language model leaves out are general ones."""
        if not self.experts:
            raise ShowtellError("no models to choose from; register some")
        found = self._ask("tree", Tree, models={name: one.tags for name, one in self.experts.items()})
        self.tree = {
            subject: {style: [name for name in names if name in self.experts] for style, names in styles.items()}
            for subject, styles in found.items()
        }
        placed = {name for styles in found.values() for names in styles.values() for name in names}
        for name in self.experts.keys() - placed:
            self.tree.setdefault("general", {}).setdefault("general", []).append(name)
        return self.tree

    def score_corpus(
        self, prompts: Sequence[str], reward: Callable[[list[Any], list[str]], Any], seed: int = 0, **call: Any
    ) -> np.ndarray:
        """The advantage database, (models, prompts): the reward of every model's image of every prompt."""
        texts = list(prompts)
        made = [one.model.generate(texts, seed=seed, **call) for one in self.experts.values()]
        scores = np.stack([np.asarray(reward(images, texts), dtype=float) for images in made])
        self.corpus = self.embed(texts), scores
        return scores

    def parse(self, text: str) -> Parsed:
        return self._ask("parse", Parsed, text=text)

    def candidates(self, content: str) -> list[str]:
        """Breadth first: the branches that fit at each level; everything where the language model names none."""

        def fitting(branches: Sequence[str]) -> list[str]:
            picked = self._ask("pick", list[str], content=content, branches=list(branches))
            return [one for one in branches if one in picked] or list(branches)

        tree = self.tree or self.build_tree()
        level = [(subject, style) for subject in fitting(list(tree)) for style in tree[subject]]
        styles = fitting(list(dict.fromkeys(style for _, style in level)))
        return list(dict.fromkeys(name for subject, style in level if style in styles for name in tree[subject][style]))

    def choose(self, content: str, candidates: Sequence[str]) -> str:
        """The candidate with most votes of similar prompts, of equal ones that with the best mean score there."""
        if self.corpus is None or len(candidates) == 1:
            return candidates[0]
        vectors, scores = self.corpus
        near = (vectors @ self.embed([content])[0]).argsort(descending=True)[: self.similar].tolist()
        names, best = list(self.experts), np.argsort(-scores[:, near], axis=0, kind="stable")[: self.keep]
        votes = Counter(names[i] for i in best.ravel())
        mean = dict(zip(names, scores[:, near].mean(1), strict=True))
        return max(candidates, key=lambda name: (votes[name], mean[name]))

    def route(self, text: str) -> tuple[str, str]:
        """(which model, its prompt) for what a user says."""
        content = self.parse(text).content
        name = self.choose(content, self.candidates(content))
        return name, self._ask("write", Worded, content=content, examples=self.experts[name].examples).prompt

    def generate(self, texts: str | list[str], *, seed: int = 0, **more: Any) -> list[Any]:
        """An image for each text; seed, more: as for `showtell.steer.selection.routed`."""
        chosen = [self.route(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return routed({name: one.model for name, one in self.experts.items()}, chosen, seed, **more)

    def _ask(self, task: str, form: Any, **given: Any) -> Any:
        return self.lm.structured(tasked(task, REQUESTS[task], **given), form)


def world_controller() -> Rules:
    """Answers the four requests by rules: a frame of words around the content, tags that are (subject, style), branches
    that are named in the content, and the ending that all examples share."""
    return Rules({
        "parse": lambda text: dict(zip(("kind", "content"), wanted(text), strict=True)),
        "tree": lambda models: by_tags(models),
        "pick": lambda content, branches: named(content, branches) or [one for one in branches if one == "general"],
        "write": lambda content, examples: {"prompt": with_ending(content, examples)},
    })  # fmt: skip


STYLED = ("sepia", "watercolour", "night")
DOMAINS: dict[str, tuple[list[str], dict[str, Any]]] = {
    **{style: (["general", style], {**PLAIN, "objects": (1, 2), "style": style}) for style in STYLED},
    "glyphs": (["word", "general"], {**PLAIN, "objects": (1, 2), "word": True}),
    "crowds": (["general", "general"], {**PLAIN, "objects": (3, 4)}),
}  # name -> tags, and what the scenes are that it is trained on
SAID = ("{}", "please draw {}", "I want to see {}", "if you looked here, you would see {}")
SCENES, STEPS, CORPUS = 256, 150, 60


def experiment(lab: Lab) -> Comparison:
    bridge, clip, names = lab.base("unet", fresh=True), lab.base("clip"), ("styles", "words", "objects-3-4")
    test = together([lab.prompts(name, max(1, lab.n // 3)) for name in names])
    said = [SAID[i % len(SAID)].format(text) for i, text in enumerate(test.texts)]
    corpus = [text for name in names for text in lab.validation(name, max(1, CORPUS // 3)).texts]

    def expert(name: str) -> dict[str, torch.Tensor]:
        scenes = sample(SCENES, lab.seed, "train", **DOMAINS[name][1])
        return train_lora(bridge, name, drawn(scenes), [scene.caption() for scene in scenes], STEPS)

    for name in DOMAINS:
        add_lora(bridge, name)
        load_lora(bridge, lab.trained(f"expert {name}", partial(expert, name), steps=STEPS))

    @cache
    def agent(kind: str) -> DiffusionGPT:
        made = DiffusionGPT(lambda texts: clip.embed(texts=texts), keep=2)
        tags = [["general", "general"], *(tags for tags, _ in DOMAINS.values())]
        if kind == "shuffled":
            random.Random(lab.seed).shuffle(tags)
        for name, own in zip(("generalist", *DOMAINS), tags, strict=True):
            example = [f"a red ring, in {name} style"] if name in STYLED and kind != "shuffled" else []
            made.register(name, Adapted(bridge, None if name == "generalist" else name), own, example)
        if kind == "whole":
            made.score_corpus(corpus, partial(clip_score, clip), num_inference_steps=min(10, bridge.adapter.steps))
        elif kind == "shuffled" and (known := agent("whole").corpus):
            made.corpus = known[0], np.random.default_rng(lab.seed).permutation(known[1])
        return made

    def by_agent(seed: int, kind: str = "whole") -> list[Any]:
        return agent(kind).generate(said, seed=seed)

    def unrouted(names: Sequence[str], seed: int) -> list[Any]:
        """Any of these models for each content, from the noise that the agent would give it."""
        pick, contents = random.Random(seed), [agent("whole").parse(text).content for text in said]
        models = {name: one.model for name, one in agent("whole").experts.items()}
        return routed(models, [(pick.choice(names), content) for content in contents], seed)

    arms: dict[str, Callable[[int], Any]] = {
        "routing": by_agent,
        "one generalist": partial(unrouted, ("generalist",)),
        "random expert": partial(unrouted, ("generalist", *DOMAINS)),
        "tags only": partial(by_agent, kind="tags only"),
        "shuffled tags and scores": partial(by_agent, kind="shuffled"),
    }
    expect = "routing > one generalist, one generalist > random expert"
    return lab.compare(arms, metric=test.true_facts, expect=expect, control="shuffled tags and scores")
