"""Emu3 (arXiv 2409.18869): pictures and text as tokens of one vocabulary, next-token prediction alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from .base import Text
from .decoding import CausalDecoder, DecodingBridge, TokenRun
from .diffusion import check_size
from .layout import Grid
from .models import load_model
from .telling import Teller

CAN = frozenset({"generate", "caption", "answer", "attend"})


class Emu3(CausalDecoder):
    """Rows of picture tokens, each closed by an end-of-line token, which techniques see too: a picture of grid
    (h, w) is h * (w + 1) tokens of the text's vocabulary.
    """

    scale = 3.0

    def prompt(self, text: str, grid: Grid) -> str:
        p, (height, width) = self.processor, grid
        return f"{p.bos_token}{text}{p.image_start_token}{height}*{width}{p.fake_token_around_image}"

    @property
    def language_model(self) -> Any:
        return self.model.model.text_model

    def grid(self, height: int | None, width: int | None) -> Grid:
        factor = self.model.model.vqmodel.vision_spatial_factor
        if not height or not width:
            own = round((self.processor.image_area) ** 0.5 / factor) * factor
            height, width = height or own, width or own
        check_size(height, width, factor)
        return height // factor, width // factor

    def negative(self, run: TokenRun) -> Text:
        return self.encode(run.negative_prompts or [""] * len(run.prompts), run.grid)

    def count(self, run: TokenRun) -> int:
        return run.grid[0] * (run.grid[1] + 1)

    def embed(self, run: TokenRun, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.get_input_embeddings()(tokens[:, None])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(hidden)

    def guide(self, run: TokenRun, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        # The library guides log-probabilities here.
        return super().guide(run, conditional.log_softmax(-1), unconditional.log_softmax(-1))

    def allowed(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        vocabulary = self.model.model.vocabulary_mapping
        ends = run.step % (run.grid[1] + 1) == run.grid[1]
        chosen = [vocabulary.eol_token_id] if ends else vocabulary.image_tokens
        kept = torch.full_like(logits, -torch.inf)
        kept[:, chosen] = logits[:, chosen]
        return kept

    def codes(self, run: TokenRun) -> torch.Tensor:
        height, width = run.grid
        rows = run.tokens.view(len(run.tokens), height, width + 1)
        return self.model.model.vocabulary_mapping.convert_bpe2img(rows)

    def images(self, run: TokenRun, output_type: str) -> list[Any]:
        # The library cuts off three closing tokens, which the loop does not make.
        pixels = self.model.decode_image_tokens(
            image_tokens=pad(run.tokens, (0, 3)), height=run.grid[0], width=run.grid[1]
        ).float()
        if output_type == "pil":
            made = self.processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")
            return list(made["pixel_values"])
        values = (pixels / 2 + 0.5).clamp(0, 1)
        return list(values) if output_type == "pt" else list(values.permute(0, 2, 3, 1).cpu().numpy())


class Emu3Bridge(DecodingBridge):
    """An Emu3ForConditionalGeneration with its Emu3Processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        model.eval()
        teller = Teller(model, processor, question="{image}{}", grid=self._grid)
        super().__init__(Emu3(model, processor), "Emu3", CAN, teller)

    def _grid(self, inputs: dict[str, Any]) -> Grid:
        """(height, width + 1) of a picture's tokens: every row ends in a token of its own."""
        factor = self.teller.processor.downsample_ratio
        height, width = (int(side) // factor for side in inputs["image_sizes"][0])
        return height, width + 1


def load(source: Any, device: Any = None, dtype: Any = None, processor: Any = None, **more: Any) -> Emu3Bridge:
    """The bridge of a folder, a hub id or a model in memory; see `load_model`."""
    return Emu3Bridge(*load_model(source, device, dtype, processor, **more))
