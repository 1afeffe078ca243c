"""DiffusionGPT: parsing, tree, votes by hand, any language model and any generator."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from examples import Small
from examples import run_example as run
from hosts import DIT, MMDIT, UNET, bridge_of, hosts, keywords
from worlds import WorldLab, bright

from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.language import LanguageModel
from showtell.measure.prompts import PromptSet
from showtell.papers.prompt import diffusiongpt as module
from showtell.papers.prompt.diffusiongpt import DiffusionGPT, world_controller
from test_bridges_clip import make as make_clip


def axes(texts: list[str]) -> torch.Tensor:
    """Texts are similar as far as they share these words."""
    found = torch.tensor([[float(word in text) for word in ("ring", "star", "cat", "sepia")] for text in texts]) + 0.1
    return found / found.norm(dim=1, keepdim=True)


class Painter:
    def __init__(self, name: str) -> None:
        self.name = name

    def generate(self, prompts: list[str], seed: Any = 0, **more: Any) -> list[Any]:
        seeds = seed if isinstance(seed, list) else [seed] * len(prompts)
        return [(self.name, *pair) for pair in zip(prompts, seeds, strict=True)]


def agent(**more: Any) -> DiffusionGPT:
    made = DiffusionGPT(axes, **more)
    made.register("plain", Painter("plain"), ["general", "general"])
    made.register("old", Painter("old"), ["general", "sepia"], ["a cat, in sepia style", "a ring, in sepia style"])
    made.register("pets", Painter("pets"), ["cat", "general"])
    made.register("old pets", Painter("old pets"), ["cat", "sepia"])
    return made


@pytest.mark.parametrize(
    ("said", "kind", "content"),
    [
        ("a red ring", "prompt", "a red ring"),
        ("Please draw a red ring.", "instruction", "a red ring"),
        ("I want to see a red ring", "inspiration", "a red ring"),
        ("if you looked here, you would see a red ring", "hypothesis", "a red ring"),
    ],
)
def test_four_ways_of_asking(said: str, kind: str, content: str) -> None:
    found = agent().parse(said)
    assert (found.kind, found.content) == (kind, content)


def test_the_tree_is_searched_level_by_level() -> None:
    made = agent()
    assert made.build_tree() == {
        "general": {"general": ["plain"], "sepia": ["old"]},
        "cat": {"general": ["pets"], "sepia": ["old pets"]},
    }
    assert made.candidates("a cat in sepia style") == ["old pets"]
    assert made.candidates("a ring in sepia style") == ["old"]
    assert made.candidates("a ring") == ["plain"] and made.candidates("a cat") == ["pets"]
    made.register("new", Painter("new"), [])
    assert made.candidates("a ring") == ["plain", "new"], "a new model needs its tags only"
    with pytest.raises(ShowtellError, match="register"):
        DiffusionGPT(axes).build_tree()


def test_votes_by_hand() -> None:
    made = agent(similar=2, keep=2)
    prompts = ["a ring", "a ring ring", "a star"]
    table = {"plain": [0.9, 0.1, 0.0], "old": [0.8, 0.9, 0.0], "pets": [0.1, 0.95, 1.0], "old pets": [0.0, 0.0, 0.9]}
    scores = made.score_corpus(prompts, lambda images, texts: table[images[0][0]])
    assert scores.tolist() == list(table.values())
    # Similar: both rings. Votes: plain and old, then pets and old; so old 2, plain 1, pets 1, old pets 0.
    assert made.choose("a ring", ["plain", "old", "pets"]) == "old"
    assert made.choose("a ring", ["plain", "pets"]) == "pets", "one vote each; means 0.5 and 0.525"
    assert made.choose("a ring", ["old pets", "plain"]) == "plain"
    assert made.choose("a ring", ["old pets"]) == "old pets"
    assert made.choose("a star", ["plain", "pets"]) == "pets"


def test_routing_words_the_prompt_and_keeps_the_order() -> None:
    made = agent()
    assert made.route("please draw a ring in sepia style") == ("old", "a ring in sepia style")
    assert made.route("draw a ring as a sepia picture") == ("old", "a ring as a sepia picture, in sepia style")
    said = ["please draw a cat", "a ring", "I want to see a cat"]
    assert made.generate(said, seed=1) == [("pets", "a cat", 10_000), ("plain", "a ring", 10_001),
                                           ("pets", "a cat", 10_002)]  # fmt: skip
    assert made.generate("a ring") == [("plain", "a ring", 0)]


class Scripted(LanguageModel):
    """Answers as a larger model would, with words around the JSON."""

    answers = {
        "parse": {"kind": "instruction", "content": "a cat"},
        "tree": {"animals": {"any": ["pets", "nobody"]}},
        "pick": ["animals", "any", "no such branch"],
        "write": {"prompt": "a cat, best quality"},
    }

    def __init__(self) -> None:
        self.asked: list[str] = []

    def complete(self, conversations: Any, **options: Any) -> list[list[str]]:
        text = conversations[0][-1]["content"]
        self.asked.append(text.split()[1])
        return [["Sure: " + json.dumps(self.answers[self.asked[-1]])]]


def test_any_language_model_and_what_it_gets_wrong() -> None:
    lm = Scripted()
    made = agent(lm=lm)
    assert made.route("could I have a cat?") == ("pets", "a cat, best quality")
    assert lm.asked == ["parse", "tree", "pick", "pick", "write"]
    assert made.tree["animals"] == {"any": ["pets"]}, "models that are not there are left out"
    assert sorted(made.tree["general"]["general"]) == ["old", "old pets", "plain"], "and none is lost"
    with pytest.raises(ShowtellError, match="parse, tree"):
        world_controller().chat("hello")


@pytest.mark.parametrize("name", hosts("diffusiongpt", *UNET, *DIT, *MMDIT))
def test_any_generator_is_an_expert(name: str) -> None:
    made, bridge = DiffusionGPT(axes), bridge_of(name)
    made.register("it", bridge, ["general", "sepia"], ["a ring, in sepia style"])
    made.register("other", Painter("other"), ["general", "general"])
    call = {key: value for key, value in keywords(name).items() if key != "seed"}
    found, other = made.generate(["please draw a sepia ring", "a ring"], seed=2, **call)
    [expected] = bridge.generate(["a sepia ring, in sepia style"], seed=[20_000], **call)
    assert torch.equal(found, expected) and other == ("other", "a ring", 20_001)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 4, "STEPS": 1, "CORPUS": 3}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "DOMAINS", {k: module.DOMAINS[k] for k in ("sepia", "glyphs")})
    monkeypatch.setattr(PromptSet, "true_facts", lambda self, images, judge="first": bright(images))
    clip, lab = ClipBridge(*make_clip("clip")), WorldLab(seeds=1, bases={"clip": ClipBridge(*make_clip("clip"))})
    lab.n = 3
    found = module.experiment(lab)
    assert found.control == "shuffled tags and scores" and found.scores["routing"].shape == (1, 3)  # type: ignore[attr-defined]
    space = run(module.EXAMPLE, monkeypatch, {"clip": clip, "v1-5": Small("sd"), "xl": Small("sdxl")})
    assert space["image"].size == (32, 32)
    assert space["agent"].route("please draw a cat as a poster") == ("poster", "a cat as a poster")
