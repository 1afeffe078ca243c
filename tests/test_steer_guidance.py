"""Each guidance variant is its formula, and leaves every bit as it was where it should do nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.steer import guidance as g
from steering import FAMILIES, PROMPTS, sampled


class Probe(Technique):
    """Keeps what the technique before it made of the predictions."""

    unconditional = True

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> None:
        self.seen.append((guided, conditional, unconditional, run.given, run.noise_level()))


NEUTRAL = {
    "no rescaling": g.RescaledGuidance(0),
    "an interval of everything": g.IntervalGuidance(0, float("inf")),
    "a constant scale": g.ScheduledGuidance(3.5),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_neutral_settings_change_no_bit(name: str) -> None:
    plain = sampled(name)
    for what, technique in NEUTRAL.items():
        assert torch.equal(sampled(name, technique), plain), what


@pytest.mark.parametrize("name", FAMILIES)
def test_rescaled_has_the_deviation_of_the_conditional(name: str) -> None:
    probe = Probe()
    sampled(name, g.RescaledGuidance(1.0), probe, guidance_scale=9.0)
    for guided, conditional, _, _, _ in probe.seen:
        assert torch.allclose(guided.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_interval_guides_only_inside(name: str) -> None:
    probe = Probe()
    sampled(name, g.IntervalGuidance(0.5, 2.0), probe, num_inference_steps=6)
    inside = [0.5 < (sigma / max(alpha, 1e-9)) <= 2.0 for *_, (alpha, sigma) in probe.seen]
    assert {True, False} <= set(inside)
    for (guided, conditional, unconditional, _, _), guiding in zip(probe.seen, inside):
        expected = unconditional + 3.5 * (conditional - unconditional) if guiding else conditional
        assert torch.equal(guided, expected)


def test_schedule_is_followed() -> None:
    probe = Probe()
    sampled("sd3", g.ScheduledGuidance(lambda progress: 2.0 if progress < 0.5 else 1.0), probe, guidance_scale=1.0)
    scales = [2.0, 2.0, 1.0]  # progress 0, 1/3 and 2/3
    for scale, (guided, c, u, _, _) in zip(scales, probe.seen, strict=True):
        assert torch.allclose(guided, u + scale * (c - u), atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_projected_with_everything_off_is_plain_guidance(name: str) -> None:
    plain = sampled(name)
    assert torch.allclose(sampled(name, g.ProjectedGuidance(1.0, 0.0, 0.0)), plain, atol=1e-4)
    assert not torch.allclose(sampled(name, g.ProjectedGuidance()), plain, atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_projected_update_is_orthogonal_to_the_clean_prediction(name: str) -> None:
    probe = Probe()
    sampled(name, g.ProjectedGuidance(eta=0.0, threshold=0.0, momentum=0.0), probe)
    for guided, c, u, latents, (alpha, sigma) in probe.seen:

        def clean(x: torch.Tensor, z=latents, a=alpha, s=sigma) -> torch.Tensor:
            return z - s * x if name == "sd3" else (z - s * x) / a

        update = clean(guided) - clean(u)
        cosine = torch.cosine_similarity(update.flatten(1), clean(c).flatten(1))
        assert cosine.abs().max() < 1e-2 < update.norm()


def test_momentum_begins_anew_in_every_call() -> None:
    technique = g.ProjectedGuidance()
    assert torch.equal(sampled("sd", technique), sampled("sd", technique))


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_star(name: str) -> None:
    probe = Probe()
    sampled(name, g.ZeroStarGuidance(zero_steps=1), probe)
    assert not probe.seen[0][0].any()
    for guided, c, u, _, _ in probe.seen[1:]:
        for row in range(2):
            s = (c[row] * u[row]).sum() / (u[row] ** 2).sum()
            expected = s * u[row] + 3.5 * (c[row] - s * u[row])
            assert torch.allclose(guided[row], expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_manifold_step_by_hand(name: str) -> None:
    probe = Probe()
    result = sampled(name, g.ManifoldGuidance(0.6), probe, num_inference_steps=2)
    (_, c, u, latents, (alpha, sigma)), (_, _, _, after, (alpha_next, sigma_next)) = probe.seen
    mixed = u + 0.6 * (c - u)
    if name == "sd3":  # velocity = noise - clean
        clean, noise = latents - sigma * mixed, latents + (1 - sigma) * u
    else:
        clean, noise = (latents - sigma * mixed) / alpha, u
    assert torch.allclose(after, alpha_next * clean + sigma_next * noise, atol=1e-4)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_manifold_at_scale_0_is_unconditional(name: str) -> None:
    expected = sampled(name, g.ScheduledGuidance(0.0))
    assert torch.allclose(sampled(name, g.ManifoldGuidance(0.0), guidance_scale=1.0), expected, atol=1e-5)


def test_bad_settings_are_refused() -> None:
    from diffusers import PNDMScheduler

    with pytest.raises(ShowtellError, match="first-order"):
        sampled("sd", g.ManifoldGuidance(), scheduler=PNDMScheduler(skip_prk_steps=True))
    with pytest.raises(ShowtellError, match="from 0 to 1"):
        g.RescaledGuidance(1.5)
    with pytest.raises(ShowtellError, match="low < high"):
        g.IntervalGuidance(2, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_composed_guidance_adds_up(name: str) -> None:
    """Of equal parts it is that of one where they share the scale, and with one part sampling with that prompt."""
    plain, parts = sampled(name), [[prompt] * (2 + i) for i, prompt in enumerate(PROMPTS)]
    assert torch.allclose(sampled(name, g.ComposedGuidance(parts, shared=True)), plain, atol=1e-3)
    assert not torch.allclose(sampled(name, g.ComposedGuidance(parts)), plain, atol=1e-2)
    probe = Probe()
    sampled(name, g.ComposedGuidance([["a ring", "a dog"], []]), probe, guidance_scale=2.0)
    for guided, _, unconditional, _, _ in probe.seen:
        assert torch.allclose(guided[1], unconditional[1], atol=1e-5), "without parts"
    with pytest.raises(ShowtellError, match="parts: got 1 for 2"):
        sampled(name, g.ComposedGuidance([["a ring"]]))
