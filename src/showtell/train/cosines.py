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
