"""Losses on the cosine of what a network finds and what a text says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def misfit(found: Tensor, told: Tensor) -> Tensor:
    """1 - cosine over the last dimension, in [0, 2], of vectors (..., d)."""
    return 1 - F.cosine_similarity(found.float(), told, dim=-1)


def contrast(found: Tensor, told: Tensor, log_scale: Tensor) -> Tensor:
    """Cross-entropy of finding one's own text among all of a batch, (n, d) each; equal texts are equally right.

    Unlike `objectives.contrastive_loss` it takes vectors of any length, and asks in one direction only. log_scale: the
    logarithm of what cosines are multiplied by, at most that of 100.
    """
    with torch.autocast(told.device.type, enabled=False):  # equal texts would differ in bfloat16
        texts = F.normalize(told.float(), dim=-1)
        same = (texts @ texts.T > 0.9999).float()
        logits = log_scale.exp().clamp(max=100) * F.normalize(found.float(), dim=-1) @ texts.T
        return F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True))


def nt_xent(vectors: Tensor, pairs: Tensor, temperature: float = 0.5) -> Tensor:
    """Mean over the positive pairs of -log(e^s / (e^s + the negatives' e^s)), s cosine / temperature (NT-Xent, arXiv
    2002.05709, eq. 1, of any number of positives). A scalar of 0 or more; 0 without positive pairs.

    vectors: (m, d). pairs: (m, m), above 0 for positive ones, below 0 for negative ones, 0 for neither; a vector is no
    pair with itself.
    """
    unit = F.normalize(vectors, dim=1)
    scores = unit @ unit.T / temperature
    negatives = (scores.exp() * (pairs < 0)).sum(dim=1, keepdim=True)
    losses = (scores.exp() + negatives).log() - scores
    chosen = (pairs > 0) & ~torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    return (losses * chosen).sum() / chosen.sum().clamp(min=1)
