"""Windows lie where their boxes do, at sizes that the model takes; a crop of everything is the run itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.bridges.base import Technique
from showtell.steer.crops import crop, window
from steering import FAMILIES, PROMPTS, sampled


def test_windows_by_hand() -> None:
    assert window((0.0, 0.0, 0.5, 1.0), (8, 8)) == (slice(0, 8), slice(0, 4))
    assert window((0.3, 0.6, 0.9, 0.9), (8, 8), multiple=2) == (slice(4, 8), slice(2, 8))
    assert window((0.99, 0.0, 1.0, 0.01), (4, 8)) == (slice(0, 1), slice(7, 8)), "never empty, never outside"


class Alone(Technique):
    """Denoises a box of the second sample beside the run."""

    def __init__(self, box: Any) -> None:
        self.box = box

    def before(self, run: Any, latents: torch.Tensor) -> None:
        if run.step == 0:
            self.crop = crop(run, latents, 1, self.box, PROMPTS[1])
            self.first = self.crop.latents.clone()
        self.crop.step(run.step)

    def finish(self, run: Any, outputs: list[Any]) -> None:
        self.left = run.scheduler


@pytest.mark.parametrize("name", FAMILIES)
def test_a_crop_of_everything_is_the_sample(name: str) -> None:
    technique, plain = Alone((0.0, 0.0, 1.0, 1.0)), sampled(name)
    assert torch.equal(sampled(name, technique), plain), "the run itself does not notice"
    assert torch.allclose(technique.crop.latents[0], plain[1], atol=1e-4)
    whole = torch.zeros_like(plain)
    technique.crop.paste(whole)
    assert torch.equal(whole[1], technique.crop.latents[0]) and not whole[0].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_part_starts_from_the_sample_s_noise(name: str) -> None:
    technique = Alone((0.5, 0.0, 1.0, 0.5))
    plain = sampled(name, technique)
    assert technique.first.shape == (1, 4, 4, 4) and technique.crop.latents.shape == (1, 4, 4, 4)
    pasted = plain.clone()
    technique.crop.paste(pasted)
    changed = (pasted - plain).abs().amax(dim=1) > 0
    assert not changed[0].any() and changed[1, :4, 4:].all() and int(changed.sum()) == 16
