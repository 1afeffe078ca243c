"""What a CLIP model sees where in a picture, and how well it finds what a prompt names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.errors import ShowtellError
from showtell.language import Split
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


@dataclass(frozen=True)
class Found:
    """A phrase of a prompt in a picture. noun, score: in [0, 1], of its noun and of all of it. where: the noun's map,
    cosines (rows, columns)."""

    phrase: str
    noun: float
    score: float
    where: Tensor


def alignment(clip: Any, images: Any, splits: Sequence[Split], sharpness: float = 10.0) -> list[list[Found]]:
    """How well each picture shows each phrase of its prompt, and where (G-Refine, arXiv 2404.18343).

    A score is sigmoid(sharpness cos) of the picture and the phrase without what the empty text has; where a phrase is
    its noun says. splits: the prompts, taken apart by `language.load().split`.
    """
    whole, patches = dense(clip, images)
    empty = clip.embed(texts=[""]).to(whole)[0]
    found = []
    for one, cells, split in zip(whole, patches, splits, strict=True):
        texts = [text for entity in split.entities for text in (entity.head.text, entity.phrase.text)]
        told = clip.embed(texts=texts).to(whole) - empty if texts else whole[:0]
        scores = torch.sigmoid(sharpness * told @ one).tolist()
        maps = (cells @ told.T).movedim(-1, 0)
        names = [entity.phrase.text for entity in split.entities]
        found.append([Found(n, scores[2 * k], scores[2 * k + 1], maps[2 * k]) for k, n in enumerate(names)])
    return found
