"""What a CLIP model sees where in a picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.errors import ShowtellError
from showtell.pictures import to_pil


@torch.no_grad()
def dense(clip: Any, images: Any) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures, (n, d), and of their patches, (n, rows, columns, d), in CLIP's space.

    Patches are those of the last layer with attention of values to values, softmax(V V^T / |V|) V, and without its
    feed-forward part, so that each speaks of its own place (CLIP Surgery, arXiv 2304.05653).
    clip: the bridge of a CLIP model; others raise ShowtellError. images: as `to_pil` takes them.
    """
    vision: Any = getattr(clip.model, "vision_model", None)
    if not hasattr(clip.model, "visual_projection"):
        raise ShowtellError(f"{clip.name} has no class token to tell patches by; use a CLIP model.")
    pixels = clip.processor.image_processor(to_pil(images), return_tensors="pt")["pixel_values"]
    seen = vision(pixel_values=pixels.to(clip.model.device, clip.model.dtype), output_hidden_states=True)
    layer, states = vision.encoder.layers[-1], seen.hidden_states[-2]
    own = layer.self_attn
    values = own.v_proj(layer.layer_norm1(states)).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
    alike = values @ values.transpose(-2, -1) / values.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    mixed = own.out_proj((alike.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))
    patches = clip.model.visual_projection(vision.post_layernorm(states + mixed))[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    whole = clip.model.visual_projection(seen.pooler_output)
    return F.normalize(whole.float(), dim=-1), F.normalize(patches.float(), dim=-1).unflatten(1, (side, side))
