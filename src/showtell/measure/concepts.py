"""Concepts that are shown and not described: the tasks of personalization, and how well pictures show them.

A concept is an object of a known shape (its class) in a colour and texture that no caption gives away; a few pictures
show it alone, and prompts put it beside other things under a word of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.prompts import PromptSet
from showtell.measure.scores import read
from showtell.pictures import to_pil
from showtell.world import Scene, SceneObject, draw
from showtell.world.language import english
from showtell.world.language.captions import stated
from showtell.world.sampling import held_out
from showtell.world.scene import BACKGROUNDS, COLOURS, SHAPES


@dataclass(frozen=True)
class Concept:
    """thing: what it looks like; where it is means nothing. word: what it is called, before the name of its shape."""

    thing: SceneObject
    word: str = "sks"

    @property
    def name(self) -> str:
        """ "sks star"."""
        return f"{self.word} {self.thing.shape}"

    @property
    def like(self) -> str:
        """A known word that its own may begin as: another colour, as models of this world draw nothing without one."""
        return "purple" if self.thing.colour != "purple" else "grey"

    def pictures(self, count: int = 4, seed: int = 0) -> list[Any]:
        """Pictures, 64x64, of it alone, in different places on different backgrounds."""
        rng = random.Random(seed)
        grounds = [one for one in BACKGROUNDS[1:] if one != self.thing.colour]
        places = [replace(self.thing, x=rng.uniform(0.3, 0.7), y=rng.uniform(0.3, 0.7)) for _ in range(count)]
        return to_pil(draw([Scene((thing,), rng.choice(grounds)) for thing in places]))


def concept(seed: int = 0, textures: Sequence[str] = ("striped", "dotted", "checked")) -> Concept:
    """One whose shape and colour occur together nowhere in training, drawn by the seed."""
    rng = random.Random(seed)
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS[:-3] if held_out(shape, colour)]
    shape, colour = rng.choice(pairs)
    return Concept(SceneObject(shape, colour, texture=rng.choice(list(textures))))


class ConceptPrompts:
    """Prompts of two things in which the concept takes the first one's place.

    texts (n): "a sks star left of a blue ring". The metrics take one picture each and give (n,) in [0, 1].
    """

    def __init__(self, shown: Concept, prompts: PromptSet) -> None:
        if any(len(scene.objects) != 2 for scene in prompts.scenes):
            raise ShowtellError("prompts for a concept are of two objects each; use for example 'pairs'")
        self.concept, self.texts, self.others, self.backgrounds = shown, [], [], []
        for scene in prompts.scenes:
            first, other = scene.objects
            if other.shape == shown.thing.shape:  # else nobody could say which is which
                other = replace(other, shape=first.shape if first.shape != other.shape else _another(other.shape))
            named = replace(first, shape=shown.thing.shape, colour=_another(other.colour, COLOURS))
            told = replace(scene, objects=(named, other)).caption()
            self.texts.append(told.replace(english.a(stated(named)), f"a {shown.name}", 1))
            self.others.append(other)
            self.backgrounds.append(scene.background)

    def __len__(self) -> int:
        return len(self.texts)

    def identity(self, images: Any, judge: Any = "first") -> np.ndarray:
        """Half for the concept's colour, half for its texture, on the object of its shape that has most of them."""
        wanted, found = self.concept.thing, []
        for scene in self._read(images, judge):
            like = [thing for thing in scene.objects if thing.shape == wanted.shape]
            shares = [((one.colour == wanted.colour) + (one.texture == wanted.texture)) / 2 for one in like]
            found.append(max(shares, default=0.0))
        return np.array(found)

    def rest(self, images: Any, judge: Any = "first") -> np.ndarray:
        """What else was asked for: a third each for the other's shape, its colour, and the background."""
        found = []
        for scene, other, ground in zip(self._read(images, judge), self.others, self.backgrounds, strict=True):
            like = [thing for thing in scene.objects if thing.shape == other.shape]
            right = any(thing.colour == other.colour and thing.texture == "solid" for thing in like)
            found.append((bool(like) + right + (scene.background == ground)) / 3)
        return np.array(found)

    def both(self, images: Any, judge: Any = "first") -> np.ndarray:
        """The harmonic mean of identity and rest; 0 where one of them is."""
        one, two = self.identity(images, judge), self.rest(images, judge)
        return 2 * one * two / np.maximum(one + two, 1e-12)

    def _read(self, images: Any, judge: Any) -> list[Scene]:
        seen = read(images, judge)
        if len(seen) != len(self):
            raise ShowtellError(f"{len(seen)} images for {len(self)} prompts; give one per prompt")
        return seen


def shown_by(metric: str) -> Callable[..., np.ndarray]:
    """A metric of `ConceptPrompts` ("identity", "rest" or "both") for arms whose concept differs from seed to seed.

    They return the prompts with their pictures, (ConceptPrompts, images).
    """

    def score(found: tuple[ConceptPrompts, Any], judge: Any = "first") -> np.ndarray:
        prompts, images = found
        values: np.ndarray = getattr(prompts, metric)(images, judge)
        return values

    score.__name__ = metric
    return score


def _another(value: str, values: Sequence[str] = SHAPES) -> str:
    return next(one for one in values if one != value)
