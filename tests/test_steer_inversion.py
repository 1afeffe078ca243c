"""Round trips from clean latents to noise and back, with their error measured; and blending under a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.errors import ShowtellError
from showtell.steer.blend import BlendLatents, blended
from showtell.steer.inversion import EditFriendlyInversion, Inversion, SDEdit
from showtell.steer.noise import seeded_noise
from steering import FAMILIES, PROMPTS, sampled

CLEAN = 0.5 * seeded_noise([1, 2], (4, 8, 8))
UNGUIDED: dict[str, Any] = {"guidance_scale": 1.0}


def error(got: torch.Tensor) -> float:
    """Root mean square error, relative to the deviation of the clean latents."""
    return float((got - CLEAN).pow(2).mean().sqrt() / CLEAN.std())


@pytest.mark.parametrize("name", FAMILIES)
def test_deterministic_round_trip(name: str) -> None:
    def trip(iterations: int, steps: int = 8) -> float:
        return error(sampled(name, Inversion(CLEAN, iterations=iterations), num_inference_steps=steps, **UNGUIDED))

    plain = error(sampled(name, num_inference_steps=8, **UNGUIDED))
    once, often = trip(1), trip(30)
    assert plain > 0.5 and once < 0.5 * plain
    assert often < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_guided_inversion_and_source_prompts(name: str) -> None:
    # The fixed point of strong guidance is not found on random UNet weights: it changes faster than a step is long.
    inversion = Inversion(CLEAN, iterations=40, guided=True)
    guided = sampled(name, inversion, num_inference_steps=12, guidance_scale=1.5 if name == "sd" else 3.5)
    assert error(guided) < 1e-2
    inversion = Inversion(CLEAN, prompt=PROMPTS, iterations=30)
    back = sampled(name, inversion, num_inference_steps=6, **UNGUIDED)
    edited = sampled(name, inversion, num_inference_steps=6, prompts=["a big cat", "a photo"], **UNGUIDED)
    assert error(back) < 1e-3 < error(edited)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("skip", [0.0, 0.5])
def test_edit_friendly_round_trip(name: str, skip: float) -> None:
    inversion = EditFriendlyInversion(CLEAN, guidance=3.5, skip=skip)
    back = sampled(name, inversion, num_inference_steps=6)
    assert error(back) < 1e-4
    edited = sampled(name, EditFriendlyInversion(CLEAN, PROMPTS, skip=skip), prompts=["a big cat", "a photo"])
    assert error(edited) > 1e-3


def test_edit_friendly_works_with_any_scheduler() -> None:
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

    for scheduler in (DPMSolverMultistepScheduler(), EulerDiscreteScheduler()):
        assert error(sampled("sd", EditFriendlyInversion(CLEAN), scheduler=scheduler)) < 1e-4


def test_more_skipping_keeps_more() -> None:
    def edited(skip: float) -> float:
        inversion = EditFriendlyInversion(CLEAN, PROMPTS, skip=skip)
        return error(sampled("sd3", inversion, prompts=["a big cat", "a photo"], num_inference_steps=8))

    assert edited(0.8) < edited(0.0)


def test_bad_input() -> None:
    with pytest.raises(ShowtellError, match="shape"):
        sampled("sd", Inversion(CLEAN[:1]))
    with pytest.raises(ShowtellError, match="skip"):
        EditFriendlyInversion(CLEAN, skip=1.0)
    with pytest.raises(ShowtellError, match="prompt"):
        Inversion(CLEAN, "a ring", guided=True)


# Blending


@pytest.mark.parametrize("name", FAMILIES)
def test_blending(name: str) -> None:
    plain = sampled(name)
    assert torch.equal(sampled(name, BlendLatents(CLEAN, (0.0, 0.0, 1.0, 1.0))), plain)
    left = (0.0, 0.0, 0.5, 1.0)
    half = sampled(name, BlendLatents(CLEAN, left))
    assert torch.allclose(half[..., 4:], CLEAN[..., 4:], atol=1e-6)
    assert not torch.allclose(half[..., :4], CLEAN[..., :4], atol=1e-2)
    assert not torch.equal(half[..., :4], plain[..., :4])  # the free half sees the known one
    early = sampled(name, BlendLatents(CLEAN, left, until=0.4))
    assert not torch.allclose(early[..., 4:], CLEAN[..., 4:], atol=1e-3) and not torch.equal(early, plain)


def test_blending_by_hand_and_refused() -> None:
    mask = torch.tensor([0.0, 0.25, 1.0])
    assert blended(torch.full((3,), 8.0), torch.full((3,), 4.0), mask).tolist() == [4, 5, 8]
    with pytest.raises(ShowtellError, match="shape"):
        sampled("sd", BlendLatents(torch.zeros(1, 4, 4, 4), (0, 0, 1, 1)))
    with pytest.raises(ShowtellError, match="mask"):
        sampled("sd", BlendLatents(CLEAN, [(0, 0, 1, 1)]))


@pytest.mark.parametrize("name", FAMILIES)
def test_sdedit_keeps_the_more_the_later_it_begins(name: str) -> None:
    plain = sampled(name, num_inference_steps=8, **UNGUIDED)
    far = [error(sampled(name, SDEdit(CLEAN, s), num_inference_steps=8, **UNGUIDED)) for s in (0.0, 0.25, 0.75)]
    assert far[0] < 1e-5 < far[1] < far[2] < error(plain)
    assert torch.equal(sampled(name, SDEdit(CLEAN, 1.0), num_inference_steps=8, **UNGUIDED), plain)
    with pytest.raises(ShowtellError, match="strength"):
        SDEdit(CLEAN, 1.5)
