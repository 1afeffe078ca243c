"""Attention, seen in one way on every architecture.

`observe(...)` puts one `torch.overrides.TorchFunctionMode` around the denoiser's call; every
`scaled_dot_product_attention` inside is counted, placed by the adapter's `TokenLayout` and, where a
technique asks for that
place, handed to it as a `Site`. No model class is patched, and other threads notice nothing. Calls nobody
asks for go
straight to the fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..errors import ShowtellError
from .base import Run, Technique
from .layout import Place, TokenLayout

Change = Callable[[torch.Tensor], torch.Tensor]


class Site:
    """One attention call that a technique may read and edit.

    place: where it is (`site.depth`, `site.kind`, `site.grid`, `site.step`, `site.name` are short for its
        fields).
    query, key, value: (rows, heads, tokens, channels); assign to replace them.
    branches: rows of each guidance branch: {"negative": slice, "text": slice}. A `branch` argument picks
        one of them;
        None means all rows. Blocks of the attention matrix are chosen by `queries` and `keys`: "image",
        "text" or "all"; left out, they are image queries and text keys, or text queries and image keys where
        text reads an image ("told").
    Later techniques see what earlier ones changed. Every method is differentiable under
    `torch.enable_grad()`.
    """

    def __init__(
        self,
        place: Place,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        branches: Mapping[str, slice],
        mask: torch.Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> None:
        self.place = place
        self.query, self.key, self.value = query, key, value
        self.branches = dict(branches)
        # As the model passed them; the fused kernel gets exactly these unless a bias has to be added.
        self._given = (mask, causal)
        if causal:
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        self._mask = _additive(mask, query) if mask is not None else None
        self._scale = scale
        self._bias: torch.Tensor | None = None
        self._changes: list[tuple[slice, slice, slice, Change]] = []
        self._output: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        if name in Place.__dataclass_fields__:
            return getattr(self.place, name)
        raise AttributeError(f"a Site has no {name!r}")

    # Reading

    def maps(self, branch: str | None = "text", over: str = "attended") -> torch.Tensor:
        """Text-to-image maps, (rows, heads, image tokens, text tokens).

        over: "attended" gives the model's own probabilities, softmaxed over all attended tokens (in joint
            attention
        these include the image, so a map's row sums to less than one over the text); "text" softmaxes over
        text alone. Where text reads an image ("told"), the text tokens are this call's queries, and "image"
        softmaxes over the image alone.
        """
        alone = "image" if self.place.kind == "told" else "text"
        if over not in ("attended", alone):
            raise ShowtellError(f"over={over!r}: use 'attended' or '{alone}'.")
        queries, keys = self._chosen(None, None)
        columns = self._span(keys, "keys")
        if over == "attended":
            maps = self.probabilities(branch, queries)[..., columns]
        else:
            maps = _softmax(self.logits(branch, queries)[..., columns])
        return maps.transpose(-1, -2) if self.place.kind == "told" else maps

    def probabilities(self, branch: str | None = None, queries: str = "all") -> torch.Tensor:
        """Attention probabilities, (rows, heads, queries, keys), as edited so far; rows sum to one over the
        keys.
        """
        rows, chosen = self._rows(branch), self._span(queries, "queries")
        if self._changes:
            return self._changed(_softmax(self._logits()))[rows, :, chosen]
        return _softmax(self._logits(rows, chosen))

    def logits(self, branch: str | None = None, queries: str = "all") -> torch.Tensor:
        """Scaled scores with masks and biases, (rows, heads, queries, keys), before the softmax."""
        return self._logits(self._rows(branch), self._span(queries, "queries"))

    @property
    def output(self) -> torch.Tensor:
        """What the attention returns, (rows, heads, queries, channels), as edited so far; assign to replace
        it.
        """
        return self._output if self._output is not None else self._attend()

    @output.setter
    def output(self, value: torch.Tensor) -> None:
        self._output = value

    # Editing

    def bias(
        self,
        amount: torch.Tensor,
        branch: str | None = "text",
        queries: str | None = None,
        keys: str | None = None,
    ) -> None:
        """Adds `amount`, broadcastable to (rows, heads, queries, keys) of the block, to the scores."""
        # A fused kernel with an all-zero mask rounds differently from one without: adding nothing must
        # change nothing.
        if not amount.requires_grad and not bool(amount.any()):
            return
        amount, rows = self._per_row(amount), self._rows(branch)
        chosen, columns = self._block(queries, keys)
        heads = amount.shape[-3] if amount.ndim >= 3 else 1
        shape = (self.query.shape[0], heads, self.query.shape[-2], self.key.shape[-2])
        full = torch.zeros(shape, dtype=self.query.dtype, device=self.query.device)
        full[rows, :, chosen, columns] = amount.to(full)
        self._bias = full if self._bias is None else self._bias + full

    def mask(
        self, keep: torch.Tensor, branch: str | None = "text", queries: str | None = None, keys: str | None = None
    ) -> None:
        """Removes tokens from the softmax where `keep`, broadcastable to the block, is False (or 0)."""
        lowest = torch.finfo(self.query.dtype).min
        self.bias(torch.where(keep.bool(), 0.0, lowest).to(self.query.device), branch, queries, keys)

    def rescale(
        self,
        weights: torch.Tensor,
        on: str = "probabilities",
        branch: str | None = "text",
        queries: str | None = None,
        keys: str | None = None,
    ) -> None:
        """Multiplies a block by `weights`, (keys,) or broadcastable to (rows, heads, queries, keys).

        on: "probabilities" (after the softmax, not renormalised) or "logits" (before it).
        """
        if on == "probabilities":
            self.edit(lambda maps: maps * self._per_row(weights).to(maps), branch, queries, keys)
        elif on == "logits":
            chosen, columns = self._block(queries, keys)
            scores = self._logits(self._rows(branch), chosen)[..., columns]
            self.bias(scores * (self._per_row(weights).to(scores) - 1), branch, queries, keys)
        else:
            raise ShowtellError(f"on={on!r}: use 'probabilities' or 'logits'.")

    def edit(
        self, change: Change, branch: str | None = "text", queries: str | None = None, keys: str | None = None
    ) -> None:
        """Replaces a block of the probabilities, (rows, heads, queries, keys), by `change` of it."""
        self._changes.append((self._rows(branch), *self._block(queries, keys), change))

    def take(self, source: Sequence[int] | torch.Tensor, branch: str | None = "text", parts: str = "kv") -> None:
        """Sample i gets the queries, keys or values (letters of `parts`) of sample source[i] of the same
        branch.
        """
        rows = self._rows(branch)
        order = torch.as_tensor(source, device=self.query.device)
        fold = self.place.fold
        order = (order[:, None] * fold + torch.arange(fold, device=order.device)).flatten()
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
            if letter in parts:
                tensor = getattr(self, name).clone()
                tensor[rows] = getattr(self, name)[rows][order]
                setattr(self, name, tensor)

    # Inside

    def _per_row(self, amount: torch.Tensor) -> torch.Tensor:
        """What is given per sample, once per row: where frames lie in the batch, a sample has several rows."""
        samples = self.query.shape[0] // len(self.branches) // self.place.fold
        if self.place.fold == 1 or amount.ndim < 4 or amount.shape[0] != samples:
            return amount
        return amount.repeat_interleave(self.place.fold, dim=0)

    def _rows(self, branch: str | None) -> slice:
        if branch is None:
            return slice(0, self.query.shape[0])
        if branch not in self.branches:
            raise ShowtellError(f"no branch {branch!r} here; there are: {', '.join(self.branches)}.")
        return self.branches[branch]

    def _span(self, part: str, axis: str) -> slice:
        place = self.place
        length = self.query.shape[-2] if axis == "queries" else self.key.shape[-2]
        if part == "all":
            return slice(0, length)
        if part == "image":
            span = place.image if axis == "queries" else place.image_keys
        elif part == "text":
            span = place.text if axis == "keys" or place.kind == "joint" else place.told
        else:
            raise ShowtellError(f"{axis}={part!r}: use 'image', 'text' or 'all'.")
        if span is None:
            raise ShowtellError(f"{place.kind}-attention at depth {place.depth} has no {part} among its {axis}.")
        return span

    def _chosen(self, queries: str | None, keys: str | None) -> tuple[str, str]:
        """The block that a technique means: the one of image and text where it names none."""
        own = ("text", "image") if self.place.kind == "told" else ("image", "text")
        return queries or own[0], keys or own[1]

    def _block(self, queries: str | None, keys: str | None) -> tuple[slice, slice]:
        queries, keys = self._chosen(queries, keys)
        return self._span(queries, "queries"), self._span(keys, "keys")

    @property
    def touched(self) -> bool:
        """Whether anything but query, key and value was edited."""
        return self._bias is not None or self._output is not None or bool(self._changes)

    def _logits(self, rows: slice = slice(None), queries: slice = slice(None)) -> torch.Tensor:
        key = _repeat_heads(self.key, self.query)[rows]
        scale = self.query.shape[-1] ** -0.5 if self._scale is None else self._scale
        logits = (self.query[rows, :, queries] * scale) @ key.transpose(-2, -1)
        for extra in (self._mask, self._bias):
            if extra is not None:
                logits = logits + _cut(extra, rows, queries)
        return logits

    def _changed(self, probabilities: torch.Tensor) -> torch.Tensor:
        edited = probabilities.clone()
        for rows, queries, keys, change in self._changes:
            block = edited[rows, :, queries, keys]
            new = change(block)
            if new is not block:
                # `change` may have saved its argument for the backward pass, so that must not be written to.
                edited = edited.clone() if torch.is_grad_enabled() else edited
                edited[rows, :, queries, keys] = new.to(edited)
        return edited

    def _attend(self) -> torch.Tensor:
        mask, causal = self._given
        if self._bias is not None:
            mask, causal = self._bias if self._mask is None else self._mask + self._bias, False
        grouped = self.key.shape[-3] != self.query.shape[-3]
        output = F.scaled_dot_product_attention(
            self.query, self.key, self.value, mask, 0.0, causal, scale=self._scale, enable_gqa=grouped
        )
        if not self._changes:
            return output
        # The fused result plus what the edit changes: an edit that changes nothing leaves every bit as it
        # was.
        before = _softmax(self._logits())
        difference = self._changed(before) - before
        return output + difference @ _repeat_heads(self.value, self.query)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1, dtype=torch.float32).to(logits.dtype)


def _repeat_heads(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values of grouped-query attention, one per query head."""
    groups = query.shape[-3] // tensor.shape[-3]
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=-3)


