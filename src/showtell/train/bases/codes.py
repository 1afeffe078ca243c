"""Image tokens for the bases that write them: the autoencoder's latents by their nearest code, learned by k-means.

Encoder and decoder are the packaged autoencoder's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.data.signal import to_signal
from showtell.train.bases.pool import packaged_vae, pool_scenes, read_pool
from showtell.train.objectives import reconstruction
from showtell.train.recipe import Recipe
from showtell.world import draw

Loss = tuple[Tensor, dict[str, Tensor]]

CODES = 1024
SCALES = (1, 2, 4, 8, 16)  # sides of the residual maps of the scale-wise base


def distinct(vectors: Tensor, grain: float = 0.02, most: int = 150_000) -> Tensor:
    """The different vectors (n, c) of a set, so that plain background, which most of it is, takes no more than its one
    code; at most so many, evenly picked."""
    found = torch.unique((vectors / grain).round(), dim=0) * grain
    return found[torch.linspace(0, len(found) - 1, min(most, len(found))).long()]


def nearest(vectors: Tensor, codebook: Tensor, chunk: int = 65_536) -> Tensor:
    """Index of the nearest code, (n,) of (n, c) and (codes, c)."""
    half = codebook.square().sum(dim=1) / 2
    return torch.cat([(part @ codebook.T - half).argmax(dim=1) for part in vectors.split(chunk)])


def k_means(vectors: Tensor, codes: int, rounds: int = 15, seed: int = 0) -> Tensor:
    """Codebook (codes, c) of Lloyd's algorithm; a code that nothing is nearest to moves to a vector drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(vectors), generator=generator)[:codes]
    book = vectors[places.repeat(-(-codes // len(places)))[:codes]].clone()
    for _ in range(rounds):
        index = nearest(vectors, book)
        count = torch.bincount(index, minlength=codes)
        total = torch.zeros_like(book).index_add_(0, index, vectors)
        drawn = vectors[torch.randint(len(vectors), (codes,), generator=generator)]
        book = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], drawn)
    return book


def flat(latents: Tensor) -> Tensor:
    """(n, c, h, w) -> (n * h * w, c)."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


# --- vq --------------------------------------------------------------------------------------------------------------


def vq(codes: int = CODES, rows: int = 4000) -> Any:
    """A VQModel, 256 tokens an image: the packaged autoencoder with a codebook for its latents. What is left to train
    is the decoder, which has only seen latents as they are."""
    latents = torch.from_numpy(read_pool(packaged_vae())[0][:rows, 0].astype(np.float32))
    model = vq_of(packaged_vae(), k_means(distinct(flat(latents)), codes))
    model.decoder.requires_grad_(True)
    return model


def pictures(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Batches of {image} of the bases' world."""
    return lambda rng, size: {"image": draw(pool_scenes(rng, size))}


def decoder_loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Reconstruction from the image's tokens."""
    clean = to_signal(batch["image"])
    with torch.no_grad():
        latents = model.encode(clean).latents.float()
        tokens = nearest(flat(latents), model.quantize.embedding.weight)
    side = latents.shape[-1]
    made = model.decode(tokens, force_not_quantize=True, shape=(len(clean), side, side, latents.shape[1])).sample
    parts = reconstruction(made.float(), clean)
    return parts["pixels"] + parts["edges"], {name: value.detach() for name, value in parts.items()}


def vq_of(vae: Any, codebook: Tensor) -> Any:
    """A VQModel with the encoder and decoder of an AutoencoderKL, quantising its means."""
    from diffusers import VQModel

    config = vae.config
    shared = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups",
              "latent_channels", "mid_block_add_attention", "sample_size")  # fmt: skip
    model = VQModel(
        **{name: config[name] for name in shared}, num_vq_embeddings=len(codebook), scaling_factor=1.0,
        lookup_from_codebook=True,
    )  # fmt: skip
    own, count = model.state_dict(), config.latent_channels
    weights = {name: value for name, value in vae.state_dict().items() if not name.startswith("encoder.conv_out")}
    weights = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    # The last convolution of the encoder and the means' half of the one after it, as one.
    mix = vae.quant_conv.weight[:count, :, 0, 0]
    last = vae.encoder.conv_out
    weights["encoder.conv_out.weight"] = torch.einsum("oi,ichw->ochw", mix, last.weight)
    weights["encoder.conv_out.bias"] = mix @ last.bias + vae.quant_conv.bias[:count]
    weights["quant_conv.weight"] = torch.eye(count)[:, :, None, None]
    weights["quant_conv.bias"] = torch.zeros(count)
    weights["quantize.embedding.weight"] = codebook
    model.load_state_dict({**own, **weights})
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=2)
def _frozen_vq(path: Path) -> Any:
    from diffusers import VQModel

    return VQModel.from_pretrained(path, torch_dtype=torch.float32, use_safetensors=True).eval().requires_grad_(False)


