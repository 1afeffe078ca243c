"""Sets of images against sets of images: Fréchet and kernel distance, precision and recall, diversity.

All work on features (n, d) of images: what is shown, by a judge ("judge", "judge2") or by the emoji retrieval model
("emoji"); or how cleanly it is shown, by the first layer of a judge ("texture"). The judges are trained to see through
noise, blur and JPEG, so their features hardly move with image quality: ask "texture" (or `scores.legibility`) for that.
Kernel distance and pairwise diversity split into one term per image, so that experiments can bootstrap over images.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from showtell.data.signal import signal
from showtell.errors import ShowtellError
from showtell.measure.judge import JUDGES, Judge, load_judge

ENCODERS = (*JUDGES, "texture", "emoji")


def features(images: Any, encoder: str | Judge = "judge") -> np.ndarray:
    """(n, d) float64 descriptors of images. encoder: one of `ENCODERS` or a `Judge`.

    Raises ShowtellError for an unknown encoder.
    """
    if isinstance(encoder, Judge):
        return encoder.features(images).astype(np.float64)
    if encoder not in ENCODERS:
        raise ShowtellError(f"unknown encoder {encoder!r}; use one of: {', '.join(ENCODERS)}")
    if encoder in JUDGES:
        return load_judge(encoder).features(images).astype(np.float64)
    encode = _emoji_eye() if encoder == "emoji" else _texture
    with torch.no_grad():
        parts = [encode(part) for part in signal(images).split(256)]
    return torch.cat(parts).double().numpy()


def _texture(images: torch.Tensor) -> torch.Tensor:
    """(n, 80): mean and standard deviation over the image of each channel of the first judge's first convolution."""
    cells = load_judge("judge").model.trunk[0](images)  # type: ignore[index]
    return torch.cat([cells.mean(dim=(2, 3)), cells.std(dim=(2, 3))], dim=1)


@lru_cache(maxsize=1)
def _emoji_eye() -> Any:
    """The packaged emoji retrieval model; it needs no emoji font."""
    from showtell.nets.image_encoder import ImageEncoder
    from showtell.weights import folder

    return ImageEncoder.from_pretrained(folder("emoji-eye"), dtype=torch.float32, use_safetensors=True).eval()


def fid(images: Any, real: Any, encoder: str | Judge = "judge") -> float:
    """Fréchet distance (arXiv 1706.08500) of two sets of images in the encoder's features; lower is better.

    Biased upwards where either set is small: compare only sets of equal size, or use `kid`.
    """
    return frechet_distance(features(images, encoder), features(real, encoder))


def kid(images: Any, real: Any, encoder: str | Judge = "judge") -> np.ndarray:
    """(n,) terms, one per image, whose mean is the unbiased kernel distance (arXiv 1801.01401); lower is better.

    Features are divided by the real set's standard deviations first.
    """
    a, b = features(images, encoder), features(real, encoder)
    if len(b) < 2:
        raise ShowtellError(f"{len(b)} real images; a kernel distance needs at least 2")
    scale = b.std(axis=0) + 1e-6
    return kernel_distances(a / scale, b / scale)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b|^2 + trace(A + B - 2 (A B)^(1/2)) of features (n, d) and (m, d) with covariances A, B."""
    _check(a, b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    one, two = np.cov(a, rowvar=False, ddof=1), np.cov(b, rowvar=False, ddof=1)
    one, two = np.atleast_2d(one), np.atleast_2d(two)
    # trace (A B)^(1/2) = sum of the singular values of A^(1/2) B^(1/2): no matrix root of a matrix that may be singular
    shared = np.linalg.svd(_root(one) @ _root(two), compute_uv=False).sum()
    return max(0.0, float(difference @ difference + np.trace(one) + np.trace(two) - 2 * shared))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def kernel_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) terms of the unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3; its mean is KID.

    Term i: mean kernel of a_i with the other a, minus twice that with all b, plus the mean kernel among the b.
    """
    _check(a, b)
    among = _kernel(b, b)
    m, n = len(b), len(a)
    inner = (among.sum() - np.trace(among)) / (m * (m - 1))
    own = _kernel(a, a)
    others = (own.sum(axis=1) - np.diag(own)) / (n - 1)
    return others - 2 * _kernel(a, b).mean(axis=1) + inner


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def precision_recall(a: np.ndarray, b: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """((n,), (m,)) of 0 and 1: whether each generated feature lies within the real ones' manifold, and vice versa.

    The manifold of a set: balls around its points that reach to their k-th nearest neighbour (arXiv 1904.06991). The
    means are precision (quality) and recall (coverage).
    """
    _check(a, b)
    if min(len(a), len(b)) <= k:
        raise ShowtellError(f"sets of {len(a)} and {len(b)} are too small for k={k} neighbours; give more than k")
    across = _distances(a, b)
    reach_a, reach_b = (np.sort(_distances(x, x), axis=1)[:, k] for x in (a, b))
    precise = (across <= reach_b).any(axis=1)
    covered = (across <= reach_a[:, None]).any(axis=0)
    return precise.astype(float), covered.astype(float)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(squares.clip(0))


def vendi(vectors: np.ndarray) -> float:
    """The Vendi score (arXiv 2210.02410) with cosine similarity: how many different vectors there are, 1 to n.

    exp of the entropy of the eigenvalues of K / n. 1 where all are alike, n where all are at right angles.
    """
    unit = _unit(vectors)
    values = np.linalg.eigvalsh(unit @ unit.T / len(unit)).clip(0)
    values = values[values > 1e-12] / values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))


def pairwise_diversity(vectors: np.ndarray) -> np.ndarray:
    """(n,) mean cosine distance, in [0, 2], of each vector to the others; the mean is the set's diversity."""
    unit = _unit(vectors)
    if len(unit) < 2:
        raise ShowtellError(f"{len(unit)} image has no others to differ from; give at least 2")
    similar = unit @ unit.T
    return 1 - (similar.sum(axis=1) - np.diag(similar)) / (len(unit) - 1)


def diversity(images: Any, encoder: str | Judge = "judge", centre: Any = None) -> np.ndarray:
    """(n,) `pairwise_diversity` of images in the encoder's features.

    centre: images whose mean feature is taken off first. The features of all images point much the same way, so
    without it every set looks alike; give the same images (the prompts' renders) to every arm.
    """
    vectors = features(images, encoder)
    return pairwise_diversity(vectors - (0 if centre is None else features(centre, encoder).mean(axis=0)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise ShowtellError(f"features of shape {vectors.shape}; give (n, d) with n of at least 1")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShowtellError(f"cannot compare features {a.shape} and {b.shape}; give (n, d) and (m, d), n and m above 1")
