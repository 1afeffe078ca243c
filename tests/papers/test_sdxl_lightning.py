"""SDXL-Lightning: jumps and levels by hand, what the discriminator sees, stages that train, every host."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hosts import hosts
from laboratory import Laboratory
from test_popalign import PROMPTS, fresh, latents

import showtell
import tiny
from showtell.papers.accelerate import sdxl_lightning as module
from showtell.papers.accelerate.sdxl_lightning import lightning, phase
from showtell.train.distillation import (
    Discriminator,
    discriminator_loss,
    few_steps,
    generator_loss,
    halfway,
    jump,
    levels,
    renoised,
)
from showtell.train.networks import with_denoiser
from showtell.train.noising import Noising
from steering import ddim

HOSTS = ("sd", "sdxl", "pixart", "pixart-sigma", "sd3", "flux")


def test_losses_by_hand() -> None:
    one = torch.tensor([1.0])
    assert generator_loss(one) == pytest.approx(math.log(1 + math.exp(-1)))
    assert discriminator_loss(one, one) == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1)))
    assert discriminator_loss(10 * one, -10 * one) < 1e-3 < discriminator_loss(-one, one)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_levels_of_fewer_steps_lie_among_those_of_more(name: str) -> None:
    bridge, options = fresh(name)
    noising = Noising(bridge, **options)
    many, few = levels(noising, 8), levels(noising, 2)
    assert torch.allclose(many.sigma[::4], few.sigma) and torch.allclose(many.times[::4].float(), few.times.float())
    assert few.sigma[0] == 0 and few.alpha[0] == 1 and (many.sigma.diff() > 0).all()
    assert few.sigma[-1] > 0.99


class Exact:
    """A denoiser that knows the clean latents and the noise."""

    def __init__(self, noising: Noising, clean: torch.Tensor, noise: torch.Tensor) -> None:
        self.answer = noise - clean if noising.flow else noise

    def predict(self, run: Any, latents: Any, times: Any, text: Any) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_jump_leads_along_the_path(name: str) -> None:
    """Told the truth, any number of steps from any level leads to the same noise and clean latents at the other."""
    bridge, options = fresh(name)
    noising = Noising(bridge, **options)
    clean, noise = latents(bridge, options, 2), latents(bridge, options, 2, 1)
    adapter, text, grid = Exact(noising, clean, noise), noising.text(PROMPTS), levels(noising, 8)
    at = grid.at(torch.tensor([8, 6]), clean)
    here = replace(at, latents=at.alpha * clean + at.sigma * noise)
    for other in ([7, 5], [4, 1], [0, 0]):
        there = grid.at(torch.tensor(other), clean)
        found = jump(noising, adapter, here, there, text)
        assert torch.allclose(found, there.alpha * clean + there.sigma * noise, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_jumps_are_the_sampler_s_steps(name: str) -> None:
    """From pure noise down the levels the bridge's own few-step call comes out."""
    bridge, options = fresh(name)
    noising = Noising(bridge, **options)
    start = latents(bridge, options, 2)
    text, grid = noising.text(PROMPTS), levels(noising, 4)
    x = start
    with torch.no_grad():
        for level in (4, 3, 2, 1):
            here = grid.at(torch.tensor([level] * 2), x)
            x = jump(noising, bridge.adapter, here, grid.at(torch.tensor([level - 1] * 2), x), text)
    call = few_steps(bridge, 4)
    got = bridge.generate(PROMPTS, latents=start, output_type="latent", **options, **call)
    assert (torch.stack(got) - x).abs().max() < 1e-3 * x.abs().max()


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_renoising_gives_the_noisier_level(name: str) -> None:
    """Latents of a level noised further have that level's share of clean and its deviation; cleaner levels are left."""
    bridge, options = fresh(name)
    noising, n = Noising(bridge, **options), 4000
    grid = levels(noising, 4)
    noise = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    more = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    clean = torch.full((n, 1, 1, 1), 3.0)
    at = grid.at(torch.full((n,), 1), clean)
    at = replace(at, latents=at.alpha * clean + at.sigma * noise)
    times = torch.full((n,), 750)
    after = renoised(at, noising, more, times)
    alpha, sigma = (0.25, 0.75) if noising.flow else (float(x[0]) for x in noising.level(times))
    assert float(after.alpha[0]) == pytest.approx(alpha) and float(after.sigma[0]) == pytest.approx(sigma)
    assert float(after.latents.mean()) == pytest.approx(3 * alpha, abs=0.05)
    assert float(after.latents.std()) == pytest.approx(sigma, abs=0.03)
    less = renoised(at, noising, more, torch.full((n,), 10))
    assert torch.equal(less.latents, at.latents) and torch.equal(less.times, at.times)


def test_the_first_half_alone_is_run() -> None:
    bridge, options = fresh("sd")
    noising = Noising(bridge, **options)
    at, text, seen = levels(noising, 4).at(torch.tensor([2, 3]), latents(bridge, options, 2)), noising.text(PROMPTS), []
    unet = bridge.adapter.denoiser
    handles = [unet.mid_block.register_forward_hook(lambda m, a, out: seen.append(out))]
    handles += [unet.up_blocks[0].register_forward_hook(lambda m, a, out: pytest.fail("the decoder is not run"))]
    found = halfway(noising, bridge.adapter, at, text)
    for handle in handles:
        handle.remove()
    assert torch.equal(found, seen[0]) and found.shape[:2] == (2, 16)
    assert bridge.adapter.predict(noising.run([""] * 2), at.latents, at.times, text).shape == at.latents.shape


