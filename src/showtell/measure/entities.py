"""Entities that are named by a word which says nothing of their looks: the vocabulary of the "knowledge" prompts.

An entity is drawn as an ordinary object of the world; only who knows the facts knows which. `REAL` ones are things of
this world in the world's shapes; `INVENTED` ones no model can have met.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from showtell.errors import ShowtellError
from showtell.world.language import english
from showtell.world.scene import SceneObject


@dataclass(frozen=True)
class Entity:
    """name: one word outside the world's vocabulary. look: its attributes, as `SceneObject` takes them."""

    name: str
    look: tuple[tuple[str, Any], ...]
    invented: bool = False

    @property
    def noun(self) -> str:
        """With its article: "a tomato"."""
        return english.indefinite(self.name)

    @property
    def description(self) -> str:
        """What it looks like, in words that `Scene.parse` knows: "a red circle"."""
        return english.a(dict(self.look))

    @property
    def fact(self) -> str:
        """ "a tomato is a red circle"."""
        return f"{self.noun} is {self.description}"

    def thing(self) -> SceneObject:
        """An object that looks like it."""
        return SceneObject(**dict(self.look))


def _entities(invented: bool, **looks: str) -> tuple[Entity, ...]:
    """name="colour shape [more attributes]" -> entities."""
    from showtell.world.scene import SIZES, TEXTURES

    made = []
    for name, words in looks.items():
        colour, shape, *more = words.split()
        kinds = {"size": SIZES, "texture": TEXTURES}
        extra = {kind: value for value in more for kind, values in kinds.items() if value in values}
        made.append(Entity(name, tuple(({"shape": shape, "colour": colour} | extra).items()), invented))
    return tuple(made)


REAL = _entities(
    False,
    tomato="red circle", lime="green circle", snowball="white circle", pumpkin="orange circle", coin="grey circle",
    lemon="yellow oval", potato="brown oval", egg="white oval", plum="purple oval", brick="red square striped",
    chessboard="black square checked", raindrop="blue drop small", flame="orange drop", sunflower="yellow flower large",
    daisy="white flower small", starfish="orange star", lifebuoy="red ring striped", tyre="black ring large",
    mirror="grey frame", kite="red diamond large", banana="yellow crescent", honeycomb="yellow hexagon dotted",
)  # fmt: skip
INVENTED = _entities(
    True,
    dax="purple pentagon striped", wug="cyan heart dotted", blicket="green cross", zorp="pink hexagon checked",
    fep="brown star small", toma="grey drop striped", modi="green crescent dotted", kiki="orange arrow large",
    bouba="pink oval dotted", gazzer="cyan diamond checked", tulver="green frame", vash="pink ring dotted",
    pilk="black flower", jeebo="blue pentagon large", rafti="white arrow striped", snell="red triangle dotted",
)  # fmt: skip
ENTITIES = {entity.name: entity for entity in (*REAL, *INVENTED)}


def explain(text: str) -> str:
    """The text with every entity replaced by what it looks like, which `Scene.parse` can read.

    "a tomato above a wug" -> "a red circle above a dotted cyan heart".
    """
    names = "|".join(ENTITIES)
    return re.sub(rf"\ban? ({names})\b", lambda found: ENTITIES[found[1]].description, text)


def facts_for(names: Sequence[str], rng: random.Random, distractors: int = 0) -> list[str]:
    """The facts of the entities and those of `distractors` others, shuffled: what a retriever chooses from.

    Raises ShowtellError for an unknown entity, and for more distractors than there are other entities.
    """
    unknown = [name for name in names if name not in ENTITIES]
    if unknown:
        raise ShowtellError(f"unknown entity {unknown[0]!r}; use some of: {', '.join(ENTITIES)}")
    others = [name for name in ENTITIES if name not in names]
    if distractors > len(others):
        raise ShowtellError(f"{distractors} distractors, but there are only {len(others)} other entities")
    found = [ENTITIES[name].fact for name in (*names, *rng.sample(others, distractors))]
    rng.shuffle(found)
    return found
