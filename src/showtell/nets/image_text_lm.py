"""A causal language model over words and image tokens, which transformers lacks in a plain form: Llama and a VQModel.

One vocabulary: words, then the codes of the VQModel. A picture is written as its tokens row by row between two marks,
as in Chameleon (arXiv 2405.09818), and read the same way, so that `generate` of transformers captions it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


class ImageTextLMConfig(LlamaConfig):
    """words: entries of the vocabulary before the codes. side: tokens per side of an image. vq: the VQModel's config.

    image_token_id: stands in a prompt for every token of an image that is read.
    """

    model_type = "showtell_image_text_lm"

    def __init__(
        self,
        words: int = 0,
        side: int = 16,
        vq: dict[str, Any] | None = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.words, self.side, self.vq, self.image_token_id = words, side, vq, image_token_id
        super().__init__(**kwargs)


class ImageTextLM(LlamaForCausalLM):
    """Images are (n, 3, h, w) in [-1, 1]; codes (n, side * side) in [0, codes); ids are codes + `config.words`."""

    config_class = ImageTextLMConfig
    config: ImageTextLMConfig

    def __init__(self, config: ImageTextLMConfig) -> None:
        super().__init__(config)
        self.vq = VQModel(**(config.vq or {})).requires_grad_(False)

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **more: Any) -> Any:  # type: ignore[override]
        """As LlamaForCausalLM, with the images (n, 3, h, w) that ids of `config.image_token_id` stand for."""
        if pixel_values is not None and input_ids is not None:
            places = input_ids == self.config.image_token_id
            if bool(places.any()):
                input_ids = input_ids.masked_scatter(places, self.encode(pixel_values) + self.config.words)
        return super().forward(input_ids=input_ids, **more)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of the codes alone, (..., codes) of hidden states (..., d)."""
        return hidden @ self.lm_head.weight[self.config.words :].T

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes of images."""
        latents = self.vq.encode(images.to(self.dtype)).latents.permute(0, 2, 3, 1).flatten(1, 2).float()
        book = self.vq.quantize.embedding.weight.float()
        return (latents @ book.T - book.square().sum(dim=1) / 2).argmax(dim=-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images of codes."""
        shape = (len(codes), self.config.side, self.config.side, self.vq.config.latent_channels)
        return self.vq.decode(codes, force_not_quantize=True, shape=shape).sample
