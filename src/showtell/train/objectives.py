"""Losses of models that map both ways. Each takes (model, batch, generator) and gives (loss, numbers to log)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from showtell.data.signal import to_signal
from showtell.nets.flow_lm import FlowLM, Source, Things
from showtell.nets.scene_parser import SceneParser, parser_loss
from showtell.train.bases.attention import plain_attention

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Batch = dict[str, Tensor]
Loss = tuple[Tensor, dict[str, Tensor]]
Head = Callable[[Tensor], Tensor]


def draw_time(n: int, like: Tensor, generator: torch.Generator | None, mean: float, spread: float = 1.0) -> Tensor:
    """Logit-normal times in (0, 1) (arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(torch.randn(n, generator=generator, device=like.device) * spread + mean)


def word_loss(states: Tensor, ids: Tensor, valid: Tensor, start: Tensor, head: Head = lambda logits: logits) -> Tensor:
    """Cross entropy of ids from position `start` (n,) on, each predicted by the position before it.

    states (n, length, d); head: states (k, d) -> logits (k, vocabulary), applied only where something is predicted.
    """
    order = torch.arange(ids.shape[1], device=ids.device)
    return told_loss(states, ids, valid & (order >= start[:, None]), head)


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of paired unit vectors (arXiv 2103.00020, figure 3)."""
    logits = log_scale.exp().clamp(max=100) * images @ texts.T
    pairs = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def told_loss(states: Tensor, ids: Tensor, wanted: Tensor, head: Head = lambda logits: logits) -> Tensor:
    """Cross entropy of the ids (n, length) that are `wanted` (n, length), each predicted by the position before it."""
    wanted = wanted[:, 1:]
    return F.cross_entropy(head(states[:, :-1][wanted]).float(), ids[:, 1:][wanted])


def reply_loss(states: Tensor, ids: Tensor, wanted: Tensor, head: Head = lambda logits: logits) -> Tensor:
    """As `told_loss`, but every row counts alike, an answer of one word as much as a long caption."""
    wanted = wanted[:, 1:]
    each = F.cross_entropy(head(states[:, :-1][wanted]).float(), ids[:, 1:][wanted], reduction="none")
    share = (1 / wanted.sum(dim=1, keepdim=True).clamp(min=1)).expand(wanted.shape)[wanted]
    return (each * share).sum() / wanted.any(dim=1).sum().clamp(min=1)


def by_length(
    model: FlowLM, ids: Tensor, valid: Tensor, source: Source | None = None, parts: int = 3
) -> tuple[Tensor | None, Tensor]:
    """As model(ids, valid, source), in parts of rows of about the same length: less is spent on padding."""
    lengths = valid.sum(dim=1)
    order, length = lengths.argsort(stable=True), ids.shape[1]
    found = []
    for rows in order.chunk(parts):
        longest = int(lengths[rows].max())
        own = source.rows(rows) if isinstance(source, Things) else None if source is None else source[rows]
        seen, hidden = model(ids[rows, :longest], valid[rows, :longest], own)
        found.append((seen, F.pad(hidden, (0, 0, 0, length - longest))))
    back = order.argsort()
    all_seen = None if source is None else torch.cat([seen for seen, _ in found if seen is not None])[back]
    return all_seen, torch.cat([hidden for _, hidden in found])[back]


def reading_objective(model: FlowLM, batch: Batch, generator: torch.Generator | None) -> Loss:
    """What a FlowLM's language model learns: plans of prompts, words about things and pictures, what instructions
    change, sketches by regression, embeddings by contrast. See `data.mix` for the batch, of words."""
    ids, valid, start = (batch[f"show_{name}"] for name in ("ids", "valid", "start"))
    _, hidden = by_length(model, ids, valid)
    parts = {"plan": word_loss(hidden, ids, valid, start + 1, model.logits)}
    for name in ("tell", "change", "look"):
        if f"{name}_ids" in batch:
            read = to_signal(batch["look_image"]) if name == "look" else _things(batch, name)
            seen, words = by_length(model, batch[f"{name}_ids"], batch[f"{name}_valid"], read)
            parts[name] = reply_loss(words, batch[f"{name}_ids"], batch[f"{name}_wanted"], model.logits)
    assert seen is not None
    count = len(seen)  # the last prompts say what the pictures show
    ids, valid, hidden = ids[-count:], valid[-count:], hidden[-count:]
    split = (ids == model.config.separator).int().argmax(dim=1)
    parts["contrast"] = contrastive_loss(model.embed_images(seen), model.embed_texts(hidden, split), model.temperature)
    clean = to_signal(batch["look_clean"])
    thumbnail = F.adaptive_avg_pool2d(clean, model.latent_size)
    parts["sketch"] = (model.sketch(hidden, valid.sum(dim=1) - 1).float() - thumbnail).square().mean()
    weights = {"plan": 0.5, "tell": 1.0, "change": 0.5, "look": 0.5, "contrast": 0.05, "sketch": 2.0}
    loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return loss, {name: value.detach() for name, value in parts.items()}


def _things(batch: Batch, name: str) -> Things:
    return Things(batch[f"{name}_words"], batch[f"{name}_places"])


def drawing_objective(model: FlowLM, batch: Batch, generator: torch.Generator | None) -> Loss:
    """What a FlowLM's denoiser learns, its language model as it is: rectified flow to the pictures of prompts, and to
    those that instructions make of others (arXiv 2403.03206, equation 14 with logit-normal times). See `data.mix` for
    the batch, of pictures."""
    kinds = [name for name in ("show", "edit") if f"{name}_ids" in batch]
    each = {}
    for kind in kinds:
        ids, valid, edits = batch[f"{kind}_ids"], batch[f"{kind}_valid"], kind == "edit"
        with torch.no_grad():
            hidden = model(ids, valid)[1]
            before = model.latents_of(to_signal(batch["edit_source"])).float() if edits else None
            clean = model.latents_of(to_signal(batch["edit_target" if edits else "show_image"])).float()
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        time = draw_time(len(clean), clean, generator, 0.0)
        share = time[:, None, None, None]
        with plain_attention():
            beside = model.beside(ids, valid, hidden, before)
            made = model.draw((1 - share) * clean + share * noise, time, hidden, valid, beside)
        each[kind] = (made.float() - (noise - clean)).square().mean()
    loss = torch.stack([len(batch[f"{kind}_ids"]) * value for kind, value in each.items()]).sum()
    return loss / len(batch["show_ids"]), {name: value.detach() for name, value in each.items()}


def parser_objective(model: SceneParser, batch: Batch, generator: torch.Generator | None) -> Loss:
    """Dense prediction of scenes, and a closer look at their objects, see `nets.scene_parser.parser_loss`; `image`
    uint8, the rest as `data.targets`."""
    loss, parts = parser_loss(model, to_signal(batch["image"]), batch, generator)
    return loss, {name: value.detach() for name, value in parts.items()}


def reconstruction(made: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Absolute error, and the same on edges so that thin lines and textures stay sharp; images in [-1, 1]."""
    apart = made - clean
    return {"pixels": apart.abs().mean(), "edges": apart.diff(dim=2).abs().mean() + apart.diff(dim=3).abs().mean()}


def autoencoder_objective(
    model: AutoencoderKL, batch: Batch, generator: torch.Generator | None, weight: float = 1e-3
) -> Loss:
    """Reconstruction from a sampled latent, and a weak pull of the latents to N(0, 1) (arXiv 1312.6114, appendix B);
    weight: of the divergence in nats per number."""
    clean = to_signal(batch["image"])
    latents = model.encode(clean).latent_dist
    made = model.decode(latents.sample(generator)).sample.float()
    parts = reconstruction(made, clean)
    mean, log_variance = latents.mean.float(), latents.logvar.float()
    parts["kl"] = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss = parts["pixels"] + parts["edges"] + weight * parts["kl"]
    return loss, {name: value.detach() for name, value in parts.items()}
