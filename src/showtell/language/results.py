"""What the task-level calls of a language model give back: plain frozen records, the same for every model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from showtell.world.language.english import article

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in fractions of the width and height, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some words of a prompt: `prompt[start:stop] == text`."""

    text: str
    start: int
    stop: int

    def positions(self, words: Iterable[Any]) -> tuple[int, ...]:
        """The text tokens of the span, in order. words: `bridge.words(prompt)` of the same prompt."""
        inside = (w.positions for w in words if w.start < self.stop and self.start < w.stop)
        return tuple(sorted({position for positions in inside for position in positions}))


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing that a prompt names. phrase: all of it; head: its noun; modifiers: what else is said of it."""

    phrase: Span
    head: Span
    modifiers: tuple[Span, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class Link:
    """`subject` words `objects`: indices into `Split.entities`; two objects for "between", else one.

    kind: one of `showtell.world.scene.RELATIONS`, or "" for what is not about places ("holding").
    """

    words: Span
    kind: str
    subject: int
    objects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """A prompt taken apart. rest: what is said of the whole picture (background, style, light ...)."""

    text: str
    entities: tuple[Entity, ...]
    relations: tuple[Link, ...] = ()
    rest: tuple[Span, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """A sub-prompt for each entity: its own phrase."""
        return [entity.phrase.text for entity in self.entities]

    @property
    def background(self) -> str:
        """A sub-prompt for the picture as a whole; "" where nothing is said of it."""
        return ", ".join(span.text for span in self.rest)

    @property
    def pairs(self) -> list[tuple[Span, Span]]:
        """(modifier, noun) for every modifier."""
        return [(modifier, entity.head) for entity in self.entities for modifier in entity.modifiers]

    def keeping(self, modifiers: Collection[Span]) -> str:
        """The prompt with no other modifiers than these; "a" and "an" fit what then follows."""
        text = self.text
        for span, _ in sorted(self.pairs, key=lambda pair: -pair[0].start):
            if span not in modifiers:
                text = text[: span.start] + text[span.stop :].lstrip(" ,")
        return re.sub(r"\b([Aa])n? (?=(\w))", lambda found: f"{found[1]}{article(found[2])[1:]} ", text)

    @property
    def concepts(self) -> list[str]:
        """Everything that can be checked on its own: entities, relations ("a ring left of a star"), the rest."""
        related = []
        for link in self.relations:
            subject, others = self.prompts[link.subject], [self.prompts[i] for i in link.objects]
            if link.words.text.isascii() or " " in self.text:
                related.append(f"{subject} {link.words.text} {' and '.join(others)}")
            else:  # Chinese says "A at B's left side"
                of = "" if link.kind == "between" else "的"
                related.append(f"{subject}在{'和'.join(others)}{of}{link.words.text}")
        return [*self.prompts, *related, *(span.text for span in self.rest)]


@dataclass(frozen=True, slots=True)
class Placed:
    """One object of a layout. phrase: as in the prompt; prompt: a prompt for this one object; entity: its index."""

    phrase: str
    prompt: str
    box: Box
    entity: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A box for every object that a prompt asks for, counted things one by one, and a prompt for the rest."""

    text: str
    placed: tuple[Placed, ...]
    background: str = ""

    @property
    def boxes(self) -> list[Box]:
        return [one.box for one in self.placed]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What a picture has other than asked, in words. kind: "missing", "extra", "count", "relation", an attribute's
    name ("colour", "size" ...), or "background", "style", "light", "word", "camera"; larger models may use others."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Critique:
    """revised: a prompt with the same meaning that stresses what went wrong; the prompt itself where nothing did."""

    mismatches: tuple[Mismatch, ...]
    revised: str

    @property
    def right(self) -> bool:
        return not self.mismatches


@dataclass(frozen=True, slots=True)
class Altered:
    """A prompt changed in one respect. instruction: what leads there; "" where there is no single sentence for it."""

    kind: str
    instruction: str
    text: str
