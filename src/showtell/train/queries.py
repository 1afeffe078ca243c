"""What a frozen vision-language model tells a diffusion model: its states at learnt queries; the loss on being told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.train.noising import Noising
from showtell.train.samples import latents_of


class Queries(nn.Module):
    """States of a frozen vision-language model at learnt queries that follow a prompt and a picture, brought to the
    width of a diffusion model's text encoder (OpenUni, arXiv 2505.23661).

    reader: the bridge of a vision-language model. count: of queries. channels: of the text encoder.
    """

    def __init__(self, reader: Any, count: int, channels: int) -> None:
        super().__init__()
        self._reader = [reader]  # in a list, lest it count as part of what is trained
        width = reader.model.get_input_embeddings().embedding_dim
        self.queries = nn.Parameter(0.02 * torch.randn(count, width))
        self.connector = nn.Sequential(nn.Linear(width, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, images: Any, instruction: str) -> Tensor:
        """(n, count, channels) of pictures and what is asked of them."""
        reader = self._reader[0]
        model, inputs = reader.model, reader.teller.inputs(images, [instruction] * len(images))
        with torch.no_grad():
            told = model.get_input_embeddings()(inputs["input_ids"])
            found = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
            seen = found if isinstance(found, Tensor) else torch.cat(list(found))
            places = (inputs["input_ids"] == model.config.image_token_id)[..., None]
            told = told.masked_scatter(places, seen.to(told.dtype))
        queries = self.queries.expand(len(told), -1, -1).to(told.dtype)
        mask = F.pad(inputs["attention_mask"], (0, len(self.queries)), value=1)
        states = model.model.language_model(inputs_embeds=torch.cat([told, queries], dim=1), attention_mask=mask)
        return self.connector(states.last_hidden_state[:, -len(self.queries) :])


def told_loss(noising: Noising, told: Tensor, images: Any, generator: torch.Generator | None = None) -> Tensor:
    """The denoiser's own loss on pictures that it is told of by `Queries` (n, count, channels) instead of by captions.

    A prompt's other parts (a pooled embedding) are those of the empty prompt. As OpenUni is trained (arXiv 2505.23661)
    and aligned by reconstruction (arXiv 2509.07295).
    """
    text = noising.text([""] * len(told))
    ones = None if text.mask is None else text.mask.new_ones(told.shape[:2])
    given = replace(text, tokens=told.to(text.tokens.dtype), mask=ones)
    return noising.loss(noising.noised(latents_of(noising.bridge, list(images)), generator), given)
