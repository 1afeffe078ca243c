"""What the captions of all languages share: which facts are said, and the sentence around the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from showtell.world.scene import INVERSE, TURNABLE, Group, Relation, Scene, SceneObject

UNSAID = {"size": "medium", "texture": "solid", "state": "whole", "rotation": 0, "motion": None}
UNSAID_OF_SCENE = {"background": "white", "style": "flat", "light": "even", "word": "", "camera": "still"}


@dataclass(frozen=True)
class Wording:
    """The words of one language around its noun phrases, by caption style ("": for styles not listed).

    relations: style -> kind -> phrase. templates: style -> fact of the scene -> template with {} for its
    name. names: "fact" or "fact style" -> value -> name. which: what introduces a second relation, for one
    and for many.
    """

    relations: Mapping[str, Mapping[str, str]]
    templates: Mapping[str, Mapping[str, str]]
    names: Mapping[str, Mapping[str, str]]
    which: tuple[str, str]
    join: str

    def relation(self, kind: str, style: str) -> str:
        return self.relations.get(style, {}).get(kind) or self.relations[""][kind]

    def extras(self, scene: Scene, style: str) -> str:
        """Background, style, light, word and camera, each with its punctuation; "" where all are as usual."""
        text = ""
        for fact, usual in UNSAID_OF_SCENE.items():
            value = getattr(scene, fact)
            if value == usual and style != "detailed":
                continue
            if fact == "word":
                text += self.templates[style]["word" if value else "no word"].format(value)
                continue
            text += self.templates[style][fact].format(self.name(fact, value, style))
        return text

    def name(self, fact: str, value: str, style: str) -> str:
        """What the language calls a background, style, light or camera in the style."""
        return (self.names.get(f"{fact} {style}") or self.names[fact])[value]

    def chain(self, things: Sequence[str], groups: Sequence[Group], kinds: Sequence[str], style: str) -> str:
        """Things joined by relations in prefix order: "A left of B, which is above C and D"."""
        text, chained = things[0], False
        for i, kind in enumerate(kinds):
            if kind in ("", "and"):
                listed = not kind and i + 1 < len(kinds) and not kinds[i + 1] and style != "terse"
                text += f"{',' if listed else self.join} {things[i + 1]}"
                chained = False
                continue
            motion = groups[i][0].motion
            if (chained or (motion and motion.to)) and style != "terse":
                text += self.which[len(groups[i]) > 1]
            text += f" {self.relation(kind, style)} {things[i + 1]}"
            chained = True
        return text


def stated(thing: SceneObject, full: bool = False) -> dict[str, Any]:
    """The attributes that a caption says of the object: what is not as usual, or everything."""
    said: dict[str, Any] = {"shape": thing.shape, "colour": thing.colour}
    for name, usual in UNSAID.items():
        value = getattr(thing, name)
        if value != usual or (full and name != "motion" and (name != "rotation" or thing.shape in TURNABLE)):
            said[name] = value
    return said


def links(groups: Sequence[Group], relations: Sequence[Relation]) -> list[str]:
    """What joins group i to group i + 1: a relation, or "" where none is stated.

    "A between B and C" is "between", then "and".
    """
    kinds = [""] * (len(groups) - 1)
    for r in relations:
        kinds[r.subject] = r.kind
        if r.kind == "between":
            kinds[1] = "and"
    return kinds


def order(scene: Scene, style: str) -> tuple[list[Group], list[str]]:
    """The groups in the order in which the style mentions them, and the links between them."""
    groups, kinds = list(scene.groups), links(scene.groups, scene.relations)
    if style == "paraphrase-2" and all(not kind or kind in INVERSE for kind in kinds):
        return groups[::-1], [INVERSE.get(kind, "") for kind in kinds[::-1]]
    return groups, kinds
