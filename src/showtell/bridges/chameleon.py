"""Chameleon (arXiv 2405.09818): reads pictures as tokens of its vocabulary. The library lacks the decoder from
tokens to pixels and forbids picture tokens in the output, so it captions and answers, and makes no images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .base import Bridge
from .models import load_model, pictures, save_model, to_device
from .telling import Teller
from .words import Words


class ChameleonBridge(Bridge):
    """A ChameleonForConditionalGeneration with its ChameleonProcessor."""

    name = "Chameleon"
    can = frozenset({"caption", "answer", "attend"})

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.teller = Teller(model, processor, question="{}{image}")

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        """See `Bridge.caption`. Keywords: using, max_new_tokens (64), do_sample, seed, batch_size, and those
        of the library's `generate`.
        """
        return self.teller.caption(self, images, language, **more)

    def answer(self, images: Any, questions: str | Sequence[str], **more: Any) -> list[str]:
        """See `Bridge.answer`. Keywords as `caption`."""
        return self.teller.answer(self, images, questions, **more)

    def words(self, prompt: str, **options: Any) -> Words:
        """Which text keys of a site stand for which word of a question, which precedes the image here."""
        return self.teller.words(prompt)

    @torch.no_grad()
    def image_tokens(self, images: Any) -> torch.Tensor:
        """The vocabulary's tokens for each image, (n, tokens), row by row."""
        inputs = self.processor.image_processor(pictures(images), return_tensors="pt")
        return self.model.get_image_tokens(to_device(inputs, self.model)["pixel_values"])

    def save(self, directory: str | Path) -> None:
        save_model(self.model, self.processor, directory)


def load(source: Any, device: Any = None, dtype: Any = None, processor: Any = None, **more: Any) -> ChameleonBridge:
    """The bridge of a folder, a hub id or a model in memory; see `load_model`."""
    return ChameleonBridge(*load_model(source, device, dtype, processor, **more))
