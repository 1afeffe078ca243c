"""Boxes for prompts: by the world's own layout search for its captions, by a search over boxes for free text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from showtell.errors import UnsupportedError
from showtell.language.reading import Reading
from showtell.language.results import Box, Layout, Placed, Split
from showtell.world.draw import boxes
from showtell.world.language import module
from showtell.world.language.captions import stated
from showtell.world.language.english import indefinite
from showtell.world.language.parsing import WORD_FLOOR
from showtell.world.layout import DIRECTIONS, place
from showtell.world.scene import Scene

Numbers = NDArray[Any]

_SIDES = {"small": 0.2, "medium": 0.3, "large": 0.42}
_SIZE_WORDS = {
    "small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large", "huge": "large",
    "giant": "large",
}  # fmt: skip
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "leaves": "leaf", "wolves": "wolf", "loaves": "loaf",
    "tomatoes": "tomato", "potatoes": "potato",
}  # fmt: skip
_MOST = 24  # boxes in one layout
_FILLED = 0.45  # the largest part of the canvas that all boxes together take
_HELD = 0.4  # side of what is inside something, relative to the side of that
_TRIES, _PROPOSALS = 60, 512
_OVERLAPPING = ("inside", "in front of", "behind")


def world_layout(reading: Reading, seed: int) -> Layout:
    """Another layout of the same scene for every seed; exactly the stated relations are true of it."""
    scene = relaid(reading.scene, seed)
    words, split = module(reading.language), reading.split
    placed = []
    for thing, box, owner in zip(scene.objects, boxes(scene).tolist(), reading.owners, strict=True):
        prompt = words.a(stated(thing))
        x0, y0, x1, y1 = (round(v, 4) for v in box)
        placed.append(Placed(split.prompts[owner], prompt, (x0, y0, x1, y1), owner))
    return Layout(split.text, tuple(placed), split.background)


def relaid(scene: Scene, seed: int) -> Scene:
    """The same facts and stated relations at other places."""
    rng = random.Random(f"{seed} {scene.to_json()}")
    objects = place(scene.groups, scene.relations, rng, WORD_FLOOR if scene.word else 1.0)
    return Scene(objects, scene.background, scene.style, scene.light, scene.word, scene.camera)


def free_layout(split: Split, seed: int) -> Layout:
    """Square boxes; of two related things every box of one stands in the relation to every box of the other.

    "beside" becomes left or right of. What is linked by other words is not constrained.
    UnsupportedError where no such boxes were found.
    """
    rng = random.Random(f"{seed} {split.text}")
    links = []
    for link in split.relations:
        kind = rng.choice(("left of", "right of")) if link.kind == "beside" else link.kind
        if kind and link.subject not in link.objects and (kind == "between") == (len(link.objects) == 2):
            links.append((kind, link.subject, link.objects))
    total = sum(entity.count for entity in split.entities)
    if not 1 <= total <= _MOST:
        raise UnsupportedError(f"{split.text!r} asks for {total} boxes; a layout has 1 to {_MOST}")
    search = _Search(split, links, np.random.default_rng(rng.getrandbits(64)))
    for attempt in range(_TRIES):
        found = search.attempt(0.98**attempt)
        if found is not None:
            return Layout(split.text, tuple(_placed(split, found)), split.background)
    raise UnsupportedError(f"found no boxes for the {total} things of {split.text!r} with all its relations")


def _placed(split: Split, found: list[list[Box]]) -> list[Placed]:
    placed = []
    for i, (entity, its) in enumerate(zip(split.entities, found, strict=True)):
        one = " ".join([*(span.text for span in entity.modifiers), singular(entity.head.text)])
        prompt = entity.phrase.text if entity.count == 1 else indefinite(one)
        placed += [Placed(entity.phrase.text, prompt, box, i) for box in its]
    return placed


def singular(noun: str) -> str:
    """One of what an English plural names: "dogs", "boxes", "cherries", "people"."""
    if noun.lower() in _IRREGULAR:
        return _IRREGULAR[noun.lower()]
    for ending, one in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("ss", "ss")):
        if noun.endswith(ending) and len(noun) > len(ending) + 1:
            return noun.removesuffix(ending) + one
    return noun.removesuffix("s")


class _Search:
    """Boxes one entity after the other, each among many random proposals of which every rule so far is true."""

    def __init__(self, split: Split, links: list[tuple[str, int, tuple[int, ...]]], draw: np.random.Generator) -> None:
        self.links, self.draw = links, draw
        self.counts = [entity.count for entity in split.entities]
        said = [{m.text.lower() for m in entity.modifiers} for entity in split.entities]
        sizes = [next((_SIZE_WORDS[w] for w in sorted(words) if w in _SIZE_WORDS), "medium") for words in said]
        self.sides = [_SIDES[size] for size in sizes]
        for kind, subject, others in links:
            if kind == "inside":
                self.sides[others[0]] = max(self.sides[others[0]], _SIDES["large"])
                self.sides[subject] = min(self.sides[subject], _HELD * self.sides[others[0]] / self.counts[subject])
        area = sum(count * side * side for count, side in zip(self.counts, self.sides, strict=True))
        self.scale = min(1.0, (_FILLED / area) ** 0.5)
        # What holds or flanks other things comes first.
        waits = {subject for kind, subject, _ in links if kind in ("inside", "between")}
        self.order = sorted(range(len(self.counts)), key=lambda i: i in waits)

    def attempt(self, shrink: float) -> list[list[Box]] | None:
        found: list[list[Box]] = [[] for _ in self.counts]
        for i in self.order:
            half = self.sides[i] * self.scale * shrink / 2
            for _ in range(self.counts[i]):
                centres = self.draw.uniform(half, 1 - half, (_PROPOSALS, 2))
                proposals = np.concatenate([centres - half, centres + half], 1)
                fine = np.flatnonzero(self._fine(i, proposals, found))
                if not len(fine):
                    return None
                x0, y0, x1, y1 = (round(float(v), 4) for v in proposals[fine[0]])
                found[i].append((x0, y0, x1, y1))
        return found

    def _fine(self, i: int, mine: Numbers, found: list[list[Box]]) -> Numbers:
        """(proposals,) whether each of the boxes (proposals, 4) may be one of entity i."""
        fine = np.ones(len(mine), bool)
        close = {other for kind, a, b in self.links if kind in _OVERLAPPING and i in (a, *b) for other in (a, *b)} - {i}
        for other, its in enumerate(found):
            for box in np.array(its).reshape(-1, 4):
                if other not in close:
                    fine &= ~_overlap(mine, box, 0.01)
        for kind, subject, others in self.links:
            if kind == "between" and i == subject and all(found[o] for o in others):
                fine &= _between(mine, *(np.array(found[o][0]) for o in others))
            elif kind == "between" and i in others:
                for o in set(others) - {i}:
                    for box in np.array(found[o]).reshape(-1, 4):
                        fine &= np.abs(_centre(mine) - _centre(box)).max(-1) > self.sides[subject] * self.scale * 1.2
            elif i == subject:
                for box in np.array(found[others[0]]).reshape(-1, 4):
                    fine &= _holds(kind, mine, box)
            elif i == others[0]:
                for box in np.array(found[subject]).reshape(-1, 4):
                    fine &= _holds(kind, box, mine)
        return fine


def _centre(box: Numbers) -> Numbers:
    return (box[..., :2] + box[..., 2:]) / 2


def _overlap(a: Numbers, b: Numbers, gap: float) -> Any:
    return ((a[..., :2] < b[..., 2:] + gap) & (b[..., :2] < a[..., 2:] + gap)).all(-1)


def _holds(kind: str, a: Numbers, b: Numbers) -> Any:
    """Whether box a is `kind` box b; either may be (n, 4)."""
    if kind == "inside":
        return (a[..., :2] >= b[..., :2]).all(-1) & (a[..., 2:] <= b[..., 2:]).all(-1)
    away = _centre(b) - _centre(a)
    if kind in _OVERLAPPING:  # a part of each stays visible
        reach = (a[..., 2] - a[..., 0] + b[..., 2] - b[..., 0]) / 2
        far = np.abs(away).max(-1)
        return (far < 0.7 * reach) & (far > 0.3 * reach)
    axis, sign = DIRECTIONS[kind]
    gap = sign * away[..., axis] - (a[..., 2 + axis] - a[..., axis] + b[..., 2 + axis] - b[..., axis]) / 2
    return (gap > 0) & (np.abs(away[..., axis]) > np.abs(away[..., 1 - axis]))


def _between(mine: Numbers, one: Numbers, other: Numbers) -> Any:
    away = _centre(mine) - (_centre(one) + _centre(other)) / 2
    return np.abs(away).max(-1) < 0.06
