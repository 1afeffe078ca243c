"""Where text and image lie in the attention of an architecture: what an adapter says once, and every
technique reads alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["self", "cross", "joint", "told"]
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """One attention call of the denoiser.

    depth: which call, counted from 0; of: how many calls one forward pass makes. name: the module that
        makes it.
    kind: "self" (image to image), "cross" (image to text), "joint" (one sequence of text and image) or "told"
        (text that reads an image: the queries are text, the keys text and image).
    grid: (height, width) or (frames, height, width) of the image tokens; fold: how many frames lie in the
        batch instead.
    step, steps: the sampling step (the token that is decided) and how many there are.
    image: image positions among the queries, None in "told". text: text positions among the keys, None where
        no text is attended.
    image_keys: image positions among the keys, None in cross-attention.
    told: text positions among the queries of "told".
    reference: positions among the keys of a further picture, such as the one to be edited; None without one.
    """

    depth: int
    of: int
    name: str
    kind: Kind
    grid: Grid
    step: int
    steps: int
    image: slice | None
    text: slice | None
    image_keys: slice | None
    fold: int = 1
    told: slice | None = None
    reference: slice | None = None


@dataclass(frozen=True)
class TokenLayout:
    """What an adapter says about its denoiser.

    calls: (module name, kind) of every attention call of one forward pass, in order; "other" for calls
        nobody may see.
    grids: image token count -> grid, for every resolution that occurs.
    text_first: whether text precedes the image in joint sequences.
    fold: frames that lie in the batch dimension of the attention.
    """

    calls: Sequence[tuple[str, str]]
    grids: Mapping[int, Grid]
    text_first: bool = False
    fold: int = 1

    def place(self, depth: int, queries: int, keys: int, text: int, step: int, steps: int) -> Place | None:
        """The place of a call of that many queries and keys, `text` of them text; None where the layout
        does not fit.
        """
        if depth >= len(self.calls):
            return None
        name, kind = self.calls[depth]
        spans = self._spans(kind, queries, keys, text)
        if spans is None:
            return None
        image, words, image_keys = spans
        grid = self.grids.get(image.stop - image.start)
        if grid is None:
            return None
        of = len(self.calls)
        return Place(depth, of, name, kind, grid, step, steps, image, words, image_keys, self.fold)  # type: ignore[arg-type]

    def _spans(self, kind: str, queries: int, keys: int, text: int) -> tuple[slice, slice | None, slice | None] | None:
        if kind == "self" and queries == keys:
            return slice(0, queries), None, slice(0, keys)
        if kind == "cross" and keys == text:
            return slice(0, queries), slice(0, keys), None
        if kind == "joint" and queries == keys > text:
            image = slice(text, keys) if self.text_first else slice(0, keys - text)
            return image, slice(0, text) if self.text_first else slice(keys - text, keys), image
        return None


def attention_calls(
    model: Any, kind: Callable[[str, Any], str | None], order: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """(module name, kind) of the model's attention modules in the order in which the model runs them.

    kind: says the kind of a named attention module, None to leave it out.
    order: prefixes of module names in running order, where the model does not hold its parts in that order.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    found = [(name, kind(name, m)) for name, m in model.named_modules() if hasattr(m, "processor")]
    if order:
        found = [item for prefix in order for item in found if item[0].startswith(prefix)]
    return [(name, kind) for name, kind in found if kind is not None]


def self_then_cross(denoiser: Any, grid: Grid) -> TokenLayout:
    """Of a transformer whose blocks attend to the image (attn1) and then to the text (attn2), all on one grid."""
    calls = attention_calls(denoiser, lambda name, _: "self" if name.endswith("attn1") else "cross")
    return TokenLayout(calls, {math.prod(grid): grid})


def halvings(height: int, width: int, levels: int) -> dict[int, Grid]:
    """Token count -> grid of a pyramid that halves each side (rounding up) at every level, as a UNet does."""
    grids: dict[int, Grid] = {}
    for _ in range(levels):
        grids.setdefault(height * width, (height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return grids
