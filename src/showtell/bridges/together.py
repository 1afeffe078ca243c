"""Which techniques cannot be used together: those of which the later would undo the earlier."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ShowtellError
from .base import Technique

MADE = {
    "prompts": "replace the call's prompts",
    "prediction": "make the guided prediction anew",
}
"""What a technique may make anew, whatever was there before it: values of its class attribute `makes`."""


def check_together(techniques: Sequence[Technique]) -> None:
    """Raises ShowtellError where two techniques make the same thing anew, so that one of them would have no effect.

    Known before anything is sampled. A technique says what it makes in a class attribute `makes`, some of MADE; those
    that only change what they are given say nothing, and go with all others. Two of the same class (a technique and its
    variant for other layers, say) are no exception.
    """
    owners: dict[str, Technique] = {}
    for technique in techniques:
        for made in getattr(technique, "makes", ()):
            if made in owners:
                first, second = type(owners[made]).__name__, type(technique).__name__
                raise ShowtellError(
                    f"{first} and {second} both {MADE[made]}, so that the first would have no effect; use one of them."
                )
            owners[made] = technique
