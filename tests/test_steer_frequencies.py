"""Frequencies: what exceeds the reference is damped, in the window alone."""

from __future__ import annotations

import torch

from showtell.steer.frequencies import damped


def test_damping_by_hand() -> None:
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(damped(x, x, 0.2), x, atol=1e-6)
    assert torch.allclose(damped(x, 2 * x, 0.2), x, atol=1e-6), "only what exceeds the original is weakened"
    assert torch.allclose(damped(x, 0 * x, 1.0), x, atol=1e-6)
    out = damped(x, 0 * x, 0.25)
    assert torch.allclose(out.mean((-2, -1)), 0.25 * x.mean((-2, -1)), atol=1e-6), "the mean is the lowest frequency"
    before, after = (torch.fft.fft2(y)[..., 2, 2].abs() for y in (x, out))
    assert torch.allclose(before, after, atol=1e-4), "frequencies outside the window stay"
    assert torch.allclose(damped(x, 0 * x, 0.25, window=9), 0.25 * x, atol=1e-6)
