"""Bridges that are given a picture, made from bridges that generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from showtell.bridges.loading import load
from showtell.train.dropping import dropped
from showtell.train.networks import widened
from showtell.train.noising import Noising
from showtell.train.samples import latents_of, paired
from showtell.train.trainer import fit


def editor_of(bridge: Any) -> Any:
    """A bridge that edits, from one that generates: Stable Diffusion or SDXL with the latents of a given picture as
    further channels, blind to them until trained (arXiv 2211.09800, section 3.2)."""
    import diffusers

    parts = {name: part for name, part in bridge.pipeline.components.items() if name != "image_encoder"}
    parts["unet"] = widened(bridge.adapter.denoiser, 2 * bridge.adapter.denoiser.config.in_channels)
    if "text_encoder_2" in parts:
        names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
        return load(diffusers.StableDiffusionXLInstructPix2PixPipeline(**{name: parts[name] for name in names}))
    return load(diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False))


def fit_editor(
    editor: Any, before: Sequence[Any], told: Sequence[str], after: Sequence[Any], steps: int, batch_size: int = 32,
    lr: float = 1e-4, share: float = 0.05, seed: int = 0, **options: Any,
) -> Any:  # fmt: skip
    """Trains the denoiser of an editor (`editor_of`) in place to draw pictures `after` (n) from those `before` (n) and
    what is told of each (n texts); the denoiser, frozen.

    share: of the rows from which the picture, the words and both are left out, so that sampling can be guided by each
    (arXiv 2211.09800, section 3.2.1); 0 leaves nothing out. options: as for `Noising`.
    """
    noising = Noising(editor, image=list(before), **options)
    with torch.no_grad():
        texts, empty = noising.text(told), editor.encode([""])

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        text = texts.rows(batch["row"].long())
        if share:
            text = dropped(text, empty, "channels", generator, share)
        error = noising.loss(noising.noised(batch["latents"], generator), text)
        return error, {"mse": error.detach()}

    denoiser, data = editor.adapter.denoiser.requires_grad_(True), paired(latents_of(editor, after), batch_size)
    fit(denoiser, loss, data, steps=steps, lr=lr, precision="no", seed=seed, progress=False)
    return denoiser.eval().requires_grad_(False)
