"""An instruction of several parts taken apart."""

from __future__ import annotations

import re
from itertools import pairwise

from showtell.language.results import Span


def sub_instructions(text: str) -> list[Span]:
    """The parts of an instruction between commas, semicolons, full stops and the word "and"; none of no words.

    "make the bike red, and add sand" has "make the bike red" and "add sand".
    """
    ends = [(0, 0), *(found.span() for found in re.finditer(r"[,;.]|\band\b", text)), (len(text), len(text))]
    found = []
    for (_, start), (stop, _) in pairwise(ends):
        words = text[start:stop].strip()
        first = text.find(words, start)
        found += [Span(words, first, first + len(words))] if words else []
    return found
