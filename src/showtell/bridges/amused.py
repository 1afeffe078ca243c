"""aMUSEd (arXiv 2401.01808), a MaskGIT-like masked transformer: every step chooses all tokens and masks the
least confident again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ShowtellError
from ..files import share
from .base import Text
from .decoding import Decoder, DecodingBridge, TokenRun
from .diffusion import check_size
from .layout import Grid, TokenLayout, attention_calls, halvings
from .words import Piece, warn_of_cut


class Amused(Decoder):
    steps = 12
    scale = 10.0
    options = frozenset({"temperature", "micro_conditioning_aesthetic_score", "micro_conditioning_crop_coord"})

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def device(self) -> torch.device:
        return self.pipeline._execution_device

    def pieces(self) -> list[Piece]:
        return [Piece(self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length)]

    def grid(self, height: int | None, width: int | None) -> Grid:
        factor = self.pipeline.vae_scale_factor
        own = self.pipeline.transformer.config.sample_size * factor
        multiple = factor * (2 if self.pipeline.transformer.config.downsample else 1)
        height, width = height or own, width or own
        check_size(height, width, multiple)
        return height // factor, width // factor

    def encode(self, prompts: Sequence[str], grid: Grid) -> Text:
        tokenizer = self.pipeline.tokenizer
        for prompt in prompts:
            warn_of_cut(prompt, self.pieces())
        inputs = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        output = self.pipeline.text_encoder(inputs.input_ids.to(self.device), output_hidden_states=True)
        return Text(output.hidden_states[-2], output.text_embeds)

    def negative(self, run: TokenRun) -> Text:
        return self.encode(run.negative_prompts or [""] * len(run.prompts), run.grid)

    def begin(self, run: TokenRun, branches: dict[str, Text], steps: int | None) -> None:
        # The run's own, as it keeps the schedule.
        run.scheduler = copy.deepcopy(self.pipeline.scheduler)
        temperature = run.options.get("temperature", (2, 0))
        run.scheduler.set_timesteps(steps or self.steps, temperature, self.device)
        run.timesteps = run.scheduler.timesteps
        run.steps = len(run.timesteps)
        rows, (height, width) = len(run.prompts), run.grid
        given = run.options.get("latents")
        if given is None:
            given = torch.full((rows, height * width), run.scheduler.config.mask_token_id, device=self.device)
        elif tuple(given.shape) != (rows, height, width):
            raise ShowtellError(
                f"latents have the shape {tuple(given.shape)}; this call needs {(rows, height, width)}."
            )
        run.tokens = given.reshape(rows, -1).long().to(self.device)
        factor = self.pipeline.vae_scale_factor
        crop = run.options.get("micro_conditioning_crop_coord", (0, 0))
        score = run.options.get("micro_conditioning_aesthetic_score", 6)
        # Width before height, as the model was trained.
        sizes = torch.tensor([width * factor, height * factor, *crop, score], device=self.device)
        run.own["sizes"] = sizes.to(run.text.tokens.dtype)

    def predict(self, run: TokenRun, branches: dict[str, Text]) -> torch.Tensor:
        text = Text.cat(list(branches.values()))
        tokens = torch.cat([run.tokens.view(-1, *run.grid)] * len(branches))
        logits = self.pipeline.transformer(
            tokens,
            micro_conds=run.own["sizes"].expand(len(tokens), -1),
            pooled_text_emb=text.pooled,
            encoder_hidden_states=text.tokens,
        )
        return logits.flatten(2).transpose(1, 2)

    def choose(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        generators = run.generators
        if not isinstance(generators, list):
            return self._step(run, logits, run.tokens, generators)
        rows = [self._step(run, logits[i : i + 1], run.tokens[i : i + 1], one) for i, one in enumerate(generators)]
        return torch.cat(rows)

    def _step(self, run: TokenRun, logits: torch.Tensor, tokens: torch.Tensor, generator: Any) -> torch.Tensor:
        return run.scheduler.step(logits, run.timestep, tokens, generator=generator).prev_sample

    def keep(self, run: TokenRun, chosen: torch.Tensor) -> None:
        run.tokens = chosen

    def images(self, run: TokenRun, output_type: str) -> list[Any]:
        vae, rows = self.pipeline.vqvae, len(run.tokens)
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            vae.float()
        shape = (rows, *run.grid, vae.config.latent_channels)
        tokens = run.tokens.view(rows, *run.grid)
        pixels = vae.decode(tokens, force_not_quantize=True, shape=shape).sample.clip(0, 1)
        images = list(self.pipeline.image_processor.postprocess(pixels, output_type))
        if upcast:
            vae.half()
        self.pipeline.maybe_free_model_hooks()
        return images

    def layout(self, run: TokenRun) -> TokenLayout:
        def kind(name: str, module: Any) -> str:
            return "cross" if name.endswith("attn2") else "self"

        order = ("down_block", "transformer_layers", "up_block")
        return TokenLayout(
            attention_calls(self.pipeline.transformer, kind, order), halvings(run.grid[0], run.grid[1], 2)
        )

    def save(self, directory: str | Path) -> None:
        self.pipeline.save_pretrained(directory, safe_serialization=True)
        share(directory)


def load(pipeline: Any) -> DecodingBridge:
    """The bridge of a loaded AmusedPipeline."""
    bridge = DecodingBridge(Amused(pipeline), "aMUSEd", frozenset({"generate", "attend"}))
    bridge.pipeline = pipeline  # type: ignore[attr-defined]
    return bridge
