"""Subspaces of text embeddings: what a list of concepts spans, and what a prompt spans when its words are masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..bridges.words import Piece, Words


def projector(rows: torch.Tensor) -> torch.Tensor:
    """The projection onto the span of rows (k, channels), (channels, channels), in double precision.

    Directions that hold less than a hundred-thousandth of the largest are rounding and left out. With the rows
    as columns of C it is C pinv(C^T C) C^T; for tokens as rows, multiply from the right.
    """
    rows = rows.double()
    return torch.linalg.pinv(rows, rtol=1e-5) @ rows


def spans(run: Any) -> list[tuple[Piece, range]]:
    """The pieces of a run's text tokens, one per tokenizer that the denoiser reads, with their positions."""
    pieces, length = run.adapter.pieces(**_options(run)), run.text.tokens.shape[1]
    stops = [*(piece.start for piece in pieces[1:]), length]
    return [(piece, range(piece.start, min(stop, length))) for piece, stop in zip(pieces, stops, strict=True)]


def words_of(run: Any, prompt: str) -> Words:
    """The words of a prompt as this run's encoders read them."""
    return run.bridge.words(prompt, **_options(run))


def pooled(run: Any, prompts: Sequence[str], piece: Piece, span: range) -> torch.Tensor:
    """One embedding per prompt, (n, channels), in the space that the denoiser reads.

    It is the state of the token that follows the prompt, which has read all of it; for T5, which is not causal and is
    trained without such a token, that of the first.
    """
    tokens = run.encode(list(prompts)).tokens
    first = "T5" in type(getattr(piece.tokenizer, "tokenizer", piece.tokenizer)).__name__
    rows = []
    for row, prompt in enumerate(prompts):
        own = [at for at in words_of(run, prompt).positions if at in span] or [span.start]
        last = min(span.stop, tokens.shape[1]) - 1
        rows.append(tokens[row, own[0] if first else min(own[-1] + 1, last)])
    return torch.stack(rows)


def without_each_word(words: Words, mask: str = "!") -> list[str]:
    """The prompt with one word after the other replaced by `mask`."""
    return [words.prompt[: word.start] + mask + words.prompt[word.stop :] for word in words]


def _options(run: Any) -> dict[str, Any]:
    return {name: run.options[name] for name in run.adapter.text_options & run.options.keys()}
