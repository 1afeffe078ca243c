"""Losses of bridges that read pictures and write them token by token (Janus, image-text models), for training them on
pictures and texts of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.base import Text
from showtell.errors import ShowtellError


def with_two_encoders(bridge: Any) -> Any:
    """The model of a bridge that reads pictures by an encoder of its own and writes them as tokens: Janus's, or an
    `ImageTextLM` with an `eye`. Raises ShowtellError for other bridges.
    """
    model: Any = getattr(getattr(bridge, "decoder", None), "model", None)
    if getattr(model, "eye", None) is None and not hasattr(getattr(model, "model", None), "generation_head"):
        raise ShowtellError(f"{bridge.name} does not read pictures by an encoder of its own; take Janus.")
    return model


@torch.no_grad()
def read_features(model: Any, pixels: Tensor) -> Tensor:
    """What the encoder that reads makes of pictures, as the language model takes it: (n, places, d).

    model: of `with_two_encoders`. pixels: pixel_values, as the bridge's processor makes them.
    """
    if hasattr(model, "eye"):
        return model.read(pixels)
    return model.model.get_image_features(pixels, return_dict=True).pooler_output


def reading_loss(bridge: Any, images: Any, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
    """Cross entropy per token of answers to questions about pictures; the encoder that reads learns as far as its
    parameters ask for gradients."""
    likelihood, count = bridge.teller.likelihood(images, questions, answers)
    return -likelihood.sum() / int(count.sum())


def drawing_loss(
    bridge: Any, images: Any, prompts: Sequence[str], drop: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Cross entropy of the pictures' tokens after prompts; the tokenizer is frozen.

    drop: share of prompts in whose place there is what guidance guides away from (arXiv 2207.12598).
    Raises ShowtellError for bridges that write no pictures after a prompt of words.
    """
    decoder, grid = bridge.decoder, bridge.decoder.grid(None, None)
    given: Text = decoder.encode(list(prompts), grid)
    if given.mask is None:
        raise ShowtellError(f"{bridge.name} does not write pictures after a prompt of words; take Janus.")
    empty = decoder.negative(SimpleNamespace(text=given, prompts=list(prompts), negative_prompts=None, grid=grid))
    missing = given.tokens.shape[1] - empty.tokens.shape[1]
    unsaid, hidden = F.pad(empty.tokens, (0, 0, 0, missing)), F.pad(empty.mask, (0, missing))
    dropped = torch.rand(len(given), 1, generator=generator, device=given.tokens.device) < drop
    told = torch.where(dropped[..., None], unsaid, given.tokens)
    mask = torch.where(dropped, hidden, given.mask)
    opened = torch.full((len(given), 1), decoder.opening(grid), device=told.device)
    told = torch.cat([told, decoder.model.get_input_embeddings()(opened)], dim=1)
    return writing_loss(bridge, told, F.pad(mask, (0, 1), value=1), written_codes(bridge, images))


def writing_loss(bridge: Any, told: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
    """Cross entropy of image tokens (n, count) from an embedded prompt and the tokens before them.

    bridge: any that writes pictures token by token. told (n, length, d), mask (n, length): up to and with what opens
    the image.
    """
    decoder, none = bridge.decoder, None  # a decoder's `embed` needs nothing of a run
    written = decoder.embed(none, codes[:, :-1].flatten()).view(len(codes), codes.shape[1] - 1, -1)
    mask = F.pad(mask, (0, written.shape[1]), value=1)
    hidden = decoder.language_model(
        inputs_embeds=torch.cat([told, written], dim=1), attention_mask=mask,
        position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0), use_cache=False,
    ).last_hidden_state[:, -codes.shape[1] :]  # fmt: skip
    return F.cross_entropy(decoder.head(hidden.flatten(0, 1)).float(), codes.flatten())


@torch.no_grad()
def written_codes(bridge: Any, images: Any) -> Tensor:
    """The tokens (n, count) that the bridge would write for these pictures: an image-text model's, Janus's."""
    model, pixels = bridge.decoder.model, bridge.teller.inputs(images, ["a"] * len(images))["pixel_values"]
    if hasattr(model, "encode"):
        return model.encode(pixels)
    return model.model.vqmodel.encode(pixels, return_dict=True).image_tokens.view(len(pixels), -1)
