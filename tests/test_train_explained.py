"""How well texts explain pictures: losses that are those of training, noise that pictures share."""

from __future__ import annotations

import pytest
import torch

from showtell.train.explained import attention_at, level_noise, text_errors
from showtell.train.noising import Noising
from steering import FAMILIES, PROMPTS, bridge_of


@pytest.mark.parametrize("name", FAMILIES)
def test_errors_are_the_losses_of_training(name: str) -> None:
    bridge = bridge_of(name)
    noising, channels = Noising(bridge, 32, 32), bridge.pipeline.vae.config.latent_channels
    clean = torch.randn(2, channels, 16, 16, generator=torch.manual_seed(1))
    noise = level_noise(clean, (101, 701))
    first, second = text_errors(noising, clean, [["a dog", "a cat"], ["a ring"]], noise)
    assert first.shape == (2,) and second.shape == (1,)
    total = 0.0
    with torch.no_grad():
        for level, one in noise.items():
            at = noising.at_level(clean[:1], one[None], level)
            total += float(noising.loss(at, noising.text(["a cat"])))
    assert float(first[1]) == pytest.approx(total, rel=1e-3)
    [alone] = text_errors(noising, clean[1:], [["a ring"]], noise)
    assert torch.allclose(alone, second, rtol=1e-3), "the same noise, whoever is beside"


def test_levels_of_flow_models_are_moved_by_their_shift() -> None:
    noising = Noising(bridge_of("sd3"), 32, 32)
    clean = torch.zeros(1, 4, 4, 4)
    shift = float(noising.scheduler.config.get("shift", 1.0))
    assert shift != 1
    sigma = noising.at_level(clean, clean, 101).sigma.item()
    assert sigma == pytest.approx(shift * 0.101 / (1 + (shift - 1) * 0.101))
    unet = Noising(bridge_of("sd"), 32, 32)
    assert unet.at_level(clean, clean, 101).times.tolist() == [101]


def test_attention_is_that_of_the_prompt_at_the_levels() -> None:
    bridge = bridge_of("sd")
    clean = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(1))
    run, maps, attention = attention_at(Noising(bridge, 32, 32), clean, PROMPTS[0], level_noise(clean, (20, 200)))
    assert maps.shape[0] == 1 and maps.ndim == 4 and attention.shape == (1, maps[0, 0].numel(), maps[0, 0].numel())
    assert torch.allclose(maps.sum(dim=1), torch.tensor(2.0), atol=1e-3), "two levels, each a share for every token"
    assert list(run.words(PROMPTS[0])["red ring"]) == [2, 3]
