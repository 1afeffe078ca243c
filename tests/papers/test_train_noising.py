"""What trainings of papers are made of: noise levels as the loop has them, widened networks, consistency."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import PROMPTS, bridge_of, keywords, sampled

from showtell.bridges.base import Technique
from showtell.train.consistency import consistency_loss
from showtell.train.networks import widened, with_denoiser
from showtell.train.noising import Noising
from showtell.train.samples import paired


def sources(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_widened_begins_as_the_original() -> None:
    unet, text = bridge_of("sd").adapter.denoiser, torch.randn(2, 5, 32)
    wide = widened(unet, 8, 6)
    x, more = sources(), sources(1)
    with torch.no_grad():
        found = wide(torch.cat([x, more], 1), 7, text)[0]
        assert torch.equal(found[:, :4], unet(x, 7, text)[0]) and (found[:, 4:] == 0).all()
    assert wide.config.in_channels == 8 and unet.config.in_channels == 4
    adapter = bridge_of("sd").adapter
    assert with_denoiser(adapter, wide).denoiser is wide and adapter.denoiser is unet


@pytest.mark.parametrize("name", ["sd", "sd3", "pixart"])
def test_noising_is_the_loop_s(name: str) -> None:
    """Levels, predictions and clean latents of training are those of sampling."""
    options = {k: v for k, v in keywords(name).items() if k in bridge_of(name).adapter.text_options}
    noising, clean = Noising(bridge_of(name), height=32, width=32, **options), sources()
    found: dict[str, torch.Tensor] = {}

    class Compare(Technique):
        def before(self, run: Any, latents: torch.Tensor) -> None:
            if run.step == 1:
                time = run.timestep
                alpha, sigma = run.noise_level()
                given = torch.tensor([float(alpha), float(sigma)])
                noise = torch.ones_like(latents)
                at = noising.noised(clean) if noising.flow else noising.at(clean, noise, time.long().repeat(2))
                if noising.flow:  # the level is drawn: put in the loop's
                    at = type(at)(alpha * clean + sigma * noise, clean, noise, given[0], given[1], time.repeat(2))
                predicted = noising.predict(at, noising.text(run.prompts))
                found["ours"], found["loop"] = predicted, run.evaluate(at.latents)
                found["clean"] = noising.clean(predicted, at) - run.clean(predicted, at.latents)
                exact = noising.clean(noising.target(at), at)
                found["exact"] = exact - clean

    sampled(name, Compare())
    assert torch.allclose(found["ours"], found["loop"], atol=1e-4)
    assert found["clean"].abs().max() < 1e-3 and found["exact"].abs().max() < 1e-3


def test_consistency_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows the only picture there is agrees with itself; one that sees no noise is off by the noise."""
    bridge, clean = bridge_of("sd"), sources()
    loss = consistency_loss(bridge, PROMPTS, grid=4)
    batch = {name: torch.as_tensor(value) for name, value in paired(clean, 2)(0, 0).items()}
    noising, teacher = Noising(bridge), bridge.adapter.denoiser
    wrong = torch.zeros(())

    def predict(self: Any, run: Any, latents: torch.Tensor, times: torch.Tensor, text: Any) -> torch.Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in noising.level(times))
        exact = (latents - alpha * batch["latents"]) / sigma
        return exact if self.denoiser is not teacher else exact + wrong

    monkeypatch.setattr(type(bridge.adapter), "predict", predict)
    assert float(loss(None, batch, torch.Generator().manual_seed(0))[0]) == pytest.approx(0, abs=1e-4)
    wrong = torch.ones(())
    alone = consistency_loss(bridge, PROMPTS, grid=1)
    alpha, sigma = noising.level(torch.tensor([999]))
    # Of one level only: the teacher's answer is the target, and noise off by one is sigma / alpha in the picture.
    assert float(alone(None, batch, None)[0]) == pytest.approx(float(sigma / alpha), rel=1e-3)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_share_of_the_levels(name: str) -> None:
    options = {key: value for key, value in keywords(name).items() if key in ("height", "width")}
    noising = Noising(bridge_of(name), **options)
    x, noise = sources(), sources(1)
    found = [noising.at_share(x, noise, share) for share in (0.1, 0.5, 0.9)]
    assert found[0].sigma.max() < found[1].sigma.min() < found[2].sigma.min()
    for one in found:
        assert torch.allclose(one.latents, one.alpha * x + one.sigma * noise, atol=1e-5) and len(one.times) == 2
