"""Low and high spatial frequencies of latents and features: taken apart, put together, damped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def butterworth(size: Sequence[int], cutoff: float, order: int = 4) -> Tensor:
    """A low-pass filter (height, width) for shifted spectra: 1 at frequency 0, a half at `cutoff` of the highest one
    along an axis, falling the faster the higher the order. cutoff 0 lets nothing pass."""
    if cutoff == 0:
        return torch.zeros(*size)
    y, x = (2 * torch.arange(n) / n - 1 for n in size)
    return 1 / (1 + ((y[:, None] ** 2 + x**2) / cutoff**2) ** order)


def mixed_frequencies(low: Tensor, high: Tensor, mask: Tensor) -> Tensor:
    """What has the spectrum of `low` where the mask (height, width) is 1 and that of `high` where it is 0, (...,
    height, width)."""
    axes = (-2, -1)
    spectra = [torch.fft.fftshift(torch.fft.fftn(x.float(), dim=axes), dim=axes) for x in (low, high)]
    mixed = torch.fft.ifftshift(mask * spectra[0] + (1 - mask) * spectra[1], dim=axes)
    return torch.fft.ifftn(mixed, dim=axes).real.to(low.dtype)


def damped(features: Tensor, reference: Tensor, scale: float, window: int = 1) -> Tensor:
    """Features (..., height, width) whose low frequencies are multiplied by `scale` where they exceed those of the
    reference, of the same shape, in amplitude (SAFREE, arXiv 2410.12761, equation 8).

    window: half of the side of the low-frequency square, in frequencies. scale 1 changes nothing.
    """
    ours, theirs = (torch.fft.fftshift(torch.fft.fft2(x.float()), dim=(-2, -1)) for x in (features, reference))
    rows, columns = features.shape[-2] // 2, features.shape[-1] // 2
    low = (..., slice(max(rows - window, 0), rows + window), slice(max(columns - window, 0), columns + window))
    factor = torch.ones_like(ours.real)
    factor[low] = torch.where(ours[low].abs() > theirs[low].abs(), scale, 1.0)
    return torch.fft.ifft2(torch.fft.ifftshift(ours * factor, dim=(-2, -1))).real.to(features)
