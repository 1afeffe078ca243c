"""What a prompt says of its things, how many and how they lie to each other, and whether boxes agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from showtell.language.results import Box
from showtell.world.layout import DIRECTIONS


@dataclass
class Thing:
    """What a prompt names with `phrase`, `count` times; `one` of it alone, in words."""

    phrase: str
    one: str
    count: int = 1


@dataclass
class Facts:
    """A form to ask a language model for. relations: (index of the first, relation, index of the second)."""

    objects: list[Thing]
    relations: list[tuple[int, str, int]] = field(default_factory=list)


def wrong(facts: Facts, drawn: Sequence[Sequence[Box]]) -> str:
    """What is wrong with boxes, one list per object; "" if counts are right and all sides hold between centres.

    Relations other than left of, right of, above and below are not checked.
    """
    if [len(boxes) for boxes in drawn] != [thing.count for thing in facts.objects]:
        return "the counts"
    for first, kind, second in facts.relations:
        axis, sign = DIRECTIONS.get(kind, (0, 0.0))
        if any(sign * (b[axis] + b[axis + 2] - a[axis] - a[axis + 2]) < 0 for a in drawn[first] for b in drawn[second]):
            return f"{facts.objects[first].phrase} {kind} {facts.objects[second].phrase}"
    return ""
