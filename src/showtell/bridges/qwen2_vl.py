"""Qwen2-VL's processor without its video part, which the library builds only where torchvision is installed."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.processing_utils import ProcessorMixin


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """Pictures and text as the library's class gives them; no clips. Named alike, as what it saves is the same."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **more: Any
    ) -> None:
        # The library's own constructor asks for the class of video processors, which needs torchvision.
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def picture_processor(folder: str, **where: Any) -> Qwen2VLProcessor:
    """The processor of a folder or hub id."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    images = transformers.AutoImageProcessor.from_pretrained(folder, **where)
    return Qwen2VLProcessor(images, tokenizer, chat_template=getattr(tokenizer, "chat_template", None))
