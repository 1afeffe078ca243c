"""Pairs of opposite vectors in a space of pictures and texts, in the place of two opposite prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def opposites(
    good: Tensor, bad: Sequence[Tensor], scale: float = 100.0, steps: int = 200, lr: float = 0.05, seed: int = 0
) -> Tensor:
    """Pairs (kinds, 2, d) that tell good vectors from each kind of bad ones: each is nearest to its side of the pair.

    good (n, d), bad (kinds of (m, d)): unit vectors. scale: of the cosines in the softmax of a pair's two sides, whose
    cross-entropy Adam lowers. Prompts learnt like this are those of CLIP-IQA+ (arXiv 2207.12396).
    """
    start = torch.randn(len(bad), 2, good.shape[1], generator=torch.Generator().manual_seed(seed))
    vectors = (0.1 * start).to(good.device).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            loss = torch.zeros((), device=good.device)
            for pair, low in zip(F.normalize(vectors, dim=-1), bad, strict=True):
                for number, pictures in enumerate((good, low)):
                    wanted = torch.full((len(pictures),), number, device=good.device)
                    loss = loss + F.cross_entropy(scale * pictures @ pair.T, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return vectors.detach()
