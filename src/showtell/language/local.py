"""Causal language models of transformers on this machine: chat templates, batches, samples by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from showtell.errors import ShowtellError
from showtell.language.base import LanguageModel, Messages, conversation, positive


class LocalModel(LanguageModel):
    """A causal language model in the Hugging Face layout, read from safetensors.

    source: a folder or a hub id. device: "cpu", "cuda", ... (default: where the library puts it); dtype: a torch dtype
    or its name. batch: conversations at a time.
    An answer depends on its conversation, its seed and its number only, not on what is answered beside it (up to
    rounding). A tokenizer without a chat template gets "role: content" lines.
    Raises ShowtellError: nothing there, offline, no causal language model, a conversation that is too long.
    """

    def __init__(self, source: str | Path, *, device: Any = None, dtype: Any = None, batch: int = 8) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(source).expanduser()
        if not str(source) or not (path.is_dir() or _hub_id(str(source), path)):
            kinds = "None, 'openai:MODEL', a folder in the Hugging Face layout or a hub id (owner/name)"
            raise ShowtellError(f"there is no language model {str(source)!r}: use {kinds}")
        self.name, self.batch = str(source), positive(batch)
        where = str(path) if path.is_dir() else str(source)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(where, padding_side="left")
            self.model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            line = str(error).strip().splitlines()
            raise ShowtellError(f"cannot load the language model {source}: {line[0] if line else error!r}") from error
        if device is not None:
            self.model.to(device)
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token is None:
                raise ShowtellError(f"the tokenizer of {source} has neither a pad token nor an end token; give it one")
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def complete(
        self,
        conversations: Sequence[Messages],
        *,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        max_tokens: int = 1024,
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        """See `LanguageModel.complete`; `schema` is not used: the form stands in the request itself."""
        stops = [stop] if isinstance(stop, str) else list(stop)
        prompts = [self.prompt(messages) for messages in conversations for _ in range(positive(n))]
        # Every answer draws from its own generator: the seed, and its number among the n.
        seeds = [(seed, i) for _ in conversations for i in range(n)]
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            answers += self._generate(prompts[part], seeds[part], temperature, stops, positive(max_tokens))
        return [answers[i : i + n] for i in range(0, len(answers), n)]

    def prompt(self, messages: Messages) -> str:
        """The conversation as the model reads it."""
        found = conversation(messages)
        if self.tokenizer.chat_template is not None:
            return str(self.tokenizer.apply_chat_template(found, tokenize=False, add_generation_prompt=True))
        return "\n".join([*(f"{message['role']}: {message['content']}" for message in found), "assistant:"])

    @torch.no_grad()
    def _generate(
        self, prompts: list[str], seeds: list[tuple[int, int]], temperature: float, stops: list[str], max_tokens: int
    ) -> list[str]:
        from transformers import GenerationConfig, LogitsProcessorList

        # A chat template writes the special tokens itself.
        special = self.tokenizer.chat_template is None
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=special)
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        length = inputs["input_ids"].shape[1]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length + max_tokens > limit:
            raise ShowtellError(
                f"{length} tokens and an answer of {max_tokens} are more than the {limit} that {self.name} reads; "
                "shorten the text or lower max_tokens="
            )
        # The model's own configuration may ask for sampling or penalties; only its end tokens are wanted.
        config = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id,
        )  # fmt: skip
        processors = LogitsProcessorList([_seeded(temperature, seeds)] if temperature > 0 else [])
        more = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        ids = self.model.generate(**inputs, generation_config=config, logits_processor=processors, **more)
        texts = self.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return [_until(text, stops).strip() for text in texts]


def _hub_id(source: str, path: Path) -> bool:
    return source.count("/") == 1 and source[0] not in "/.~" and not path.exists()


def _seeded(temperature: float, seeds: list[tuple[int, int]]) -> Any:
    """Turns greedy decoding into sampling with a generator per row.

    The largest of logits / temperature + Gumbel noise is a sample of softmax(logits / temperature).
    """
    generators = [torch.Generator().manual_seed(1_000_003 * seed + i) for seed, i in seeds]

    def process(input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in generators]).to(scores.device)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / temperature + gumbel

    return process


def _until(text: str, stops: list[str]) -> str:
    """The text before the first of the stops."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
