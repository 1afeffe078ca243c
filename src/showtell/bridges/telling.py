"""Images to text by transformers models: prompts, the library's own `generate`, and techniques attached to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ..errors import ShowtellError
from .base import Bridge, Run, Technique, apply_hooks, as_list, overriding, spread
from .models import pictures, to_device

DESCRIBE = {
    "en": "Describe this image in one sentence.",
    "es": "Describe esta imagen en una frase.",
    "zh": "用一句话描述这张图片。",
}


class Teller:
    """A transformers model that reads images and writes text, with its processor.

    caption, question: the text around a request, `{}` where it goes, for models without a chat template;
        `{image}` becomes the processor's image token. caption None: requests for captions are questions.
    generate: the library's `generate` of this model, where it is not the model's own.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        caption: str | None = None,
        question: str = "{image}\n{}",
        generate: Any = None,
    ) -> None:
        self.model, self.processor = model, processor
        self._caption, self._question = question if caption is None else caption, question
        self._write = generate or model.generate

    def caption(self, bridge: Bridge, images: Any, language: str, **more: Any) -> list[str]:
        """A sentence per image; `more` as `ask`."""
        if language not in DESCRIBE:
            raise ShowtellError(f"unsupported language {language!r}; use one of: {', '.join(DESCRIBE)}.")
        silent = "{}" not in self._caption and not self._chats
        if silent and language != "en":
            raise ShowtellError(f"{bridge.name} captions in English only, as it takes no request; use answer.")
        found = pictures(images)
        return self.ask(bridge, found, [DESCRIBE[language]] * len(found), template=self._caption, **more)

    def answer(self, bridge: Bridge, images: Any, questions: str | Sequence[str], **more: Any) -> list[str]:
        """An answer per image and question, one of either for all of the other; `more` as `ask`."""
        found, asked = pictures(images), as_list(questions)
        if not asked or not all(isinstance(text, str) and text.strip() for text in asked):
            raise ShowtellError("questions must be a string or a non-empty list of strings, none of them empty.")
        count = max(len(found), len(asked))
        found = spread(found if len(found) > 1 else found[0], count, "images")
        asked = spread(asked if len(asked) > 1 else asked[0], count, "questions")
        return self.ask(bridge, found, asked, template=self._question, **more)

    @torch.no_grad()
    def ask(
        self,
        bridge: Bridge,
        images: list[Any],
        texts: list[str],
        template: str,
        using: Sequence[Technique] = (),
        max_new_tokens: int = 64,
        do_sample: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        **more: Any,
    ) -> list[str]:
        """What the model writes, greedily unless `do_sample` (which draws from `seed`).

        using: techniques; their `prompt`, `logits`, `tokens` and `finish` hooks are called.
        more: further keywords of the library's `generate`. Raises ShowtellError for those it does not know.
        """
        if using and more.get("num_beams", 1) != 1:
            raise ShowtellError("techniques steer one sequence per sample; leave num_beams out.")
        size = batch_size or len(texts)
        outputs: list[str] = []
        for first in range(0, len(texts), size):
            part = slice(first, first + size)
            run = Run(bridge, texts[part], using)
            run.steps, run.options = max_new_tokens, dict(more)
            run.prompts = apply_hooks(run, "prompt", run.prompts)
            inputs = self._inputs(images[part], [self._prompt(text, template) for text in run.prompts])
            more |= {"do_sample": do_sample, "max_new_tokens": max_new_tokens}
            if using:
                more["logits_processor"] = LogitsProcessorList([_Steered(run, do_sample)])
            with torch.random.fork_rng(enabled=do_sample):
                if do_sample:
                    torch.manual_seed(seed + first)
                written = self._written(inputs, self._generate(inputs, more))
            outputs += apply_hooks(run, "finish", [text.strip() for text in written])
        return outputs

    @property
    def _chats(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _prompt(self, text: str, template: str) -> str:
        if self._chats:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            turn = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(turn, add_generation_prompt=True)
        token = getattr(self.processor, "image_token", "")
        return template.replace("{image}", str(token)).replace("{}", text)

    def _inputs(self, images: list[Any], texts: list[str]) -> dict[str, Any]:
        side = "right" if self._encoder_decoder else "left"
        inputs = self.processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
        return to_device(inputs, self.model)

    @property
    def _encoder_decoder(self) -> bool:
        return bool(getattr(self.model.config.get_text_config(), "is_encoder_decoder", False))

    def _generate(self, inputs: dict[str, Any], more: dict[str, Any]) -> torch.Tensor:
        try:
            return self._write(**inputs, **more)
        except (ValueError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ShowtellError(f"the library's generate: {first}") from error

    def _written(self, inputs: dict[str, Any], ids: torch.Tensor) -> list[str]:
        if not self._encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(ids, skip_special_tokens=True)


class _Steered(LogitsProcessor):
    """The `logits` and `tokens` hooks inside the library's own loop."""

    def __init__(self, run: Run, sample: bool) -> None:
        self.run, self.sample, self.seen = run, sample, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.run.step, self.seen = self.seen, self.seen + 1
        scores = apply_hooks(self.run, "logits", scores)
        if not overriding(self.run.techniques, "tokens"):
            return scores
        # Chosen here and shown to the hook; the library then has no other choice.
        chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0] if self.sample else scores.argmax(-1)
        chosen = apply_hooks(self.run, "tokens", chosen)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)
