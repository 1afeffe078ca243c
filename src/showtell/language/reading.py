"""Captions of the world taken apart: `world.language` reads them, here each part gets its characters in the text."""

from __future__ import annotations

from dataclasses import dataclass

from showtell.language.results import Entity, Link, Span, Split
from showtell.world.language import language_of, module, parse
from showtell.world.language.lexicon import Symbol
from showtell.world.language.parsing import EXTRAS, Description, described
from showtell.world.scene import Scene

_MODIFIERS = ("colour", "size", "texture", "state", "rotation", "motion")


@dataclass(frozen=True)
class Reading:
    """A caption of the world: its language, scene and parts. extras: what it says of the picture as a whole.

    things: one per entity of the split; owners: the entity of every object of the scene.
    """

    language: str
    scene: Scene
    split: Split
    extras: dict[str, str]
    things: list[Description]
    owners: list[int]


def read(text: str) -> Reading:
    """Reads a caption of the world; SceneError where `world.language.parse` raises it."""
    scene, language = parse(text), language_of(text)
    symbols = module(language).LEXICON.read(text)
    extras, things, relations = described(symbols)
    owners = [i for i, thing in enumerate(things) for _ in range(thing.count or 1)]
    entities = tuple(_entity(text, thing) for thing in things)
    said = [_span(text, [symbol]) for symbol in symbols if symbol.kind == "relation"]
    # "between two stars" is one phrase for two relations.
    words = [said[min(i, len(said) - 1)] for i in range(len(relations))]
    links = tuple(Link(w, r.kind, r.subject, r.objects) for w, r in zip(words, relations, strict=True))
    rest = tuple(_span(text, [symbol]) for symbol in symbols if symbol.kind in EXTRAS)
    return Reading(language, scene, Split(text, entities, links, rest), extras, things, owners)


def _entity(text: str, thing: Description) -> Entity:
    symbols = list(thing.symbols)
    while symbols and symbols[-1].kind in ("of", "skip"):
        symbols.pop()
    head = next(s for s in symbols if s.kind in ("shape", "shapes"))
    modifiers = tuple(_span(text, [s]) for s in symbols if s.kind in _MODIFIERS)
    return Entity(_span(text, symbols), _span(text, [head]), modifiers, thing.count or 1)


def _span(text: str, symbols: list[Symbol]) -> Span:
    start, stop = min(s.start for s in symbols), max(s.stop for s in symbols)
    while start < stop and not text[start].isalnum():  # the mark in "; meadow"
        start += 1
    return Span(text[start:stop], start, stop)