@pytest.mark.parametrize("name", ["sd", "pixart", "sd3"])
def test_the_discriminator_sees_the_start_only_if_it_is_conditional(name: str) -> None:
    bridge, options = fresh(name)
    noising = Noising(bridge, **options)
    x, text, grid = latents(bridge, options, 2), noising.text(PROMPTS), levels(noising, 4)
    there, here, other = (grid.at(torch.tensor([i, i]), x + i) for i in (1, 2, 3))
    for conditional in (True, False):
        judge = Discriminator(noising, text, x, conditional)
        told = judge(there, here, text)
        assert told.shape == (2,) and (not torch.equal(told, judge(there, other, text))) == conditional
        assert not torch.equal(told, judge(other, here, text))
        told.sum().backward()
        moved = [n for n, p in judge.backbone.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert moved, "its features learn too"
        assert all(p.grad is None for p in bridge.adapter.denoiser.parameters())
    random = Discriminator(noising, text, x, True, frozen=True)
    assert not any(p.requires_grad for p in random.backbone.parameters()) and random.head[0].weight.requires_grad


def test_the_squared_error_teaches_the_jump() -> None:
    """After training, a student's step is nearer to where two of the teacher's lead."""
    bridge, options = fresh("sd")
    noising, data = Noising(bridge, **options), latents(bridge, options, 8)
    teacher = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser))
    text, grid = noising.text([PROMPTS[0]] * 8), levels(noising, 4)

    def apart() -> float:
        x = latents(bridge, options, 8, seed=7)
        with torch.no_grad():
            here, end = (grid.at(torch.tensor([i] * 8), x) for i in (4, 2))
            between = grid.at(torch.tensor([3] * 8), x)
            halfway_there = replace(between, latents=jump(noising, teacher, here, between, text))
            wanted = jump(noising, teacher, halfway_there, end, text)
            return float((jump(noising, bridge.adapter, here, end, text) - wanted).square().mean())

    before = apart()
    phase(bridge, teacher, data, [PROMPTS[0]] * 8, (4, 2), 20, adversary=None, lr=2e-4, batch_size=8, **options)
    assert apart() < 0.7 * before


@pytest.mark.parametrize("name", hosts("sdxl_lightning", *HOSTS))
def test_hosts_train_through_all_stages(name: str) -> None:
    bridge, options = fresh(name)
    before = copy.deepcopy(bridge.adapter.denoiser.state_dict())
    data = latents(bridge, options, 4)
    lightning(bridge, data, PROMPTS * 2, 1, [(4, 2), (2, 1)], rank=None, batch_size=2, lr=1e-4, **options)
    after = bridge.adapter.denoiser.state_dict()
    assert after.keys() == before.keys() and any(not torch.equal(after[key], before[key]) for key in after)
    kind = "sample" if Noising(bridge, **options).kind == "epsilon" else None
    for steps, more in ((2, None), (1, kind)):
        call = few_steps(bridge, steps, more)
        [made] = bridge.generate(PROMPTS[:1], output_type="latent", seed=0, **options, **call)
        assert made.isfinite().all()


def test_a_lora_is_trained_and_merged() -> None:
    bridge, options = fresh("sd")
    before = copy.deepcopy(bridge.adapter.denoiser.state_dict())
    teacher = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser))
    data = latents(bridge, options, 4)
    phase(bridge, teacher, data, PROMPTS * 2, (4, 2), 2, rank=2, batch_size=2, lr=1e-2, **options)
    after = bridge.adapter.denoiser.state_dict()
    assert after.keys() == before.keys(), "nothing of the LoRA is left"
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed and all(".to_" in key for key in changed)


def test_the_model_of_one_step_answers_with_the_clean_latents() -> None:
    bridge, options = fresh("sd")
    start = latents(bridge, options, 1)
    call = few_steps(bridge, 1, "sample")
    got = bridge.generate(PROMPTS[:1], latents=start, output_type="latent", **options, **call)[0]
    with torch.no_grad():
        at = levels(Noising(bridge, **options), 1).at(torch.tensor([1]), start)
        said = bridge.adapter.predict(Noising(bridge, **options).run([""]), start, at.times, bridge.encode(PROMPTS[:1]))
    assert torch.allclose(got, said[0], atol=1e-4)
    assert ddim().config.prediction_type == "epsilon"


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"UPDATES": 1, "IMAGES": 4, "TEACHER": 16}.items():
        monkeypatch.setattr(module, name, value)
    lab: Any = Laboratory(2)
    lab.seeds = [0]
    found = module.experiment(lab)
    assert [one.scores["lightning"].shape for one in found] == [(1, 2)] * 4  # type: ignore[attr-defined]
    assert (found[0].scores["teacher"] <= 1).all() and (found[3].scores["end alone"] < 0).all()  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge: Any = showtell.load(tiny.make("sdxl"))
    bridge.adapter.steps = 2
    call = bridge.generate
    monkeypatch.setattr(bridge, "generate", lambda *args, **more: call(*args, **{"height": 32, "width": 32, **more}))
    monkeypatch.setitem(showtell.__dict__, "load", lambda name: bridge)
    space: dict[str, Any] = {}
    exec(module.EXAMPLE.replace("128", "8").replace("(32, 8)", "(4, 4)").replace("(8, 32)", "(8, 4)"), space)
    assert space["image"].size == (32, 32)
