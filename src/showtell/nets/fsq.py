"""Image tokenizer with finite scalar quantisation: diffusers' encoder and decoder, a codebook that cannot collapse.

Source: Finite Scalar Quantization, arXiv 2309.15505 (section 3, eq. for odd and even levels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class FSQModel(ModelMixin, ConfigMixin):
    """Images (n, 3, h, w) in [-1, 1] <-> tokens (n, h/f * w/f) of `codes` values, f = 2 ** (levels of channels - 1)."""

    @register_to_config
    def __init__(
        self,
        levels: Sequence[int] = (8, 5, 5, 5),
        block_out_channels: Sequence[int] = (16, 32, 64),
        layers_per_block: int = 1,
        image_size: int = 64,
    ) -> None:
        super().__init__()
        channels, steps = tuple(block_out_channels), len(block_out_channels)
        self.codes = math.prod(levels)
        self.grid = image_size // 2 ** (steps - 1)
        common = dict(layers_per_block=layers_per_block, norm_num_groups=8, mid_block_add_attention=False)
        self.encoder = Encoder(3, len(levels), ("DownEncoderBlock2D",) * steps, channels, double_z=False, **common)
        self.decoder = Decoder(len(levels), 3, ("UpDecoderBlock2D",) * steps, channels, **common)
        sizes = torch.tensor(list(levels))
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("basis", torch.cat([sizes.new_ones(1), sizes.cumprod(0)[:-1]]), persistent=False)

    def quantise(self, z: Tensor) -> Tensor:
        """(n, levels, h, w) real -> nearest of the levels, scaled to [-1, 1]; gradient passes straight through."""
        sizes = self.sizes.view(1, -1, 1, 1).to(z)
        half = (sizes - 1) * (1 + 1e-3) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (sizes // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction of the images."""
        return self.decoder(self.quantise(self.encoder(images)))

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (n, grid * grid) int64 in [0, codes), row by row."""
        sizes = self.sizes.view(1, -1, 1, 1)
        digits = (self.quantise(self.encoder(images).float()) * (sizes // 2)).round().long() + sizes // 2
        return (digits * self.basis.view(1, -1, 1, 1)).sum(dim=1).flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images (n, 3, h, w) from tokens (n, grid * grid)."""
        digits = (tokens[..., None] // self.basis) % self.sizes - self.sizes // 2
        z = (digits / (self.sizes // 2)).to(self.dtype).transpose(1, 2)
        return self.decoder(z.reshape(len(z), -1, self.grid, self.grid))
