"""A quantiser of several small codebooks, each for a chunk of a feature of its own (arXiv 2502.20321)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.errors import ShowtellError


class MultiCodebook(nn.Module):
    """`books` codebooks of `codes` unit vectors, one for each chunk of `chunk` numbers of a feature.

    tied: every codebook is given the first chunk, the control.
    """

    def __init__(self, books: int, codes: int, chunk: int = 8, tied: bool = False) -> None:
        super().__init__()
        if min(books, codes, chunk) < 1:
            raise ShowtellError(f"books={books}, codes={codes}, chunk={chunk}: all have to be 1 or more.")
        self.tied = tied
        self.books = nn.Parameter(F.normalize(torch.randn(books, codes, chunk), dim=-1))

    def chunks(self, features: Tensor) -> Tensor:
        """Unit vectors (n, cells, books, chunk) of features (n, cells, books * chunk)."""
        cut = features.unflatten(-1, (len(self.books), -1))
        return F.normalize(cut[..., :1, :].expand_as(cut) if self.tied else cut, dim=-1)

    def forward(self, features: Tensor, sharpness: float = 10.0, most: int = 512) -> tuple[Tensor, Tensor, Tensor]:
        """(quantised features, with straight-through gradients; codes (n, cells, books); loss).

        The loss pulls codes to features, features to codes a quarter as much, and by the entropy term, estimated from
        so many cells, wants every assignment to be sure and all codes to be used (arXiv 2310.05737, section 3.2).
        """
        cut = self.chunks(features)
        with torch.no_grad():
            codes = self._cosines(cut).argmax(dim=-1)
        found = self.vectors(codes)
        loss = (found - cut.detach()).square().mean() + 0.25 * (found.detach() - cut).square().mean()
        cells = cut.flatten(0, 1)
        few = torch.linspace(0, len(cells) - 1, min(most, len(cells)), device=cells.device).long()
        chances = (sharpness * self._cosines(cells[few])).softmax(dim=-1)
        use = torch.special.entr(chances.mean(dim=0)).sum(dim=-1).mean()
        sure = torch.special.entr(chances).sum(dim=-1).mean()
        return (cut + (found - cut).detach()).flatten(2), codes, loss + 0.1 * (sure - use)

    def _cosines(self, cut: Tensor) -> Tensor:
        """(..., books, codes) of chunks (..., books, chunk)."""
        return torch.einsum("...bk,bvk->...bv", cut, F.normalize(self.books, dim=-1))

    def vectors(self, codes: Tensor) -> Tensor:
        """Unit vectors (n, cells, books, chunk) of codes (n, cells, books)."""
        each = [F.embedding(codes[..., b], F.normalize(book, dim=-1)) for b, book in enumerate(self.books)]
        return torch.stack(each, dim=-2)


def usage(codes: Tensor, size: int) -> Tensor:
    """Share of each codebook's `size` codes that occur in codes (n, cells, books); (books,)."""
    return torch.tensor([len(codes[..., b].unique()) / size for b in range(codes.shape[-1])])
