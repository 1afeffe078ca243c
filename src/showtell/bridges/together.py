"""Which techniques a bridge cannot use: those that wait for hooks it never calls, and pairs of which the later would
undo the earlier. Both are found before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ShowtellError, UnsupportedError
from .base import Technique, overriding

MADE = {
    "prompts": "replace the call's prompts",
    "text": "set the encoded text at every step",
    "prediction": "make the guided prediction anew",
}
"""What a technique may make anew, whatever was there before it: values of its class attribute `makes`."""

DENOISING = ("start", "before", "beside", "prediction", "latents", "around", "differentiates")
DECODING = ("logits", "tokens", "decode")
"""Hooks that only the one or the other loop calls."""


def check_together(techniques: Sequence[Technique]) -> None:
    """Raises ShowtellError where two techniques make the same thing anew, so that one of them would have no effect.

    A technique says what it makes in a class attribute `makes`, some of MADE; those that only change what they are
    given say nothing, and go with all others.
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


def check_fits(bridge: Any, techniques: Sequence[Technique], denoises: bool) -> None:
    """`check_together`, and raises UnsupportedError for a technique that rests on hooks of the other loop, and would
    silently do nothing.

    denoises: whether the bridge denoises latents; otherwise it decodes tokens.
    """
    check_together(techniques)
    own, other = (DENOISING, DECODING) if denoises else (DECODING, DENOISING)
    for technique in techniques:
        if _uses(technique, other) and not _uses(technique, own):
            name, does = type(technique).__name__, "denoises latents" if denoises else "decodes tokens"
            wanted = "an autoregressive or masked model" if denoises else "a diffusion model"
            raise UnsupportedError(f"{name} is for {wanted}; {bridge.name} {does}.")


def _uses(technique: Technique, hooks: Sequence[str]) -> bool:
    return any(overriding([technique], hook) for hook in hooks)
