"""SaaS: where an instruction is cut, factors by hand, what is scaled by how much, what has no picture to weigh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import DIT, MMDIT, sampled
from laboratory import Laboratory

import showtell
import test_bridges_flux_kontext
from bridge_family import shared
from showtell.errors import ShowtellError
from showtell.papers.compose import saas
from showtell.papers.compose.saas import Louder, SaaS, exchanged, outweighed, sub_instructions
from showtell.train import narrow_edits
from showtell.train.narrow_edits import compounds, facts

INSTRUCTIONS = ["red ring, and blue star", "a dog"]
CALL = {**test_bridges_flux_kontext.TestFluxKontext.keywords, "num_inference_steps": 3, "output_type": "latent"}


def kontext() -> Any:
    return showtell.load(shared(test_bridges_flux_kontext.pipeline))


def edited(*using: Any, texts: list[str] = INSTRUCTIONS, **more: Any) -> torch.Tensor:
    images = test_bridges_flux_kontext.pictures(2)[: len(texts)]
    return torch.stack(kontext().edit(images, texts, using=list(using), seed=3, **{**CALL, **more}))


class Watched(SaaS):
    """Notes regions and factors of every step, and how attention to the instruction's parts and the rest changes."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.found: list[Any] = []
        self.change: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attention(self, run: Any, site: Any) -> None:
        before = site.probabilities("text", "image").clone()
        super().attention(run, site)
        after = site.probabilities("text", "image")
        if run.state(self).regions is not None:
            self.change.append((before, after))
        self.words = run.state(self).words

    def prediction(self, run: Any, *more: Any) -> None:
        super().prediction(run, *more)
        self.found.append((run.state(self).regions, run.state(self).factors))


def test_where_instructions_are_cut() -> None:
    text = "Make the bike rusty, and add sand; land on it and go."
    found = sub_instructions(text)
    assert [one.text for one in found] == ["Make the bike rusty", "add sand", "land on it", "go"]
    assert all(text[one.start : one.stop] == one.text for one in found)
    assert sub_instructions(" , and ") == []


def test_factors_by_hand() -> None:
    told = torch.full((1, 2, 16), 0.01)
    told[0, 0, 10:12], told[0, 0, 14:16] = 0.2, 0.2  # the lower right quarter of 4x4
    told[0, 1] = 0.0  # a sample with fewer parts than others
    shown = torch.full((1, 16), 0.1)
    shown[0, 15] = 0.5
    regions, factors = outweighed(told, shown, (4, 4))
    assert regions[0, 0, 15] and not regions[0, 0, 0] and not regions[0, 1].any()
    inside = regions[0, 0]
    assert factors[0, 0].item() == pytest.approx(float(shown[0, inside].sum() / told[0, 0, inside].sum()), rel=1e-4)
    assert factors[0, 1] == 0


@pytest.mark.host("saas", "flux_kontext")
def test_it_scales_words_where_the_picture_outweighs_them() -> None:
    plain, technique = edited(), Watched(window=(0.0, 1.0))
    changed = edited(technique)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    regions, factors = technique.found[0]
    per_step = len(technique.change) // 2
    assert len(technique.found) == 3 and per_step == 3, "all but the first step, all but the first quarter of layers"
    assert torch.allclose(technique.change[0][1].sum(-1), torch.ones(2, 2, 16), atol=1e-5)
    for part in range(2):
        inside, words = regions[0, part], technique.words[0, part].bool()
        before0, after0 = (one[0] for one in technique.change[0])  # (heads, 16, 48)
        rest = ~technique.words[0].bool().any(0)
        ratio = (after0[..., :16][..., words] / before0[..., :16][..., words]) / (
            after0[..., :16][..., rest] / before0[..., :16][..., rest]
        ).mean(-1, keepdim=True)
        assert torch.allclose(ratio[:, inside], factors[0, part].expand_as(ratio[:, inside]), rtol=1e-2)
        assert torch.allclose(ratio[:, ~inside], torch.ones_like(ratio[:, ~inside]), rtol=1e-2)
    assert not technique.found[0][0][1, 1].any() and technique.found[0][1][1, 1] == 1, "the second has one part"