def packaged_vq() -> Any:
    """The packaged VQModel in float32, frozen; a copy, as saving a pipeline changes its parts."""
    from showtell.weights import folder

    return copy.deepcopy(_frozen_vq(folder("vq")))


@torch.no_grad()
def to_codes(vq: Any, images: Tensor, chunk: int = 500) -> Tensor:
    """Tokens (n, side * side) of images (n, 3, h, w) in [-1, 1], the nearest codes of a VQModel."""
    book = vq.quantize.embedding.weight
    parts = [flat(vq.encode(part.to(book.dtype)).latents.float()) for part in images.split(chunk)]
    return nearest(torch.cat(parts), book.float()).view(len(images), -1)


@torch.no_grad()
def from_codes(vq: Any, codes: Tensor) -> Tensor:
    """Images (n, 3, h, w) of tokens (n, side * side), as the VQModel's decoder gives them."""
    side = math.isqrt(codes.shape[1])
    shape = (len(codes), side, side, vq.quantize.embedding.weight.shape[1])
    return vq.decode(codes.flatten(), force_not_quantize=True, shape=shape).sample.float()


@torch.no_grad()
def unit_range(vq: Any) -> Any:
    """The VQModel, whose decoder now gives images in [0, 1] instead of [-1, 1]: aMUSEd's pipeline wants them so."""
    last = vq.decoder.conv_out
    last.weight.mul_(0.5)
    last.bias.mul_(0.5).add_(0.5)
    return vq


@torch.no_grad()
def read_codes() -> tuple[np.ndarray, list[list[str]]]:
    """(tokens (rows, 256) int16, captions) of the pool of scenes."""
    latents, captions = read_pool(packaged_vae())
    book = packaged_vq().quantize.embedding.weight
    parts = [nearest(flat(torch.from_numpy(part.astype(np.float32))), book) for part in np.array_split(
        latents[:, 0], max(1, len(latents) // 1000))]  # fmt: skip
    return torch.cat(parts).view(len(latents), -1).numpy().astype(np.int16), captions


# --- scales ----------------------------------------------------------------------------------------------------------


def down(latents: Tensor, side: int) -> Tensor:
    """Averages (n, c, h, h) -> (n, c, side, side)."""
    return torch.nn.functional.adaptive_avg_pool2d(latents, side)


def up(latents: Tensor, side: int) -> Tensor:
    """(n, c, s, s) -> (n, c, side, side), bilinear."""
    return torch.nn.functional.interpolate(latents, size=(side, side), mode="bilinear", align_corners=False)


def fit_scales(latents: Tensor, codes: int, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Codebooks (scales, codes, c) of the residuals, scale after scale (arXiv 2404.02905, algorithm 1)."""
    left, books = latents, []
    for side in scales:
        residual = flat(down(left, side))
        books.append(k_means(distinct(residual), codes))
        left = left - up(_map(nearest(residual, books[-1]), books[-1], side), latents.shape[-1])
    return torch.stack(books)


def _map(codes: Tensor, book: Tensor, side: int) -> Tensor:
    """Codes (n * side * side,) -> (n, c, side, side)."""
    return book[codes].view(-1, side, side, book.shape[1]).permute(0, 3, 1, 2)


def to_scales(latents: Tensor, books: Tensor, scales: tuple[int, ...] = SCALES) -> list[Tensor]:
    """Codes of latents (n, c, h, h) at every scale, (n, side * side) each."""
    left, found = latents, []
    for side, book in zip(scales, books, strict=True):
        codes = nearest(flat(down(left, side)), book)
        left = left - up(_map(codes, book, side), latents.shape[-1])
        found.append(codes.view(len(latents), -1))
    return found


def from_scales(codes: list[Tensor], books: Tensor, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Latents (n, c, h, h) of codes at the first scales, h being the side of the last of all scales."""
    parts = [up(_map(part.flatten(), book, side), scales[-1]) for part, book, side in zip(codes, books, scales)]
    return torch.stack(parts).sum(dim=0)


RECIPES: dict[str, Recipe] = {
    "vq": Recipe(
        "image tokens: latents by nearest code, 256 an image", vq, pictures, decoder_loss, 1500, 16, 5e-4,
    ),
}  # fmt: skip
