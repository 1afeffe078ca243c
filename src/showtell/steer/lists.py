"""What a technique is given for its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..bridges.base import spread


def lists_of(given: Sequence[Any], count: int, what: str, kind: type = str) -> list[list[Any]]:
    """A list for each of `count` samples. given: things of one kind, the same for all, or a list of them for each.

    what: the name of the argument. Raises ShowtellError for another number of lists than of samples.
    """
    if all(isinstance(one, kind) for one in given):
        return [list(given)] * count
    return [list(one) for one in spread(list(given), count, what)]
