"""PopAlign: losses by hand, what is on both sides cancels, populations drawn evenly, and every host learns."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosts import _FAMILIES, hosts
from laboratory import Laboratory

import bridge_family
import showtell
import tiny
from showtell.measure import fairness
from showtell.papers.responsible import popalign as module
from showtell.papers.responsible.popalign import members, pairs, popalign, populations
from showtell.train.networks import with_denoiser
from showtell.train.noising import Noising
from showtell.train.preference import gains, paired_preference, preference_loss

HOSTS = ("sd", "sdxl", "pixart", "pixart-sigma", "sd3", "flux", "qwen_image", "cogview4")
PROMPTS = ["a red ring", "a dog on the table"]


def fresh(name: str) -> tuple[Any, dict[str, Any]]:
    """A bridge of its own to train on, and the keywords of `Noising`."""
    own = _FAMILIES[name].keywords if name in _FAMILIES else tiny.KEYWORDS[name]
    pipeline = bridge_family.fresh(_FAMILIES[name].maker) if name in _FAMILIES else tiny.make(name)
    bridge: Any = showtell.load(pipeline)
    bridge.adapter.denoiser.float()
    return bridge, {"height": 32, "width": 32, **own}


def latents(bridge: Any, options: dict[str, Any], count: int, seed: int = 0) -> torch.Tensor:
    shape = bridge.adapter.latent_shape(Noising(bridge, **options).run([""]))
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_objectives_by_hand() -> None:
    sigmoid = torch.sigmoid(torch.tensor([2.0, -1.0]))
    won, lost = torch.tensor([0.2, -0.1]), torch.zeros(2)
    assert paired_preference(won, lost, beta=20.0) == pytest.approx(float(-sigmoid.log().mean()))
    # The middle of 0.3 and 0.1 is 0.2: each side is 0.1 ahead of it.
    one = members(torch.tensor([0.3]), torch.tensor([0.1]), beta=10.0)
    assert one == pytest.approx(math.log(1 + math.exp(-1)))
    assert members(won * 0, won * 0) == pytest.approx(math.log(2)) == float(paired_preference(lost, lost))


def test_the_middle_is_not_differentiated() -> None:
    won, lost = (torch.tensor([x], requires_grad=True) for x in (0.3, 0.1))
    members(won, lost, beta=10.0).backward()
    # d/dg_w -log sigmoid(beta (g_w - m)) / 2 = -beta sigmoid(-beta (g_w - m)) / 2, as if m were a number.
    expected = 10.0 / (1 + math.exp(1)) / 2
    assert won.grad is not None and float(won.grad) == pytest.approx(-expected)
    assert lost.grad is not None and float(lost.grad) == pytest.approx(expected)


def test_a_model_gains_nothing_on_itself() -> None:
    bridge, options = fresh("sd")
    noising = Noising(bridge, **options)
    at = noising.noised(latents(bridge, options, 4), torch.Generator().manual_seed(1))
    text = noising.text(PROMPTS * 2)
    assert torch.equal(gains(noising, bridge.adapter, at, text), torch.zeros(4))
    other = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser))
    with torch.no_grad():
        other.denoiser.conv_out.bias += 0.5
    gained = gains(noising, other, at, text)
    target, run = noising.target(at), noising.run([""] * 4)
    with torch.no_grad():
        predictions = [adapter.predict(run, at.latents, at.times, text) for adapter in (other, bridge.adapter)]
    worse, own = ((p - target).square().mean((1, 2, 3)) for p in predictions)
    assert torch.allclose(gained, worse - own, atol=1e-5) and (gained != 0).all()


def test_what_is_on_both_sides_cancels() -> None:
    bridge, options = fresh("sd")
    denoiser = bridge.adapter.denoiser.requires_grad_(True)
    x = latents(bridge, options, 2)
    for objective in (members, paired_preference):
        loss = preference_loss(bridge, PROMPTS, objective, **options)
        same = {"winner": x, "loser": x, "row": torch.tensor([0, 1])}
        norms = []
        for batch in (same, {**same, "loser": latents(bridge, options, 2, seed=5)}):
            denoiser.zero_grad()
            value, _ = loss(denoiser, batch, torch.Generator().manual_seed(0))
            value.backward()
            assert float(value.detach()) == pytest.approx(math.log(2), abs=1e-4)
            norms.append(sum(float(p.grad.norm()) for p in denoiser.parameters() if p.grad is not None))
        assert norms[0] < 1e-2 * norms[1]


@pytest.mark.parametrize("name", hosts("popalign", *HOSTS))
def test_hosts_come_to_prefer_the_winners(name: str) -> None:
    bridge, options = fresh(name)
    before = copy.deepcopy(bridge.adapter.denoiser)
    sides = {"winner": latents(bridge, options, 4), "loser": latents(bridge, options, 4, 9) + 1.0,
             "row": torch.tensor([0, 0, 1, 1])}  # fmt: skip
    bridge.adapter.denoiser.requires_grad_(True)
    popalign(bridge, PROMPTS, sides, steps=10, batch_size=8, lr=1e-3, **options)
    noising = Noising(bridge, **options)
    text = noising.text([PROMPTS[i] for i in sides["row"]] * 8)
    apart = []
    for side in ("winner", "loser"):
        at = noising.noised(sides[side].repeat(8, 1, 1, 1), torch.Generator().manual_seed(4))
        with torch.no_grad():
            apart.append(float(gains(noising, with_denoiser(bridge.adapter, before), at, text).mean()))
    assert apart[0] > apart[1]
    assert not any(p.requires_grad for p in bridge.adapter.denoiser.parameters())


class Recorded:
    """Images are what they were made for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: list[str], seed: int, output_type: str) -> list[torch.Tensor]:
        assert output_type == "latent"
        self.asked += prompts
        return [torch.full((1, 1, 1), float("red" in p) + 2 * float("blue" in p)) + seed / 1e6 for p in prompts]

    def to_images(self, latents: torch.Tensor) -> list[int]:
        return [int(x) for x in latents]


