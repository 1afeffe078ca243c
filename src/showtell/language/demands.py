"""What a prompt demands, fact by fact, each with the yes-no question that checks it in a picture."""

from __future__ import annotations

from dataclasses import dataclass

from showtell.language.results import Span, Split
from showtell.world.language.english import indefinite
from showtell.world.layout import DIRECTIONS


@dataclass(frozen=True)
class Demand:
    """kind: "thing", "attribute", one of `showtell.world.layout.DIRECTIONS`, or "apart": that things are not mixed up.

    words: the thing; the attribute and its thing; the two things; all things. question: for a verifier, "" for "apart".
    """

    kind: str
    words: tuple[Span, ...]
    question: str


def demands(split: Split) -> list[Demand]:
    """What an English prompt demands: its things, their modifiers, on which side of each other they are, no mixing."""
    heads = [entity.head for entity in split.entities]
    found = [Demand("thing", (head,), f"is there {indefinite(head.text)}?") for head in heads]
    for word, head in split.pairs:
        found.append(Demand("attribute", (word, head), f"is there {indefinite(f'{word.text} {head.text}')}?"))
    for link in split.relations:
        for first, second in [(heads[link.subject], heads[other]) for other in link.objects]:
            if link.kind in DIRECTIONS:
                asked = f"is the {first.text} {link.kind} the {second.text}?"
                found.append(Demand(link.kind, (first, second), asked))
    return [*found, Demand("apart", tuple(heads), "")] if len(heads) > 1 else found
