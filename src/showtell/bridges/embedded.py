"""The bridge that comes with the package: one small model for both directions, loaded without any download."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from showtell.bridges.base import Bridge, as_list, spread
from showtell.data.mix import EDIT_LENGTH, SHOW_LENGTH, TELL_LENGTH, Codec
from showtell.data.text import unknown_words
from showtell.errors import ShowtellError
from showtell.nets.flow_lm import FlowLM
from showtell.nets.token_lm import TokenLM
from showtell.pictures import letterbox, to_pil
from showtell.weights import folder

LANGUAGES = ("en", "zh", "es")
STEPS, GUIDANCE = 24, 3.0


class EmbeddedBridge(Bridge):
    """Text to 64x64 images and back, edits, answers, embeddings, by one model of about 7 million parameters.

    model: a FlowLM or a TokenLM. codec: its token layouts. known: the words it was trained on; others are named in a
    warning.
    """

    name = "showtell embedded"
    can = frozenset({"generate", "caption", "answer", "edit", "embed"})

    def __init__(self, model: FlowLM | TokenLM, codec: Codec, known: Sequence[str] = ()) -> None:
        self.model, self.codec, self.known = model.eval(), codec, frozenset(known)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: Any = None, dtype: Any = None) -> EmbeddedBridge:
        from transformers import PreTrainedTokenizerFast

        folder = Path(folder)
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        family = {"showtell_flow_lm": FlowLM, "showtell_token_lm": TokenLM}[kind]
        model = family.from_pretrained(folder, dtype=dtype or torch.float32, use_safetensors=True)
        codec = Codec(PreTrainedTokenizerFast.from_pretrained(folder))
        return cls(model.to(device or "cpu"), codec, json.loads((folder / "words.json").read_text()))

    # --- language to vision ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prompts: Any, *, seed: int | list[int] = 0, guidance_scale: float | None = None,
                 num_inference_steps: int | None = None, output_type: str = "pil", **more: Any) -> list[Any]:  # fmt: skip
        texts = [self._checked(text, "prompt") for text in as_list(prompts)]
        rows = [self._row(self.codec.show(text), SHOW_LENGTH, text) for text in texts]
        return self._show(rows, self.codec.show(None), None, seed, guidance_scale, num_inference_steps, output_type)

    @torch.no_grad()
    def edit(self, images: Any, instructions: Any, *, seed: int | list[int] = 0, guidance_scale: float | None = None,
             num_inference_steps: int | None = None, output_type: str = "pil", **more: Any) -> list[Any]:  # fmt: skip
        source = self._pixels(images)
        texts = [self._checked(t, "instruction") for t in spread(instructions, len(source), "instructions")]
        rows = [self._row(self.codec.edit(text), EDIT_LENGTH, text) for text in texts]
        return self._show(rows, self.codec.edit(None), source, seed, guidance_scale, num_inference_steps, output_type)

    def _show(self, rows: list[list[int]], empty: list[int], source: Tensor | None, seed: int | list[int],
              guidance: float | None, steps: int | None, output_type: str) -> list[Any]:  # fmt: skip
        guidance = GUIDANCE if guidance is None else guidance
        n, device = len(rows), self.model.device
        both = rows if guidance == 1.0 else rows + [empty] * n
        ids, valid = (torch.from_numpy(a).to(device) for a in self.codec.pad(both))
        seeds = seed if isinstance(seed, list) else [seed * 1_000_003 + i for i in range(n)]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        pictures = self._flow if isinstance(self.model, FlowLM) else self._tokens
        made = pictures(ids, valid, source, generators, guidance, steps)
        if output_type == "pt":
            return list(made)
        return to_pil((made * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())

    def _flow(self, ids: Tensor, valid: Tensor, source: Tensor | None, generators: list[torch.Generator],
              guidance: float, steps: int | None) -> Tensor:  # fmt: skip
        model, n = self.model, len(generators)
        assert isinstance(model, FlowLM)
        size = model.config.image_size
        latents = torch.stack([torch.randn(3, size, size, generator=g) for g in generators]).to(model.device)
        times = len(ids) // n
        cache, _ = model.prefix(ids, valid, None if source is None else source.repeat(times, 1, 1, 1))
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps or STEPS, device=model.device)
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i]
            moment = (1 - sigma).expand(len(ids)).to(model.device)
            clean = model.denoise(cache, valid, source is not None, latents.repeat(times, 1, 1, 1), moment)
            if times == 2:
                told, blank = clean.chunk(2)
                clean = blank + guidance * (told - blank)
            latents = scheduler.step((latents - clean) / sigma, t, latents, return_dict=False)[0]
        return (latents.clamp(-1, 1) + 1) / 2

    def _tokens(self, ids: Tensor, valid: Tensor, source: Tensor | None, generators: list[torch.Generator],
                guidance: float, steps: int | None) -> Tensor:  # fmt: skip
        model = self.model
        assert isinstance(model, TokenLM)

        def uniform(shape: tuple[int, ...]) -> Tensor:
            return torch.stack([torch.rand(shape[1:], generator=g) for g in generators]).to(model.device)

        codes = None if source is None else model.tokenizer.encode(source).repeat(len(ids) // len(source), 1)
        made = model.show(ids, valid, codes, uniform, guidance, steps or 16)
        return (model.tokenizer.decode(made).clamp(-1, 1) + 1) / 2

    # --- vision to language ----------------------------------------------------------------------------------------

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        if language not in LANGUAGES:
            raise ShowtellError(f"unsupported language {language!r}; use one of: {', '.join(LANGUAGES)}")
        source = self._pixels(images)
        return self._tell([self.codec.caption(language)] * len(source), source)

    def answer(self, images: Any, questions: Any, **more: Any) -> list[str]:
        source, asked = self._pixels(images), as_list(questions)
        if len(source) == 1:
            source = source.expand(len(asked), -1, -1, -1)
        texts = [self._checked(t, "question") for t in spread(asked if len(asked) > 1 else asked[0], len(source), "questions")]
        return self._tell([self._row(self.codec.ask(text), TELL_LENGTH - 12, text) for text in texts], source)

    def _tell(self, rows: list[list[int]], source: Tensor) -> list[str]:
        ids, valid = (torch.from_numpy(a).to(self.model.device) for a in self.codec.pad(rows))
        stop = self.codec.special["<eos>"]
        if isinstance(self.model, TokenLM):
            source = self.model.tokenizer.encode(source)
        return [self.codec.text(row) for row in self.model.tell(ids, valid, source, stop, TELL_LENGTH)]

    # --- both ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, images: Any = None, texts: Any = None, **more: Any) -> Tensor:
        if (images is None) == (texts is None) or not isinstance(self.model, FlowLM):
            raise ShowtellError("embed takes images=... or texts=..., one of the two")
        if texts is not None:
            rows = [self._row(self.codec.show(self._checked(t, "text")), SHOW_LENGTH, t) for t in as_list(texts)]
            ids, valid = (torch.from_numpy(a).to(self.model.device) for a in self.codec.pad(rows))
            hidden = self.model(ids, valid)[1]
            return self.model.embed_texts(hidden, valid.sum(dim=1) - 1)
        source = self._pixels(images)
        ids, valid = self.codec.pad([self.codec.caption("en")] * len(source))
        device = self.model.device
        seen = self.model(torch.from_numpy(ids).to(device), torch.from_numpy(valid).to(device), source)[0]
        return self.model.embed_images(seen)

    # --- input -----------------------------------------------------------------------------------------------------

    def _pixels(self, images: Any) -> Tensor:
        size = 64
        array = np.stack([np.asarray(letterbox(picture, size)) for picture in to_pil(images)])
        return (torch.from_numpy(array.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1).to(self.model.device)

    def _checked(self, text: Any, what: str) -> str:
        if not isinstance(text, str) or not text.strip():
            raise ShowtellError(f"empty {what}; write a few words")
        if self.known and (strange := unknown_words(text, self.known)):
            warnings.warn(f"words the model has never seen: {', '.join(strange)}", stacklevel=4)
        return text

    def _row(self, row: list[int], limit: int, text: str) -> list[int]:
        if len(row) > limit:
            raise ShowtellError(f"text of {len(text.split())} words is too long for this model; it reads {limit} tokens")
        return row


def load_default(device: Any = None, dtype: Any = None) -> EmbeddedBridge:
    """The packaged bridge."""
    return EmbeddedBridge.from_pretrained(folder("bridge"), device, dtype)
