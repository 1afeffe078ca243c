"""Vision-language models of transformers that caption and answer: LLaVA (arXiv 2304.08485), Qwen2-VL (arXiv
2409.12191), BLIP-2 (arXiv 2301.12597).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Bridge
from .layout import Grid
from .models import load_model, save_model
from .telling import Teller
from .words import Words

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

    can = frozenset({"caption", "answer", "attend"})

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.name = type(model).__name__.removesuffix("ForConditionalGeneration")
        caption, question = TEMPLATES.get(model.config.model_type, (None, "{image}\n{}"))
        self.teller = Teller(model, processor, caption, question, grid=self._grid)

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        """See `Bridge.caption`. Keywords: using, max_new_tokens (64), do_sample, seed, batch_size, and those
        of the library's `generate`.
        """
        return self.teller.caption(self, images, language, **more)

    def answer(self, images: Any, questions: str | Sequence[str], **more: Any) -> list[str]:
        """See `Bridge.answer`. Keywords as `caption`."""
        return self.teller.answer(self, images, questions, **more)

    def words(self, prompt: str, **options: Any) -> Words:
        """Which text keys of a site stand for which word of a question; counted from the end of the image."""
        return self.teller.words(prompt)

    def _grid(self, inputs: dict[str, Any]) -> Grid:
        """(height, width) of the image's tokens; BLIP-2's queries have no place in the image."""
        if "image_grid_thw" in inputs:
            _, height, width = inputs["image_grid_thw"][0].tolist()
            merged = self.model.config.vision_config.spatial_merge_size
            return height // merged, width // merged
        count = int((inputs["input_ids"][0] == self.model.config.image_token_id).sum())
        side = round(count**0.5)
        square = side * side == count and self.model.config.model_type != "blip-2"
        return (side, side) if square else (1, count)

    def save(self, directory: str | Path) -> None:
        save_model(self.model, self.processor, directory)


def load(
    source: Any, device: Any = None, dtype: Any = None, processor: Any = None, **more: Any
) -> VisionLanguageBridge:
    """The bridge of a folder, a hub id or a model in memory; see `load_model`."""
    return VisionLanguageBridge(*load_model(source, device, dtype, processor, _processor, **more))


def _processor(folder: str, **where: Any) -> Any:
    import transformers
    from transformers.utils import is_torchvision_available

    kind = transformers.AutoConfig.from_pretrained(folder, **where).model_type
    if kind == "qwen2_vl" and not is_torchvision_available():
        from .qwen2_vl import picture_processor

        return picture_processor(folder, **where)
    return transformers.AutoProcessor.from_pretrained(folder, **where)
