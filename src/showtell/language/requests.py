"""What a user says of a picture that is wanted, read by rule (what is to be drawn, what is named), and what generators
say of themselves (how their prompts end, tags)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

FRAMES = (
    ("instruction", r"(?:please )?(?:draw|paint|show|make)(?: me)? (.+)"),
    ("inspiration", r"i (?:want|would like|dream) (?:to see |of )?(.+)"),
    ("hypothesis", r"(?:if|suppose) .+?, (?:it|there|you) would (?:be|see) (.+)"),
)
"""Kinds of request, and the words around what is to be drawn."""


def wanted(text: str) -> tuple[str, str]:
    """(kind, what is to be drawn) of a request in English; without one of the `FRAMES` it is a "prompt" as it is."""
    for kind, frame in FRAMES:
        if match := re.fullmatch(frame, text.strip().rstrip(".!?"), re.IGNORECASE):
            return kind, match[1]
    return "prompt", text


def named(text: str, options: Sequence[str]) -> list[str]:
    """The options that a text names as whole words, upper or lower case."""
    return [one for one in options if re.search(rf"\b{re.escape(one)}\b", text, re.IGNORECASE)]


def shared_ending(prompts: Sequence[str]) -> str:
    """What stands behind the last comma of all prompts; "" where they differ, have no comma, or there are none."""
    endings = {text.rpartition(", ")[2] if ", " in text else "" for text in prompts}
    return endings.pop() if len(endings) == 1 else ""


def with_ending(text: str, examples: Sequence[str]) -> str:
    """A prompt worded like examples: with the ending that all of them share, if it is not in the text yet."""
    ending = shared_ending(examples)
    return text if not ending or ending in text else f"{text}, {ending}"


def by_tags(tags: Mapping[str, Sequence[str]], default: str = "general") -> dict[str, dict[str, list[str]]]:
    """subject -> style -> names of what has these two as its first tags; `default` where it has fewer."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, own in tags.items():
        subject, style = [*own, default, default][:2]
        found.setdefault(subject, {}).setdefault(style, []).append(name)
    return found
