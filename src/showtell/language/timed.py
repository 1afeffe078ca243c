"""Prompts whose parts weigh more or less and act for a part of the sampling: "a horse, [anime style:0-0.5:1.5]"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from showtell.language.results import Span


@dataclass(frozen=True)
class Part:
    """Some words of a prompt. start, stop: when they act, in remaining noise, 1 at the first step and 0 after the last.
    weight: None for plain words, which act always."""

    text: str
    start: float = 0.0
    stop: float = 1.0
    weight: float | None = None

    def active(self, step: int, steps: int) -> bool:
        """Whether the words act at a step of 0 to `steps` - 1; ranges that meet leave no step out and share none."""
        left = steps - step
        return int(self.start * steps) < left <= int(self.stop * steps)


def parse(prompt: str) -> list[Part]:
    """The parts of "plain words, [modifier:start-stop:weight]", in order (the form of Prompt Auto-Editing, arXiv
    2404.04095). Brackets of another form are words like any other."""
    parts, at = [], 0
    for found in re.finditer(r"\[([^][:]+):([\d.]+)-([\d.]+):([\d.]+)\]", prompt):
        parts += [Part(prompt[at : found.start()]), Part(found[1], *map(float, found.groups()[1:]))]
        at = found.end()
    return [part for part in (*parts, Part(prompt[at:])) if part.text]


def shown(parts: Sequence[Part], step: int, steps: int) -> tuple[str, list[tuple[Span, float]]]:
    """The prompt at a step, and where its weighted words stand in it, with their weights. What does not act is left
    out with the comma before it."""
    text, weighted = "", []
    for part in parts:
        if part.weight is not None and not part.active(step, steps):
            text = text.rstrip(", ")
            continue
        if part.weight is not None:
            weighted.append((Span(part.text, len(text), len(text) + len(part.text)), part.weight))
        text += part.text
    return text, weighted
