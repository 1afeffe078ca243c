"""A text that lists words, each as it is encoded alone."""

from __future__ import annotations

from collections.abc import Sequence


def listed(words: Sequence[Sequence[int]]) -> list[list[int]]:
    """Text tokens of words in a text that lists them, from those of each word alone.

    A word that several text encoders read has a run of neighbouring tokens for each, and every run follows its own.
    """
    moved: list[list[int]] = []
    used: dict[int, int] = {}
    for positions in words:
        run, span = 0, []
        for i, at in enumerate(positions):
            run += i > 0 and at != positions[i - 1] + 1
            span.append((run, at + used.get(run, 0)))
        moved.append([at for _, at in span])
        for run, _ in span:
            used[run] = used.get(run, 0) + 1
    return moved