def test_settings_that_change_nothing_and_samples_alone() -> None:
    plain = edited()
    assert torch.equal(edited(SaaS(window=(0.0, 0.0))), plain)
    assert torch.equal(edited(SaaS(window=(0.0, 0.3))), plain), "the first step only shows what the next one scales"
    assert torch.equal(edited(Louder(1.0)), plain) and not torch.equal(edited(Louder(2.0)), plain)
    together = edited(SaaS())
    assert not torch.equal(together, plain)
    alone = edited(SaaS(), texts=INSTRUCTIONS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-4)
    assert torch.allclose(edited(SaaS(parts=[["red ring", "blue star"], ["a dog"]])), together)
    unguided = edited(SaaS(), true_cfg_scale=1.0)
    assert not torch.equal(unguided, edited(true_cfg_scale=1.0))


def test_the_control_exchanges_regions_of_one_sample() -> None:
    told = torch.zeros(2, 3, 16)
    told[0, 0, :4], told[0, 1, 12:], told[1, 0, :4] = 0.2, 0.3, 0.2
    own, factors = outweighed(told, torch.full((2, 16), 0.1), (4, 4))
    regions, same = exchanged(told, torch.full((2, 16), 0.1), (4, 4))
    assert torch.equal(regions[0, :2], own[0, :2].flip(0)) and torch.equal(regions[1], own[1])
    assert torch.equal(factors, same)


NONE = [pytest.param(n, marks=pytest.mark.host("saas", n, "no picture among its tokens")) for n in (*DIT, *MMDIT)]


@pytest.mark.parametrize("name", NONE)
def test_models_without_a_picture_among_their_tokens(name: str) -> None:
    with pytest.raises(ShowtellError, match="such as FLUX"):
        sampled(name, SaaS(), num_inference_steps=1)


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="above 0"):
        SaaS(scale=0)
    with pytest.raises(ShowtellError, match="parts: got 1"):
        edited(SaaS(parts=[["red ring"]]))
    with pytest.raises(ShowtellError, match="edit a picture"):
        kontext().generate("a ring", using=[SaaS()], **CALL)


def test_compound_instructions() -> None:
    found = compounds(40, seed=1)
    assert found == compounds(40, seed=1) and all(len(one.asked) == len(one.parts) == 2 for one in found)
    for one in found:
        before, after = facts(one.before), facts(one.after)
        assert all(before[name] != value == after[name] for name, value in one.asked.items())
        assert all(before[name] == after[name] for name in before.keys() - one.asked.keys())
        assert [span.text for span in sub_instructions(one.instruction)] == list(one.parts)
    assert {len(one.parts) for one in compounds(40, sizes=(1, 3))} == {1, 3}
    assert {one.before.to_json() for one in found}.isdisjoint(
        {one.before.to_json() for one in compounds(40, 1, "test")}
    )


def test_the_scores() -> None:
    asked = compounds(3, seed=2, split="validation")
    exact, untouched = (narrow_edits.pictures([getattr(one, side) for one in asked]) for side in ("after", "before"))
    assert saas.done(untouched, asked).mean() < 0.2 and saas.kept(untouched, asked).mean() > 0.6
    assert saas.done(exact, asked).mean() > 0.6 and saas.kept(exact, asked).mean() > 0.6


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PAIRS": 6, "STEPS": 2, "BATCH": 4, "WIDTH": 32, "SAMPLING": 1, "FACTORS": (2.0, 4.0)}.items():
        monkeypatch.setattr(saas, name, value)
    done, kept = saas.experiment(Laboratory(seeds=1))
    assert list(done.scores) == list(kept.scores) and next(iter(done.scores)) == "saas"
    bridge: Any = kontext()
    small = {key: value for key, value in CALL.items() if key != "output_type"}
    call, edit = bridge.generate, bridge.edit
    monkeypatch.setattr(bridge, "generate", lambda *a, **more: call(*a, **{**small, **more}))
    monkeypatch.setattr(bridge, "edit", lambda *a, **more: edit(*a, **{**small, **more}))
    monkeypatch.setitem(showtell.__dict__, "load", lambda *a, **more: bridge)
    variables: dict[str, Any] = {}
    exec(saas.EXAMPLE, variables)
    assert variables["edited"][0].size == (32, 32)