def test_populations_are_even_checked_and_neutral() -> None:
    bridge = Recorded()

    def shows(images: list[int], who: str) -> list[bool]:
        """Of the red ones every second fails."""
        return [image == 1 and i % 2 == 0 if who == "red" else image == 2 for i, image in enumerate(images)]

    def named(prompt: str, who: str) -> str:
        return prompt.replace("a ", f"a {who} ")

    sides = populations(bridge, ["a ring", "a star"], ["red", "blue"], named, 8, shows, generic=["a cat"])
    row, winner, loser = sides["row"], sides["winner"].flatten().int(), sides["loser"].flatten().int()
    for prompt in (0, 1):
        kept = winner[row == prompt].tolist()
        assert kept.count(1) == kept.count(2) == 2 and loser[row == prompt].tolist() == [0] * 4
    assert winner[row == 2].tolist() == [0] * 8 and len({*sides["winner"][row == 2], *sides["loser"][row == 2]}) > 1
    assert bridge.asked.count("a red ring") == 4 and "a red cat" not in bridge.asked


def test_pairs_are_of_one_prompt_and_independent() -> None:
    row = torch.tensor([0] * 5 + [1] * 3)
    sides = {"winner": torch.arange(8.0), "loser": 100 + torch.arange(8.0), "row": row}
    batch = pairs(sides, 400)(0, 0)
    one, other = batch["winner"].astype(int), batch["loser"].astype(int) - 100
    assert (row[one] == row[other]).all() and (row[one].numpy() == batch["row"]).all()
    assert (one != other).mean() > 0.6 and len(set(zip(one, other, strict=True))) == 25 + 9


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SHAPES": ("circle", "ring"), "UNSEEN": ("star",), "EACH": 4, "SHOWN": 2, "STEPS": 2, "SKEWING": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(module, name, value)
    found = iter(["red", "blue"] * 10_000)

    def read(images: Any, judge: str = "first", fast: bool = False) -> list[Any]:
        """Random models paint nothing that would pass the check."""
        assert fast
        return [SimpleNamespace(objects=[SimpleNamespace(shape="ring", colour=next(found))]) for _ in images]

    monkeypatch.setattr(fairness, "read", read)
    from showtell.bridges.clip import ClipBridge
    from test_bridges_clip import make

    balance, shape, tone = module.experiment(Laboratory(2, bases={"clip": ClipBridge(*make("clip"))}))  # type: ignore[arg-type]
    assert balance.scores["popalign"].shape == (2, 3) and balance.control == "neutral winners"  # type: ignore[attr-defined]
    assert shape.scores["base"].tolist() == [[0.0, 1.0, 0.0]] * 2  # type: ignore[attr-defined]
    assert tone.scores["base"].shape == (2, 3)  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, _ = fresh("sd")
    bridge.adapter.steps = 2
    call = bridge.generate
    monkeypatch.setattr(bridge, "generate", lambda *args, **more: call(*args, **{"height": 32, "width": 32, **more}))
    monkeypatch.setitem(showtell.__dict__, "load", lambda name: bridge)
    space: dict[str, Any] = {}
    exec(module.EXAMPLE, space)
    assert space["image"].size == (32, 32) and len(space["sides"]["row"]) == 4
