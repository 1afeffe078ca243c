"""The attention of a language model that reads an image and writes text, shown to techniques.

The library's own `generate` runs; a `torch.overrides.TorchFunctionMode` around it sees every attention call, and hooks
on the language model's attention modules say which of them belong to which layer (the vision tower's belong to none).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..errors import ShowtellError
from .attention import Site, is_compiled
from .base import Run, Technique, overriding
from .layout import Grid, Place

_MODULES = ("self_attn", "SelfAttention", "EncDecAttention")


@dataclass(frozen=True)
class Reading:
    """Where image and text lie in the prompts of a batch, alike for every sample and without padding.

    length: tokens of a prompt. image: the image's. first: whether the request precedes the image; text keys are then
    the tokens before it, otherwise all that follow it, what has been written so far included.
    grid: (height, width) of the image's tokens; (1, n) where they have no place in the image.
    """

    length: int
    image: slice
    first: bool
    grid: Grid

    def text(self, keys: int) -> slice:
        return slice(0, self.image.start) if self.first else slice(self.image.stop, keys)

    def told(self, queries: int) -> slice:
        """The queries that may see the image: what follows it, at least the token that decides the next one."""
        return slice(0, 1) if queries == 1 else slice(min(self.image.stop, queries - 1), queries)


def reading_of(ids: torch.Tensor, attended: torch.Tensor, token: int, first: bool, grid: Grid | None) -> Reading:
    """The reading of token ids (n, tokens). token: of the image. grid: None for a square one, or (1, n).

    Raises ShowtellError: rows that differ in where the image lies or how long they are.
    """
    places = (ids == token).nonzero()
    start, stop = int(places[:, 1].min()), int(places[:, 1].max()) + 1
    alike = (
        bool((ids[:, start:stop] == token).all()) and bool(attended.all()) and len(places) == len(ids) * (stop - start)
    )
    if not alike:
        raise ShowtellError(
            "techniques that see attention need prompts of one length in a batch, and one image in each; "
            "pass batch_size=1."
        )
    if grid is None:
        side = round((stop - start) ** 0.5)
        grid = (side, side) if side * side == stop - start else (1, stop - start)
    return Reading(ids.shape[1], slice(start, stop), first, grid)


class TellingRun(Run):
    """A run that writes text about images. words: of its requests, among the text keys of its sites."""

    def __init__(self, bridge: Any, prompts: list[str], techniques: Any, teller: Any, template: str) -> None:
        super().__init__(bridge, prompts, techniques)
        self.teller, self.template = teller, template

    def words(self, prompt: str) -> Any:
        return self.teller.words(prompt, self.template)


class _Watch(TorchFunctionMode):
    """Lets techniques see the attention of the modules listed, while they run in this thread."""

    def __init__(self, run: Run, reading: Reading, techniques: Sequence[Technique], modules: list[tuple[str, Any]]):
        super().__init__()
        self.run, self.reading, self.techniques = run, reading, techniques
        self.modules, self.current, self.step, self.seen = modules, -1, 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.current < 0:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        module = self.modules[self.current][1]
        packed = _packed(module, query, key)
        place = self._place(1 if packed else query.shape[-2], key.shape[-2])
        self.seen += place is not None
        wanting = [t for t in self.techniques if t.wants(self.run, place)] if place is not None else []
        if wanting and place is not None:
            # For a single query transformers folds the heads of a group into the queries.
            apart = query.reshape(query.shape[0], -1, 1, query.shape[-1]) if packed else query
            site = Site(place, apart, key, value, {"text": slice(0, query.shape[0])}, attn_mask, is_causal, scale)
            for technique in wanting:
                technique.attention(self.run, site)
            same = site.query is apart and site.key is key and site.value is value
            if not packed or site.touched or not same:
                return site.output.reshape(query.shape) if packed else site.output
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _place(self, queries: int, keys: int) -> Place | None:
        """The place of a call of the current module; None where there is no image to see or the sizes are others'."""
        name, reading = self.modules[self.current][0], self.reading
        depth, of, steps = self.current, len(self.modules), self.run.steps

        def told(step: int) -> Place:
            text, asking = reading.text(keys), reading.told(queries)
            self.run.step = step
            return Place(depth, of, name, "told", reading.grid, step, steps, None, text, reading.image, told=asking)

        if "EncDecAttention" in name:  # the written text, looking at what the encoder made of image and request
            return told(self.step) if keys == reading.length else None
        if name.startswith("encoder."):
            if not queries == keys == reading.length:
                return None
            image, text = reading.image, reading.text(keys)
            return Place(depth, of, name, "joint", reading.grid, 0, steps, image, text, image)
        if _decodes(self.modules):
            self.step = keys - 1
            return None
        if queries == keys == reading.length or (queries == 1 and keys > reading.length):
            return told(keys - reading.length)
        return None


def _packed(module: Any, query: torch.Tensor, key: torch.Tensor) -> bool:
    groups = getattr(module, "num_key_value_groups", 1)
    heads = getattr(getattr(module, "config", None), "num_attention_heads", None)
    return groups > 1 and query.shape[-2] == groups and query.shape[1] == key.shape[1] != heads


def _decodes(modules: list[tuple[str, Any]]) -> bool:
    """Whether text is written by a decoder that looks at an encoder."""
    return any("EncDecAttention" in name for name, _ in modules)


@contextmanager
def watched(model: Any, run: Run, reading: Reading) -> Iterator[None]:
    """Shows the attention of `model` to the run's techniques while the body runs.

    Raises ShowtellError where the model's attention does not pass through `scaled_dot_product_attention`.
    """
    language = model.get_decoder()
    modules = [(name, module) for name, module in language.named_modules() if name.split(".")[-1] in _MODULES]
    watch = _Watch(run, reading, overriding(run.techniques, "attention"), modules)
    mine = threading.get_ident()

    def enter(depth: int) -> Any:
        def hook(*given: Any) -> None:
            if threading.get_ident() == mine:
                watch.current = depth

        return hook

    with ExitStack() as stack:
        for depth, (_, module) in enumerate(modules):
            for handle in (
                module.register_forward_pre_hook(enter(depth)),
                module.register_forward_hook(enter(-1), always_call=True),
            ):
                stack.callback(handle.remove)
        if is_compiled(language):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(watch)
        yield
    if not watch.seen:
        raise ShowtellError(
            "this model's attention bypasses torch's scaled_dot_product_attention, so techniques cannot see it; "
            'call model.set_attn_implementation("sdpa") first, and leave cache_implementation out.'
        )
