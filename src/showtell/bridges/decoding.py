"""The one token-decoding loop: images as discrete tokens, decoded one after the other or unmasked in groups.

A family supplies a `Decoder`; the loop calls the hooks of the techniques. Per step: the decoder's logits of
every guidance branch, guidance, `logits` hooks, choosing, `tokens` hooks, keeping what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from ..errors import ShowtellError, UnsupportedError
from ..files import share
from .attention import observe
from .base import Bridge, Run, Technique, Text, apply_hooks, overriding
from .diffusion import _generators, _negatives, _texts, check_scale
from .layout import Grid, Place
from .together import check_fits
from .words import Piece, Words, find_words

OUTPUTS = ("pil", "np", "pt", "latent")
_OWN_OPTIONS = frozenset({"batch_size", "num_images_per_prompt"})


class TokenRun(Run):
    """A run of the decoding loop.

    text, negative: encoded prompts (`conditioning` may change the former, once, before the loop).
    grid: (height, width) of the image tokens. tokens: decoded so far, (n, positions).
    conditional, unconditional: this step's logits of each branch, for `logits` hooks.
    """

    grid: Grid
    tokens: torch.Tensor
    conditional: torch.Tensor
    unconditional: torch.Tensor | None

    def encode(self, prompts: str | list[str]) -> Text:
        return self.bridge.decoder.encode(_texts(prompts, "prompts"), self.grid)  # type: ignore[attr-defined]


class Decoder:
    """What one token-decoding family does its own way; holds the model, no state of a call.

    steps: default number of steps, None where there is one per token. scale: default guidance.
    options: further keywords of `generate`.
    """

    steps: int | None = None
    scale: float = 1.0
    options: frozenset[str] = frozenset()

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def pieces(self) -> list[Piece]:
        """How the tokenizers lay a prompt into the text tokens."""
        raise NotImplementedError

    def grid(self, height: int | None, width: int | None) -> Grid:
        """Image tokens of an image of that size (default: the model's own); ShowtellError where it cannot."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str], grid: Grid) -> Text:
        """Prompts as the model takes them for an image of that many tokens, one row each."""
        raise NotImplementedError

    def negative(self, run: TokenRun) -> Text:
        """The unconditional text of every sample."""
        raise NotImplementedError

    def begin(self, run: TokenRun, branches: dict[str, Text], steps: int | None) -> None:
        """Sets `run.steps` and `run.tokens`, and keeps in `run.own` what `predict` needs."""
        raise NotImplementedError

    def predict(self, run: TokenRun, branches: dict[str, Text]) -> torch.Tensor:
        """Logits of this step, (branches * n, [positions,] vocabulary), in the branches' order."""
        raise NotImplementedError

    def guide(self, run: TokenRun, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Guided logits (arXiv 2207.12598 on logits)."""
        return unconditional + run.guidance * (conditional - unconditional)

    def allowed(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        """Logits with -inf where this step cannot choose a token."""
        return logits

    def choose(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        """Tokens chosen at this step, (n,) or (n, positions)."""
        raise NotImplementedError

    def keep(self, run: TokenRun, chosen: torch.Tensor) -> None:
        """Takes the chosen tokens into `run.tokens`."""
        raise NotImplementedError

    def codes(self, run: TokenRun) -> torch.Tensor:
        """`run.tokens` as (n, height, width)."""
        return run.tokens.view(len(run.tokens), *run.grid)

    def images(self, run: TokenRun, output_type: str) -> list[Any]:
        """Images of `run.tokens`, in the output type ("pil", "np" or "pt")."""
        raise NotImplementedError

    def layout(self, run: TokenRun) -> Any:
        """Where text and image lie in the attention calls of a step."""
        raise NotImplementedError

    def save(self, directory: str | Path) -> None:
        raise NotImplementedError


def decode(run: TokenRun, decoder: Decoder, branches: dict[str, Text], steps: int | None) -> torch.Tensor:
    """Every image token of every sample, (n, positions)."""
    watching = overriding(run.techniques, "attention")
    decoder.begin(run, branches, steps)
    for technique in overriding(run.techniques, "decode"):
        decoded = technique.decode(run, decoder)
        if decoded is not None:
            run.tokens = decoded
            return decoded
    layout = decoder.layout(run) if watching else None
    for step in range(run.steps):
        run.step = step

        def call() -> torch.Tensor:
            return decoder.predict(run, branches)

        length = branches["text"].tokens.shape[1]
        output = observe(call, run, layout, watching, list(branches), length) if layout else call()
        parts = dict(zip(branches, output.chunk(len(branches)), strict=True))
        logits = steered(run, decoder, parts["text"], parts.get("negative"))
        if bool(logits.isnan().any()):
            raise ShowtellError(
                f"the logits became NaN at step {step}; use float32 or bfloat16 weights, a smaller guidance_scale, "
                "or check the techniques in use."
            )
        chosen = apply_hooks(run, "tokens", decoder.choose(run, logits))
        decoder.keep(run, chosen)
    return run.tokens


def steered(
    run: TokenRun, decoder: Decoder, conditional: torch.Tensor, unconditional: torch.Tensor | None
) -> torch.Tensor:
    """The logits that tokens are chosen from: guided where guidance is on, of allowed tokens, as the techniques leave
    them. unconditional: those of the negative prompts, where there are any."""
    run.conditional, run.unconditional = conditional, unconditional
    logits = conditional
    if unconditional is not None and run.guidance != 1:
        logits = decoder.guide(run, conditional, unconditional)
    return apply_hooks(run, "logits", decoder.allowed(run, logits))


class DecodingBridge(Bridge):
    """Images decoded token by token, and where there is a `teller`, captions and answers of the same model."""

    def __init__(self, decoder: Decoder, name: str, can: frozenset[str], teller: Any = None) -> None:
        self.decoder, self.name, self.can, self.teller = decoder, name, can, teller

    @torch.no_grad()
    def generate(
        self,
        prompts: str | list[str],
        *,
        using: Sequence[Technique] = (),
        seed: int | list[int] = 0,
        generator: Any = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        **more: Any,
    ) -> list[Any]:
        """See `Bridge.generate`. output_type "latent" gives the tokens, (height, width) each.

        Hooks: `prompt`, `conditioning` (once, before the first step), `attention`, `logits`, `tokens`, `finish`.
        Further keywords: `decoder.options`, batch_size, num_images_per_prompt.
        """
        self._check(more, output_type, num_inference_steps, num_frames)
        check_scale(guidance_scale)
        copies, size = more.pop("num_images_per_prompt", None) or 1, more.pop("batch_size", None)
        texts = [text for text in _texts(prompts, "prompts") for _ in range(copies)]
        negatives = None
        if negative_prompt is not None:
            given = _negatives(negative_prompt, len(texts) // copies)
            negatives = [text for text in given for _ in range(copies)]
        generators = _generators(seed, generator, len(texts))
        size = size or len(texts)
        if size < len(texts) and isinstance(generators, torch.Generator):
            raise ShowtellError("one generator for several batches would depend on batch_size; give seed, or one each.")
        check_fits(self, using, denoises=False)
        outputs: list[Any] = []
        for first in range(0, len(texts), size):
            part = slice(first, first + size)
            run = TokenRun(self, texts[part], using)
            run.negative_prompts = None if negatives is None else negatives[part]
            run.generators = generators[part] if isinstance(generators, list) else generators
            run.guidance = float(self.decoder.scale if guidance_scale is None else guidance_scale)
            run.options = {**more, "latents": None if latents is None else latents[part]}
            run.grid = self.decoder.grid(height, width)
            outputs += self._run(run, num_inference_steps, output_type)
        return outputs

    def _run(self, run: TokenRun, steps: int | None, output_type: str) -> list[Any]:
        run.prompts = apply_hooks(run, "prompt", run.prompts)
        run.text = self.decoder.encode(run.prompts, run.grid)
        for technique in overriding(run.techniques, "conditioning"):
            changed = technique.conditioning(run, run.text)
            if isinstance(changed, Text):
                run.text = changed
            elif changed is not None:
                run.text = run.text.with_tokens(changed)
        branches = {"text": run.text}
        if run.guidance > 1 or any(technique.unconditional for technique in run.techniques):
            run.negative = self.decoder.negative(run)
            branches = {"negative": run.negative, "text": run.text}
        decode(run, self.decoder, branches, steps)
        if output_type == "latent":
            images = list(self.decoder.codes(run))
        else:
            images = self.decoder.images(run, output_type)
        return apply_hooks(run, "finish", images)

    @torch.no_grad()
    def encode(self, prompts: str | list[str]) -> Text:
        """Prompts as the model takes them, one row each."""
        grid = self.decoder.grid(None, None)
        text = self.decoder.encode(_texts(prompts, "prompts"), grid)
        return replace(text, make_empty=lambda: self.decoder.encode([""], grid).tokens)

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        """See `Bridge.caption`. Keywords: using, max_new_tokens (64), do_sample, seed, batch_size, and those
        of the library's `generate`.
        """
        if self.teller is None:
            raise self.unsupported("caption")
        return self.teller.caption(self, images, language, **more)

    def answer(self, images: Any, questions: str | Sequence[str], **more: Any) -> list[str]:
        """See `Bridge.answer`. Keywords as `caption`."""
        if self.teller is None:
            raise self.unsupported("answer")
        return self.teller.answer(self, images, questions, **more)

    def words(self, prompt: str, to: str = "generate", **options: Any) -> Words:
        """Which text tokens stand for which word of a prompt given to `generate`, or to="answer" of a question."""
        if to == "answer" and self.teller is not None:
            return self.teller.words(prompt)
        if to != "generate":
            raise ShowtellError(f"to={to!r}: use 'generate'{' or answer' if self.teller else ''}.")
        return find_words(prompt, self.decoder.pieces())

    def save(self, directory: str | Path) -> None:
        self.decoder.save(directory)

    def _check(self, more: dict[str, Any], output_type: str, steps: int | None, frames: int | None) -> None:
        known = self.decoder.options | _OWN_OPTIONS
        unknown = sorted(set(more) - known)
        if unknown:
            listed = ", ".join(sorted(known))
            raise UnsupportedError(f"{self.name} does not take {', '.join(unknown)}; further keywords: {listed}.")
        if output_type not in OUTPUTS:
            raise ShowtellError(f"output_type={output_type!r}: use one of {', '.join(OUTPUTS)}.")
        if frames not in (None, 1):
            raise ShowtellError(f"num_frames={frames}: this model makes single images; leave num_frames out.")
        if steps is not None and self.decoder.steps is None:
            raise ShowtellError(
                f"num_inference_steps={steps}: {self.name} takes one step per image token; leave it out."
            )
        if steps is not None and steps < 1:
            raise ShowtellError(f"num_inference_steps={steps}: use 1 or more.")


# Autoregressive families


class CausalLayout:
    """Where text and image lie while one image token is decoded: one query, the token before it; among the keys
    first the prompt, then the image so far. `layers`: names of the attention modules in order.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = list(layers)

    def place(self, depth: int, queries: int, keys: int, text: int, step: int, steps: int) -> Place | None:
        """The place of a call; the token that is decided is number `step`."""
        if depth >= len(self.layers) or queries != 1 or keys <= text:
            return None
        of, name = len(self.layers), self.layers[depth]
        return Place(depth, of, name, "joint", (1, 1), step, steps, slice(0, 1), slice(0, text), slice(text, keys))


class CausalDecoder(Decoder):
    """Next-token decoding by a decoder-only language model of transformers, with its key-value cache.

    Prompts are padded on the right, so that a word has the same positions in every batch; padding is masked
    and does not count in the positions. The last token of a prompt (which opens the image) is the first query.
    """

    options = frozenset({"do_sample", "temperature", "top_k", "top_p"})

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @property
    def device(self) -> torch.device:
        return self.model.device

    # Supplied by a family

    def prompt(self, text: str, grid: Grid) -> str:
        """A prompt in the model's template, up to the token that opens an image of that many tokens."""
        raise NotImplementedError

    @property
    def language_model(self) -> Any:
        """Takes inputs_embeds and gives last_hidden_state."""
        raise NotImplementedError

    def embed(self, run: TokenRun, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings of image tokens, (n, 1, channels) of (n,)."""
        raise NotImplementedError

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, (n, vocabulary), of hidden states (n, channels)."""
        raise NotImplementedError

    # Shared

    def ids(self, prompts: Sequence[str], grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """(token ids, 1 where they are not padding), (n, length), padded on the right, without the last token."""
        rows = [self.processor.tokenizer(self.prompt(text, grid))["input_ids"][:-1] for text in prompts]
        longest = max(len(row) for row in rows)
        filler = self.processor.tokenizer.pad_token_id
        filler = 0 if filler is None else filler
        ids = torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        return ids, mask

    def opening(self, grid: Grid) -> int:
        """The token that opens the image."""
        return int(self.processor.tokenizer(self.prompt("a", grid))["input_ids"][-1])

    def pieces(self) -> list[Piece]:
        # The template may hold the text once only, and the tokenizer's limit is far.
        return [Piece(self.processor.tokenizer, 1 << 20, template=self.prompt("{}", (1, 1)))]

    def encode(self, prompts: Sequence[str], grid: Grid) -> Text:
        ids, mask = self.ids(prompts, grid)
        return Text(self.model.get_input_embeddings()(ids), mask=mask, extra={"ids": ids})

    def begin(self, run: TokenRun, branches: dict[str, Text], steps: int | None) -> None:
        from transformers import DynamicCache

        run.steps = self.count(run)
        run.tokens = torch.zeros(len(run.prompts), 0, dtype=torch.long, device=self.device)
        # Texts of different length are brought to the longest, so that every branch has the same columns.
        longest = max(text.tokens.shape[1] for text in branches.values())
        for name, text in branches.items():
            missing = longest - text.tokens.shape[1]
            if missing:
                assert text.mask is not None
                branches[name] = Text(pad(text.tokens, (0, 0, 0, missing)), mask=pad(text.mask, (0, missing)))
        embeddings = torch.cat([text.tokens for text in branches.values()])
        mask = torch.cat([text.mask for text in branches.values() if text.mask is not None])
        cache = DynamicCache()
        self.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        first = torch.full((len(run.prompts),), self.opening(run.grid), device=self.device)
        run.own |= {"cache": cache, "mask": mask, "next": self.model.get_input_embeddings()(first)[:, None]}

    def several(self, run: TokenRun, branches: Sequence[str], inputs: torch.Tensor) -> torch.Tensor:
        """Logits after each of several tokens in one pass, (branches * n, tokens, vocabulary).

        inputs: embeddings (n, tokens, channels) that follow what is in the cache; the cache takes them in, and
        `run.own["mask"]` (branches * n, cached) grows by ones.
        """
        given, count = run.own["mask"], inputs.shape[1]
        run.own["mask"] = mask = pad(given, (0, count), value=1)
        output = self.language_model(
            inputs_embeds=torch.cat([inputs] * len(branches)),
            attention_mask=mask,
            position_ids=given.sum(-1, keepdim=True) + torch.arange(count, device=given.device),
            past_key_values=run.own["cache"],
            use_cache=True,
        )
        hidden = output.last_hidden_state
        return self.head(hidden.flatten(0, 1)).float().view(*hidden.shape[:2], -1)

    def forget(self, run: TokenRun, keep: torch.Tensor) -> None:
        """Removes from the cache what `keep`, boolean (branches * n, cached), says; rows may keep different numbers."""
        keep = keep & run.own["mask"].bool()
        length = int(keep.sum(dim=-1).max())
        # Kept entries first, in their order; what fills up the shorter rows is masked.
        order = keep.int().argsort(dim=-1, descending=True, stable=True)[:, :length]
        run.own["mask"] = keep.gather(1, order).to(run.own["mask"])
        for layer in run.own["cache"].layers:
            index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[-1])
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)

    def count(self, run: TokenRun) -> int:
        """How many tokens an image has."""
        return run.grid[0] * run.grid[1]

    def predict(self, run: TokenRun, branches: dict[str, Text]) -> torch.Tensor:
        mask = pad(run.own["mask"], (0, 1), value=1)
        run.own["mask"] = mask
        config = self.language_model.config
        groups = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
        watched = groups > 1 and overriding(run.techniques, "attention")
        with _HeadsApart(groups) if watched else nullcontext():
            output = self.language_model(
                inputs_embeds=torch.cat([run.own["next"]] * len(branches)),
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=run.own["cache"],
                use_cache=True,
            )
        return self.head(output.last_hidden_state[:, -1]).float()

    def choose(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        if not self._sampling(run.options)["do_sample"]:
            return logits.argmax(dim=-1)
        return draw(self.chances(run, logits), run.generators)

    def chances(self, run: TokenRun, logits: torch.Tensor) -> torch.Tensor:
        """What `choose` draws from: probabilities (n, vocabulary) after temperature, top-k and top-p; all on the
        largest where it does not sample.
        """
        settings = self._sampling(run.options)
        if not settings["do_sample"]:
            return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
        for warper in _warpers(settings):
            logits = warper(None, logits)
        return logits.softmax(dim=-1)

    def _sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        config = self.model.generation_config
        names = ("do_sample", "temperature", "top_k", "top_p")
        return {name: getattr(config, name, None) if options.get(name) is None else options[name] for name in names}

    def keep(self, run: TokenRun, chosen: torch.Tensor) -> None:
        run.tokens = torch.cat([run.tokens, chosen[:, None]], dim=1)
        run.own["next"] = self.embed(run, chosen)

    def layout(self, run: TokenRun) -> CausalLayout:
        return CausalLayout([f"layers.{i}.self_attn" for i in range(len(self.language_model.layers))])

    def save(self, directory: str | Path) -> None:
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)
        share(directory)


class _HeadsApart(TorchFunctionMode):
    """A query per head: for a single query transformers folds the heads of a group into the queries."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) < 2:
            return func(*args, **kwargs)
        query, key = args[:2]
        if query.shape[-2] != self.groups or query.shape[1] != key.shape[1]:
            return func(*args, **kwargs)
        apart = query.reshape(query.shape[0], -1, 1, query.shape[-1])
        output = func(apart, *args[1:], **{**kwargs, "enable_gqa": True})
        return output.reshape(*query.shape[:3], output.shape[-1])


def _warpers(settings: Mapping[str, Any]) -> list[Any]:
    """The library's own, in its order."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found: list[Any] = []
    if settings["temperature"] not in (None, 1.0):
        found.append(TemperatureLogitsWarper(float(settings["temperature"])))
    if settings["top_k"]:
        found.append(TopKLogitsWarper(int(settings["top_k"])))
    if settings["top_p"] not in (None, 1.0):
        found.append(TopPLogitsWarper(float(settings["top_p"])))
    return found


def draw(probabilities: torch.Tensor, generators: Any) -> torch.Tensor:
    """One token per row of (n, vocabulary), each row from its own generator where there is a list of them."""
    on = generators[0].device if isinstance(generators, list) else getattr(generators, "device", None)
    chances = probabilities if on is None else probabilities.to(on)
    if not isinstance(generators, list):
        return torch.multinomial(chances, 1, generator=generators)[:, 0].to(probabilities.device)
    rows = [torch.multinomial(row, 1, generator=one) for row, one in zip(chances, generators, strict=True)]
    return torch.cat(rows).to(probabilities.device)