def _additive(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """A mask as something to add to the scores, with four dimensions."""
    while mask.ndim < 4:
        mask = mask[None]
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def _cut(extra: torch.Tensor, rows: slice, queries: slice) -> torch.Tensor:
    """The rows and queries of a mask whose dimensions may be 1 (the same for all)."""
    extra = extra if extra.shape[0] == 1 else extra[rows]
    return extra if extra.shape[-2] == 1 else extra[:, :, queries]


class SeenEnough(Exception):
    """Everything that techniques wanted to see of a forward pass has been seen."""


class _Observer(TorchFunctionMode):
    """Counts the attention calls of one forward pass, up to the depth `last`, and lets techniques see those they
    want."""

    def __init__(
        self,
        run: Run,
        layout: TokenLayout,
        techniques: Sequence[Technique],
        branches: list[str],
        text: int,
        last: int | None,
    ) -> None:
        super().__init__()
        self.run, self.layout, self.techniques = run, layout, techniques
        self.branches, self.text, self.last = branches, text, last
        self.seen = 0
        self.places: list[Place] = []  # all that anyone may see, in order

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        depth, self.seen = self.seen, self.seen + 1
        output = self._attend(depth, *args, **kwargs)
        if depth == self.last:
            raise SeenEnough
        return output

    def _attend(
        self,
        depth: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        run = self.run
        place = self.layout.place(depth, query.shape[-2], key.shape[-2], self.text, run.step, run.steps)
        wanting: list[Technique] = []
        if place is not None:
            self.places.append(place)
            wanting = [t for t in self.techniques if t.wants(run, place)]
        if not wanting or place is None:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        site = Site(place, query, key, value, self._rows(query.shape[0]), attn_mask, is_causal, scale)
        for technique in wanting:
            technique.attention(run, site)
        return site.output

    def _rows(self, batch: int) -> dict[str, slice]:
        each = batch // len(self.branches)
        return {name: slice(i * each, (i + 1) * each) for i, name in enumerate(self.branches)}


def observe(
    call: Callable[[], torch.Tensor],
    run: Run,
    layout: TokenLayout,
    techniques: Sequence[Technique],
    branches: list[str],
    text: int,
    compiled: bool = False,
    places: list[Place] | None = None,
    last: int | None = None,
) -> torch.Tensor:
    """`call()` with its attention shown to `techniques`.

    text: how many text tokens the denoiser was given. compiled: whether parts of it are compiled; they then
        run eagerly. places: is filled with all places that anyone may see. last: the depth at which SeenEnough is
        raised, when it has been attended.
    Raises ShowtellError where the model's attention does not pass through `scaled_dot_product_attention`.
    """
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with eager, _Observer(run, layout, techniques, branches, text, last) as observer:
        result = call()
    if places is not None:
        places[:] = observer.places
    if observer.seen == 0:
        raise ShowtellError(
            "this model's attention bypasses torch's scaled_dot_product_attention, so techniques "
            "cannot see it; call set_default_attn_processor() or "
            "reset_attention_backend() on the denoiser first."
        )
    return result


def is_compiled(model: Any) -> bool:
    """Whether `torch.compile` was called on the model or a part of it."""
    return hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
