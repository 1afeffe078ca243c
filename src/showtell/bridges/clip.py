"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): images and texts as vectors of one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate, normalize

from ..errors import ShowtellError
from .base import Bridge, as_list
from .models import load_model, pictures, save_model, to_device
from .words import Piece, Words, find_words, warn_of_cut


class ClipBridge(Bridge):
    """A CLIPModel or SiglipModel of transformers with its processor."""

    can = frozenset({"embed"})

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.name = type(model).__name__.removesuffix("Model")

    @torch.no_grad()
    def embed(
        self,
        images: Any = None,
        texts: str | Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        unit: bool = True,
        **more: Any,
    ) -> torch.Tensor:
        """Unit vectors, (n, d), of images or of texts; their dot product is the cosine similarity.

        unit: False gives them at the length that the model gives them.
        Texts beyond the encoder's limit are cut, with a warning that names the words.
        Raises ShowtellError: both or neither given, or a further keyword.
        """
        if more:
            raise ShowtellError(f"embed of {self.name} does not take {', '.join(sorted(more))}; only batch_size, unit.")
        if (images is None) == (texts is None):
            raise ShowtellError("embed takes images=... or texts=..., one of the two.")
        items = pictures(images) if texts is None else as_list(texts)
        if not items or (texts is not None and not all(isinstance(text, str) for text in items)):
            raise ShowtellError("texts must be a string or a non-empty list of strings.")
        encode = self._images if texts is None else self._texts
        parts = [encode(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
        vectors = torch.cat(parts).float()
        return normalize(vectors, dim=-1) if unit else vectors

    @torch.no_grad()
    def depths(self, images: Any, count: int) -> list[torch.Tensor]:
        """What the image encoder makes of images at `count` even depths, the last layer last: (n, tokens, width) each.

        Raises ShowtellError for fewer than 1 or more than the encoder has layers.
        """
        inputs = self.processor.image_processor(pictures(images), return_tensors="pt")
        states = self.model.vision_model(**to_device(inputs, self.model), output_hidden_states=True).hidden_states
        layers = len(states) - 1
        if not 1 <= count <= layers:
            raise ShowtellError(f"an image encoder of {layers} layers has no {count} depths; ask for 1 to {layers}.")
        return [states[round(layers * (i + 1) / count)] for i in range(count)]

    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors, (n, d), of pixels (n, 3, height, width) in [0, 1], with gradients to the pixels.

        They are resized to the encoder's square by interpolation, so they are the vectors of `embed` only nearly.
        """
        processor, side = self.processor.image_processor, self.model.config.vision_config.image_size
        if pixels.shape[-2:] != (side, side):
            pixels = interpolate(pixels, (side, side), mode="bicubic", antialias=True)
        mean, deviation = (
            torch.tensor(x).to(pixels).view(3, 1, 1) for x in (processor.image_mean, processor.image_std)
        )
        seen = ((pixels - mean) / deviation).to(self.model.device, self.model.dtype)
        return normalize(_pooled(self.model.get_image_features(pixel_values=seen)).float(), dim=-1)

    def words(self, prompt: str, **options: Any) -> Words:
        """Which tokens of the text encoder stand for which word."""
        return find_words(prompt, self._pieces())

    def save(self, directory: str | Path) -> None:
        save_model(self.model, self.processor, directory)

    def _pieces(self) -> list[Piece]:
        return [Piece(self.processor.tokenizer, self.model.config.text_config.max_position_embeddings)]

    def _images(self, images: list[Any]) -> torch.Tensor:
        inputs = self.processor.image_processor(images, return_tensors="pt")
        return _pooled(self.model.get_image_features(**to_device(inputs, self.model)))

    def _texts(self, texts: list[str]) -> torch.Tensor:
        piece = self._pieces()[0]
        for text in texts:
            warn_of_cut(text, [piece])
        # SigLIP reads its padding: it was trained with all of it, CLIP never attends to it.
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        inputs = self.processor.tokenizer(
            texts, padding=padding, truncation=True, max_length=piece.length, return_tensors="pt"
        )
        return _pooled(self.model.get_text_features(**to_device(inputs, self.model)))


def _pooled(output: Any) -> torch.Tensor:
    """The projected vectors; older transformers return the tensor itself."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def load(source: Any, device: Any = None, dtype: Any = None, processor: Any = None, **more: Any) -> ClipBridge:
    """The bridge of a folder, a hub id or a model in memory; see `load_model`."""
    return ClipBridge(*load_model(source, device, dtype, processor, **more))
