"""What a model over images and words needs: who sees whom, positions, greedy telling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache


def segment_mask(image: int, valid: Tensor, there: Tensor | None = None) -> Tensor:
    """Bool (n, 1, length, length), True where a row may attend to a column: causal, bidirectional within the source.

    image: tokens of the source, 0 where there is none; valid (n, text): False at padding, which nobody sees; there
    (n, image): False at source tokens that stand for nothing, which nobody but themselves sees.
    """
    order = torch.arange(image + valid.shape[1], device=valid.device)
    allowed = (order[:, None] >= order) | (order < image)
    keys = torch.cat([valid.new_ones(len(valid), image) if there is None else there, valid], dim=1)
    itself = (order[:, None] == order) & (order < image)
    return ((allowed & keys[:, None]) | itself)[:, None]


def omni_mask(blocks: Tensor, valid: Tensor) -> Tensor:
    """Bool (n, 1, length, length), True where a row may attend to a column: causal, bidirectional within each image.

    blocks (n, length): 0 on text, a number of its own on each image. valid (n, length): False at padding, which
    nobody sees. Omni-attention, arXiv 2408.12528, section 3.2.
    """
    order = torch.arange(blocks.shape[1], device=blocks.device)
    together = (blocks[:, :, None] == blocks[:, None]) & (blocks > 0)[:, None]
    return (((order[:, None] >= order) | together) & valid[:, None])[:, None]


def for_attention(backbone: Any, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as the backbone's attention takes it: boolean for the fused kernel, added to the logits for "eager",
    which trains faster on a CPU."""
    if backbone.config._attn_implementation != "eager":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row."""
    return logits.argmax(dim=-1)


def picked(probability: Tensor, uniform: Tensor) -> Tensor:
    """The index that a random number in [0, 1) picks by inverting the cumulative distribution over the last dimension.

    probability (..., values), uniform (..., 1): each row's own randomness, so a sample does not depend on its batch.
    """
    edges = probability.cumsum(dim=-1)
    return (edges < uniform * edges[..., -1:]).sum(dim=-1).clamp(max=probability.shape[-1] - 1)


@torch.no_grad()
def tell(
    model: Any,
    cache: DynamicCache,
    hidden: Tensor,
    valid: Tensor,
    image: int,
    stop: int,
    length: int,
    choose: Callable[[Tensor], Tensor],
    there: Tensor | None = None,
    source: Any = None,
) -> list[list[int]]:
    """Continuation of each row until `stop` or `length` new tokens, after a prefix of source image (if any) and words.

    hidden (n, text, d): states of the words; valid (n, text): False at padding. image: the position of the first word.
    choose: logits (n, vocabulary) -> tokens (n,). there (n, source tokens): as in `segment_mask`, all without. source:
    what `embed_text` of the model takes beside tokens. The model has `logits`, `backbone` and a `text_length` that the
    words and their continuation keep within.
    """
    n, start = len(valid), valid.sum(dim=1)
    token = choose(model.logits(hidden[torch.arange(n, device=valid.device), start - 1]))
    told, done = [token], token == stop
    seen = cache.get_seq_length() - valid.shape[1]
    keys = torch.cat([valid.new_ones(n, seen) if there is None else there, valid], dim=1)
    for step in range(min(length, model.config.text_length - int(start.max())) - 1):
        if bool(done.all()):
            break
        keys = torch.cat([keys, valid.new_ones(n, 1)], dim=1)
        last = model.backbone(
            inputs_embeds=model.embed_text(token[:, None], source),
            attention_mask=for_attention(model.backbone, keys[:, None, None], model.dtype),
            position_ids=(image + start + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        token = choose(model.logits(last[:, -1]))
        told.append(token)
        done |= token == stop
    sequences = torch.stack(told, dim=1).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in sequences]
