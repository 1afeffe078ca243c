"""MCCD: agents that are checked and revised, Gaussians and weights by hand, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import LEFT, PROMPTS, RIGHT, UNET, hosts, sampled, words_of
from laboratory import Laboratory, run_example

import test_bridges_vlm
from showtell.bridges.vlm import VisionLanguageBridge
from showtell.errors import ShowtellError
from showtell.language.results import Layout, Placed
from showtell.language.rules import Rules
from showtell.papers.compose import mccd as paper
from showtell.papers.compose.mccd import AGENTS, Agents, Enhance, mccd, parse, parts, report, rules
from showtell.steer.boxes import bell

LAYOUTS = [
    Layout(PROMPTS[0], (Placed("red ring", "a red ring", LEFT, 0), Placed("blue star", "a blue star", RIGHT, 1))),
    Layout(PROMPTS[1], (Placed("dog", "a dog", LEFT, 0),), "a kitchen"),
]


class Watched(Enhance):
    """Keeps what the last call did to the scores."""

    def attention(self, run: Any, site: Any) -> None:
        self.given = {*getattr(self, "given", ()), run.given}
        before = site.logits("text", "image")
        super().attention(run, site)
        self.added, self.place = (site.logits("text", "image") - before)[..., site.text], site.place


@pytest.mark.parametrize("name", hosts("mccd", *UNET))
def test_it_attaches(name: str) -> None:
    plain, changed = sampled(name), sampled(name, *mccd(LAYOUTS))
    assert torch.isfinite(changed).all() and not torch.equal(changed[0], plain[0])
    assert torch.equal(sampled(name, *mccd(LAYOUTS, ratio=0.0, amount=0.0)), plain)
    assert torch.allclose(sampled(name, *mccd(LAYOUTS[:1]), prompts=PROMPTS[:1])[0], changed[0], atol=1e-4)
    assert not torch.equal(sampled(name, *mccd(LAYOUTS, amount=0.0)), plain)
    blend, technique = mccd(LAYOUTS)[0], Watched(LAYOUTS)
    sampled(name, blend, technique, guidance_scale=1.0)
    assert technique.given == {None}, "in the parts' own prompts other words stand at these places"
    words = words_of(name, PROMPTS[0])
    ring = list(words["red ring"])
    grid = technique.place.grid
    under = torch.nn.functional.adaptive_avg_pool2d(bell(LEFT, floor=paper.FLOOR)[None], grid)[0].flatten()
    assert torch.allclose(technique.added[0, 0][:, ring], under[:, None].expand(-1, len(ring)), atol=1e-4)
    left_of = list(words["left of"])
    assert left_of and technique.added[0, :, :, left_of].abs().max() < 1e-5


def test_weights_by_hand() -> None:
    regions = parts(LAYOUTS[0], ratio=0.6)
    assert [one.prompt for one in regions] == [PROMPTS[0], "a red ring", "a blue star"]
    assert parts(LAYOUTS[1])[0].prompt == "a kitchen" and parts(Layout("", ())) == []
    shares = torch.stack([one.where for one in regions])  # type: ignore[misc]
    assert torch.allclose(shares.sum(0), torch.full((64, 64), 0.6)) and (shares >= 0).all()
    assert shares[1, 32, 16] > 0.4 and shares[2, 32, 48] > 0.4


def test_counted_things_are_all_enhanced() -> None:
    rings = tuple(Placed("two red rings", "a red ring", box, 0) for box in (LEFT, RIGHT))
    [named] = Enhance([Layout("two red rings", rings)]).named
    assert list(named) == ["two red rings"]
    assert torch.equal(named["two red rings"], torch.maximum(*(bell(box, floor=paper.FLOOR) for box in (LEFT, RIGHT))))


def test_the_agents_parse_a_prompt() -> None:
    layout = parse("two red rings left of a blue star, on a meadow background")
    assert [one.prompt for one in layout.placed] == ["a red ring", "a red ring", "a blue star"]
    assert layout.background == "on a meadow background" and all(0 <= side <= 1 for box in layout.boxes for side in box)
    answers = Agents()("a red ring left of a blue star")
    assert list(answers) == list(AGENTS) and answers["places"] == ["a red ring left of a blue star"]
    assert report(answers) == []


def faulty(repair: bool = True) -> tuple[Rules, list[str]]:
    """Rules whose layout lacks a box until they are told so; and who was asked."""
    asked: list[str] = []
    known = rules().functions

    def noted(name: str, function: Any) -> Any:
        def answer(**given: Any) -> Any:
            asked.append(name)
            found = function(**given)
            return found[:1] if name == "layout" and not (repair and "1 answers for 2" in given["feedback"]) else found

        return answer

    return Rules({name: noted(name, function) for name, function in known.items()}), asked


def test_a_fault_is_revised_back_and_forth() -> None:
    lm, asked = faulty()
    assert len(parse("a red ring left of a blue star", lm).placed) == 2
    after = asked[asked.index("evaluate") + 1 :]
    assert after == ["embellishment", "layout", "embellishment"], "back to the one at fault, and forward again"
    for rounds, repair in ((0, True), (2, False)):
        with pytest.raises(ShowtellError, match="layout: 1 answers for 2 things"):
            parse("a red ring left of a blue star", faulty(repair)[0], rounds=rounds)


def test_what_a_program_finds() -> None:
    good = {"things": ["a", "b"], "layout": [LEFT, RIGHT], "embellishment": ["a", "b"]}
    assert report(good) == [] and report({**good, "layout": []}) == [("layout", "gave no answer")]
    assert report({**good, "layout": [LEFT, (0.5, 0.0, 0.4, 1.2)]})[0][0] == "layout"
    assert report({**good, "embellishment": ["a"]}) == [("embellishment", "1 answers for 2 things")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.host("mccd", family, "its agents read no picture: a language model plays them")
        )
        for name, family in (("llava", "llava"), ("qwen2_vl", "qwen2_vl"), ("blip2-opt", "blip2"))
    ],
)
def test_agents_are_language_models(name: str) -> None:
    with pytest.raises(ShowtellError, match="VisionLanguageBridge is no language model: use"):
        parse("a red ring", VisionLanguageBridge(*test_bridges_vlm.MAKERS[name]()))


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="next: 'painter' is no agent"):
        parse("a ring", Rules({**rules().functions, "next": lambda **given: ["painter"]}))
    with pytest.raises(ShowtellError, match="regions: got 1"):
        sampled("sd", *mccd(LAYOUTS[:1]))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    complete, relations = paper.experiment(Laboratory(steps=1))
    assert list(complete.scores) == list(relations.scores) and next(iter(complete.scores)) == "mccd"
    assert run_example(paper.EXAMPLE, monkeypatch, "sdxl", num_inference_steps=1)["image"].size == (32, 32)
