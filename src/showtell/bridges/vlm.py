"""Vision-language models of transformers that caption and answer: LLaVA (arXiv 2304.08485), Qwen2-VL (arXiv
2409.12191), BLIP-2 (arXiv 2301.12597).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Bridge
from .models import load_model, save_model
from .telling import Teller

# How a request is put to models whose processor has no chat template: (caption, question).
TEMPLATES: dict[str, tuple[str | None, str]] = {
    "llava": (None, "USER: {image}\n{} ASSISTANT:"),
    "qwen2_vl": (
        None,
        "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    # The processor puts the image in front; a caption is what follows an empty text.
    "blip-2": ("", "Question: {} Answer:"),
}


class VisionLanguageBridge(Bridge):
    """A transformers image-text-to-text model with its processor."""

    can = frozenset({"caption", "answer"})

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.name = type(model).__name__.removesuffix("ForConditionalGeneration")
        caption, question = TEMPLATES.get(model.config.model_type, (None, "{image}\n{}"))
        self.teller = Teller(model, processor, caption, question)

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        """See `Bridge.caption`. Keywords: using, max_new_tokens (64), do_sample, seed, batch_size, and those
        of the library's `generate`.
        """
        return self.teller.caption(self, images, language, **more)

    def answer(self, images: Any, questions: str | Sequence[str], **more: Any) -> list[str]:
        """See `Bridge.answer`. Keywords as `caption`."""
        return self.teller.answer(self, images, questions, **more)

    def save(self, directory: str | Path) -> None:
        save_model(self.model, self.processor, directory)


def load(source: Any, device: Any = None, dtype: Any = None) -> VisionLanguageBridge:
    """The bridge of a folder or hub id."""
    name = "showtell.bridges.vlm.VisionLanguageBridge"
    return VisionLanguageBridge(*load_model(source, name, device, dtype, _processor))


def _processor(folder: str) -> Any:
    import transformers
    from transformers.utils import is_torchvision_available

    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    if kind == "qwen2_vl" and not is_torchvision_available():
        from .qwen2_vl import picture_processor

        return picture_processor(folder)
    return transformers.AutoProcessor.from_pretrained(folder)
