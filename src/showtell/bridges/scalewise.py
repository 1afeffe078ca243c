"""The scale-wise family: an image is decoded coarse to fine, every scale in one step (`showtell.nets.scalewise`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor

from ..errors import ShowtellError
from ..files import share
from ..nets.scalewise import ScaleWise
from .base import Text
from .decoding import Decoder, DecodingBridge, TokenRun, _warpers, draw
from .layout import Grid, Place
from .words import Piece, warn_of_cut

CAN = frozenset({"generate", "attend"})


class ScaleLayout:
    """Where text and image lie at one scale: its tokens are the queries; words, all scales before it and itself are the
    keys."""

    def __init__(self, layers: int, grids: Sequence[int]) -> None:
        self.layers, self.grids = layers, list(grids)

    def place(self, depth: int, queries: int, keys: int, text: int, step: int, steps: int) -> Place | None:
        side = self.grids[step]
        if depth >= self.layers or queries != side * side or keys <= text:
            return None
        image, name = slice(0, queries), f"layers.{depth}.self_attn"
        return Place(depth, self.layers, name, "joint", (side, side), step, steps, image, slice(0, text),
                     slice(text, keys))  # fmt: skip


class ScaleDecoder(Decoder):
    """One step per scale. `run.tokens`: the codes of the scales so far, one after another."""

    scale = 3.0
    options = frozenset({"do_sample", "temperature", "top_k", "top_p"})

    def __init__(self, model: ScaleWise, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.processor = VaeImageProcessor(vae_scale_factor=1)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def pieces(self) -> list[Piece]:
        return [Piece(self.tokenizer, self.model.config.text_length)]

    def grid(self, height: int | None, width: int | None) -> Grid:
        own = self.model.vae.config.sample_size
        if (height or own, width or own) != (own, own):
            raise ShowtellError(f"this model makes {own}x{own} images; leave height={height} and width={width} out.")
        side = self.model.config.scales[-1]
        return side, side

    def encode(self, prompts: Sequence[str], grid: Grid) -> Text:
        for prompt in prompts:
            warn_of_cut(prompt, self.pieces())
        rows = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.model.config.text_length,
            return_tensors="pt",
        )  # fmt: skip
        ids = rows["input_ids"].to(self.device)
        return Text(self.model.backbone.embed_tokens(ids), mask=rows["attention_mask"].to(self.device))

    def negative(self, run: TokenRun) -> Text:
        return self.encode(run.negative_prompts or [""] * len(run.prompts), run.grid)

    def begin(self, run: TokenRun, branches: dict[str, Text], steps: int | None) -> None:
        run.steps = len(self.model.grids)
        run.tokens = torch.zeros(len(run.prompts), 0, dtype=torch.long, device=self.device)
        text = Text.cat(list(branches.values()))
        assert text.mask is not None
        run.own |= {"cache": self.model.read(text.tokens), "valid": text.mask.bool(), "latents": None}

    def predict(self, run: TokenRun, branches: dict[str, Text]) -> torch.Tensor:
        latents = run.own["latents"]
        latents = None if latents is None else torch.cat([latents] * len(branches))
        return self.model.next(run.step, latents, run.own["cache"], run.own["valid"]).float()

    def choose(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        if run.options.get("do_sample") is False:
            return logits.argmax(dim=-1)
        names = ("temperature", "top_k", "top_p")
        rows = logits.flatten(0, 1)
        for warper in _warpers({name: run.options.get(name) for name in names}):
            rows = warper(None, rows)
        chances = rows.softmax(dim=-1).view(logits.shape)
        if not isinstance(run.generators, list):
            return draw(chances.flatten(0, 1), run.generators).view(chances.shape[:2])
        return torch.stack([draw(row, one) for row, one in zip(chances, run.generators, strict=True)])

    def keep(self, run: TokenRun, chosen: torch.Tensor) -> None:
        run.tokens = torch.cat([run.tokens, chosen], dim=1)
        more, before = self.model.residual(run.step, chosen), run.own["latents"]
        run.own["latents"] = more if before is None else before + more

    def codes(self, run: TokenRun) -> torch.Tensor:
        """All scales of every sample in one row: they form no single grid."""
        return run.tokens

    def images(self, run: TokenRun, output_type: str) -> list[Any]:
        with torch.no_grad():
            pixels = self.model.vae.decode(run.own["latents"].to(self.model.vae.dtype)).sample
        return list(self.processor.postprocess(pixels.float(), output_type=output_type))

    def layout(self, run: TokenRun) -> ScaleLayout:
        return ScaleLayout(self.model.config.num_hidden_layers, self.model.grids)

    def save(self, directory: str | Path) -> None:
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        share(directory)


def load(source: Any, device: Any = None, dtype: Any = None) -> DecodingBridge:
    """The bridge of a folder. Raises ShowtellError where something is missing or damaged."""
    from transformers import CLIPTokenizer

    try:
        kind = dtype or torch.float32
        model = ScaleWise.from_pretrained(source, dtype=kind, use_safetensors=True).eval().to(device or "cpu")
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except Exception as error:  # the libraries meet damaged files with many kinds of exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShowtellError(f"cannot load {source}: {first}") from error
    return DecodingBridge(ScaleDecoder(model, tokenizer), "the scale-wise model", CAN)
