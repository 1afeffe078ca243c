"""How much a text encoder mixes words with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showtell.errors import ShowtellError


@torch.no_grad()
def contributions(bridge: Any, prompt: str, layer: int = -1) -> Tensor:
    """(length, length) How much of token j the text encoder's attention puts into token i: the norm, 0 or more, of what
    all heads of a layer take from j (arXiv 2406.07844, section 4.1), start and end tokens included.

    bridge: of a CLIP model, or over a pipeline whose first text encoder is of CLIP's kind; others raise ShowtellError.
    layer: from 0 for the first, or -1 for the last, backwards.
    """
    own_pipeline = hasattr(bridge, "pipeline")
    encoder: Any = getattr(bridge.pipeline, "text_encoder", None) if own_pipeline else bridge.model.text_model
    inner: Any = getattr(encoder, "text_model", encoder)
    if not hasattr(getattr(inner, "encoder", None), "layers"):
        raise ShowtellError(f"{bridge.name} has no text encoder of CLIP's kind, which this takes apart.")
    tokenizer = bridge.pipeline.tokenizer if own_pipeline else bridge.processor.tokenizer
    ids = tokenizer(prompt, return_tensors="pt", truncation=True).input_ids
    ids = ids.to(inner.embeddings.token_embedding.weight.device)
    block, states = inner.encoder.layers[layer], inner(input_ids=ids, output_hidden_states=True).hidden_states
    own, length = block.self_attn, ids.shape[1]
    given = block.layer_norm1(states[layer - 1 if layer < 0 else layer])
    query, key, value = (
        one(given)[0].unflatten(-1, (own.num_heads, -1)).transpose(0, 1) for one in (own.q_proj, own.k_proj, own.v_proj)
    )
    later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
    weights = (query @ key.transpose(1, 2) * own.scale).masked_fill(later, -torch.inf).softmax(dim=-1)
    taken = (weights[..., None] * value[:, None]).permute(1, 2, 0, 3).flatten(2)  # (i, j, heads * channels)
    return (taken @ own.out_proj.weight.T).norm(dim=-1)
