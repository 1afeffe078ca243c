"""Imperfect pictures: noise, blur, coarse pixels and JPEG, seeded; judges are trained and tested on them."""

from __future__ import annotations

import io

import numpy as np

KINDS = ("noise", "blur", "coarse", "jpeg")


def degrade(
    images: np.ndarray,
    rng: np.random.Generator,
    share: float = 1.0,
    kinds: tuple[str, ...] = KINDS,
    strength: float = 1.0,
) -> np.ndarray:
    """uint8 (n, h, w, 3) -> the same, a `share` of the rows spoilt in one way each. strength in (0, 1] scales it:
    noise up to 12 % of the range, blur up to a 1.2 pixel sigma, JPEG down to quality 25, coarse to half resolution."""
    out = images.copy()
    kind = rng.integers(len(kinds), size=len(images))
    amount = strength * rng.uniform(0.3, 1.0, len(images)).astype(np.float32)
    chosen = rng.random(len(images)) < share
    for index, name in enumerate(kinds):
        rows = np.flatnonzero(chosen & (kind == index))
        if len(rows):
            out[rows] = _WAYS[name](images[rows], amount[rows], rng)
    return out


def _noise(images: np.ndarray, amount: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(images.shape, dtype=np.float32) * (30.6 * amount[:, None, None, None])
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def _blur(images: np.ndarray, amount: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    value = images.astype(np.float32)
    side = np.exp(-0.5 / (1.2 * amount) ** 2)[:, None, None, None]
    for axis in (1, 2):
        padded = np.pad(value, [(0, 0)] + [(1, 1) if a == axis else (0, 0) for a in (1, 2)] + [(0, 0)], mode="edge")
        n = value.shape[axis]
        before, after = padded.take(range(n), axis=axis), padded.take(range(2, n + 2), axis=axis)
        value = (value + side * (before + after)) / (1 + 2 * side)
    return np.clip(value.round(), 0, 255).astype(np.uint8)


def _coarse(images: np.ndarray, amount: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, h, w, c = images.shape
    small = images.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    mixed = images + amount[:, None, None, None] * (large - images)
    return np.clip(mixed.round(), 0, 255).astype(np.uint8)


def _jpeg(images: np.ndarray, amount: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    out = np.empty_like(images)
    for i, (image, a) in enumerate(zip(images, amount, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(95 - 70 * a))
        out[i] = np.asarray(Image.open(buffer))
    return out


_WAYS = {"noise": _noise, "blur": _blur, "coarse": _coarse, "jpeg": _jpeg}
