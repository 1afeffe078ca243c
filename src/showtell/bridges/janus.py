"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): one language model that reads pictures through an encoder
and writes them as tokens of a VQ-VAE.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import GenerationMixin

from ..errors import ShowtellError
from .base import Text
from .decoding import CausalDecoder, DecodingBridge, TokenRun
from .layout import Grid
from .models import load_model
from .telling import Teller

NAME = "Janus"
CAN = frozenset({"generate", "caption", "answer", "attend"})


class Janus(CausalDecoder):
    scale = 5.0

    def prompt(self, text: str, grid: Grid) -> str:
        processor = self.processor
        if getattr(processor, "chat_template", None) is None:
            return f"<|User|>: {text}\n\n<|Assistant|>:{processor.image_start_token}"
        turn = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        asked = processor.apply_chat_template(turn, add_generation_prompt=True)
        return f"{asked}{processor.image_start_token}"

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    def grid(self, height: int | None, width: int | None) -> Grid:
        config = self.model.config
        side = config.vq_config.num_patches
        pixels = side * 2 ** (len(config.vq_config.channel_multiplier) - 1)
        if (height or pixels, width or pixels) != (pixels, pixels):
            raise ShowtellError(
                f"this model makes {pixels}x{pixels} images; leave height={height} and width={width} out."
            )
        return side, side

    def negative(self, run: TokenRun) -> Text:
        if run.negative_prompts is not None:
            raise ShowtellError("Janus takes no negative_prompt: it guides away from the prompt left out.")
        # The prompt with padding in place of every token but the first, which the model attends to.
        ids = run.text.extra["ids"].clone()
        config = self.model.generation_config
        ids[ids != config.bos_token_id] = config.pad_token_id
        return Text(self.model.get_input_embeddings()(ids), mask=run.text.mask, extra={"ids": ids})

    def embed(self, run: TokenRun, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.prepare_embeddings_for_image_generation(tokens[:, None])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.model.generation_head(hidden)

    def images(self, run: TokenRun, output_type: str) -> list[Any]:
        # As the processor's postprocess, which without torchvision refuses the model's own channel order.
        processor = self.processor.image_processor
        pixels = self.model.decode_image_tokens(run.tokens).float()
        mean, std = (torch.tensor(values).to(pixels) for values in (processor.image_mean, processor.image_std))
        values = pixels * std + mean
        if output_type == "pil":
            levels = (values * 255).clamp(0, 255).byte().cpu().numpy()
            return [Image.fromarray(picture) for picture in levels]
        values = values.clamp(0, 1)
        return list(values.cpu().numpy()) if output_type == "np" else list(values.permute(0, 3, 1, 2))


class JanusBridge(DecodingBridge):
    """A JanusForConditionalGeneration with its JanusProcessor."""

    def __init__(self, model: Any, processor: Any) -> None:
        model.eval()
        # Its own `generate` drops logits processors when it writes text.
        write = partial(GenerationMixin.generate, model, guidance_scale=None)
        teller = Teller(model, processor, question="<|User|>: {image}\n{}\n\n<|Assistant|>:", generate=write)
        super().__init__(Janus(model, processor), NAME, CAN, teller)


def load(source: Any, device: Any = None, dtype: Any = None, processor: Any = None, **more: Any) -> JanusBridge:
    """The bridge of a folder, a hub id or a model in memory; see `load_model`."""
    return JanusBridge(*load_model(source, device, dtype, processor, **more))
