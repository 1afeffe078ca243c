"""Sentences with gaps: "replace {} with {}" can be filled, and what fills it can be read back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from showtell.world.language.lexicon import COMMAS, Lexicon


def fill(template: str, *parts: str) -> str:
    """The sentence; a gap may be filled with "" only at the end of the template."""
    return template.format(*parts).strip()


def gaps(template: str, tokens: Sequence[str], lexicon: Lexicon) -> list[list[str]] | None:
    """The tokens in each gap of the template, or None where the sentence does not have its form."""
    fixed = [sentence(piece, lexicon) for piece in template.split("{}")]
    rest, found = list(tokens), []
    if rest[: len(fixed[0])] != fixed[0]:
        return None
    rest = rest[len(fixed[0]) :]
    for piece in fixed[1:]:
        at = _last(rest, piece) if piece else len(rest)
        if at < 1:
            return None
        found.append(rest[:at])
        rest = rest[at + len(piece) :]
    return None if rest else found


def _last(tokens: list[str], piece: list[str]) -> int:
    """Where the piece occurs for the last time; -1 where it does not."""
    starts = range(len(tokens) - len(piece), -1, -1)
    return next((i for i in starts if tokens[i : i + len(piece)] == piece), -1)


def sentence(text: str, lexicon: Lexicon) -> list[str]:
    """The tokens of a text without punctuation."""
    return [token for token in lexicon.split(text) if token not in COMMAS]


def learn(lexicon: Lexicon, *texts: Iterable[str]) -> None:
    """Counts the words of templates among the known ones; in a description they mean nothing."""
    for text in itertools.chain(*texts):
        lexicon.vocabulary.update(w for w in lexicon.split(text.replace("{}", " ")) if w not in COMMAS)
