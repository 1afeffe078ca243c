"""A vision transformer on latents that speaks of the whole picture and of what lies in boxes (arXiv 2505.06512)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_fourier_embeds_from_boundingbox
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

FREQUENCIES = 8
"""Of a box's Fourier embedding, with 8 numbers each: sine and cosine of the box's four sides."""


def cover(boxes: Tensor, grid: Sequence[int]) -> Tensor:
    """The part in [0, 1] of every cell that boxes (n, m, 4) cover, (n, m, height * width).

    boxes: (left, top, right, bottom) in fractions of the sides. grid: (height, width).
    """

    def along(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1, device=boxes.device) / cells
        return (torch.clamp(edges, low[..., None], high[..., None]).diff(dim=-1) * cells).clamp(min=0)

    rows, columns = along(boxes[..., 1], boxes[..., 3], grid[0]), along(boxes[..., 0], boxes[..., 2], grid[1])
    return (rows[..., :, None] * columns[..., None, :]).flatten(2)


class Aligner(nn.Module):
    """Latents (n, channels, *size), boxes (n, m, 4) -> features (n, text) of the whole, (n, m, text) of the boxes.

    size: (height, width) that its positions are made for; of another size they are interpolated. text: length of the
    features. patch: cells a side of a ViT's patch. width: a multiple of 64, or less than 128. `scale`: the logarithm of
    what cosines are multiplied by in a contrast, learnt. A box's feature is the mean of its patches beside its Fourier
    embedding, through an MLP.
    """

    def __init__(
        self, channels: int, size: Sequence[int], text: int, patch: int = 4, width: int = 768, layers: int = 12
    ) -> None:
        super().__init__()
        self.size, self.patch = list(size), patch
        config = ViTConfig(
            image_size=tuple(size), patch_size=patch, num_channels=channels, hidden_size=width,
            num_hidden_layers=layers, num_attention_heads=max(1, width // 64), intermediate_size=4 * width,
        )  # fmt: skip
        self.vit = ViTModel(config, add_pooling_layer=False)

        def mlp(given: int) -> nn.Sequential:
            hidden = nn.Linear(given, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
            return nn.Sequential(*hidden, nn.Linear(width, text))

        self.whole, self.part = mlp(width), mlp(width + 8 * FREQUENCIES)
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, latents: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        size = list(latents.shape[2:])
        seen = self.vit(latents, interpolate_pos_encoding=size != self.size).last_hidden_state
        share = F.normalize(cover(boxes, [side // self.patch for side in size]), p=1, dim=-1).to(seen)
        where = get_fourier_embeds_from_boundingbox(FREQUENCIES, boxes).to(seen)
        return self.whole(seen[:, 0]), self.part(torch.cat([share @ seen[:, 1:], where], dim=-1))
