"""Scores of captions against the scene they describe, from what they state: objects, attributes, relations.

A caption is read as a list of statements, as in SPICE (arXiv 1607.08822), by the world's own lexicon: no synonym or
word order is charged for, and words it does not know are passed over. Each score takes texts and scenes and gives (n,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from showtell.bridges.base import as_list
from showtell.errors import ShowtellError
from showtell.world.language import language_of, module
from showtell.world.language.captions import UNSAID_OF_SCENE, stated
from showtell.world.language.lexicon import COMMAS
from showtell.world.language.parsing import Description, Reader
from showtell.world.scene import INVERSE, Scene, SceneError, holds

PARTS = ("objects", "attributes", "relations")
_MOST = 9  # of one thing that a caption counts


@dataclass(frozen=True)
class Statements:
    """What a text states. things: the attributes named of each (a counted thing several times); relations: (kind,
    indices of things); setting: background, style, light, camera, word where named."""

    things: tuple[dict[str, Any], ...]
    relations: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
    setting: dict[str, str]


def statements(text: str) -> Statements:
    """Reads whatever can be read of a text, in any of the world's languages; nothing of an empty one.

    What the grammar can parse is read exactly; of other texts the loose reading takes relations as standing between
    their things, as in English and Spanish.
    """
    try:
        return _loosely(Scene.parse(text).caption())
    except SceneError:
        return _loosely(text)


def _loosely(text: str) -> Statements:
    lexicon = module(language_of(text)).LEXICON
    symbols = lexicon.read(" ".join(w for w in lexicon.split(text) if w in lexicon.vocabulary or _plain(w)))
    setting = {s.kind: s.value for s in symbols if s.kind in UNSAID_OF_SCENE}
    rest = [s for s in symbols if s.kind not in UNSAID_OF_SCENE and s.kind != "stray"]
    # models stutter: what is said twice in a row is said once
    reader = Reader(
        [s for i, s in enumerate(rest) if not i or (s.kind, s.value) != (rest[i - 1].kind, rest[i - 1].value)]
    )
    things: list[dict[str, Any]] = []
    groups: list[tuple[int, ...]] = []
    told: list[tuple[str, int]] = []  # kind, group that it is said of
    while reader.peek().kind != "end":
        if (found := reader.take("relation")) and groups:
            told.append((str(found.value), len(groups) - 1))
        elif (thing := _thing(reader)) is None:
            reader.at += 1
        else:
            many = max(1, min(int(thing.count or 1), _MOST))
            groups.append(tuple(range(len(things), len(things) + many)))
            things += [dict(thing.said)] * many
    return Statements(tuple(things), tuple(_related(told, groups)), setting)


def _plain(word: str) -> bool:
    return word in COMMAS or word.isdecimal()


def _thing(reader: Reader) -> Description | None:
    """The next description that names a shape or a colour, else None with the reader where it was."""
    start = reader.at
    try:
        thing = reader.thing()
    except SceneError:
        thing = None
    if thing is None or not {"shape", "colour"} & thing.said.keys():
        reader.at = start
        return None
    return thing


def _related(
    told: Sequence[tuple[str, int]], groups: Sequence[tuple[int, ...]]
) -> list[tuple[str, tuple[tuple[int, ...], ...]]]:
    """Each relation with the things before and after it ("between": with two after); others are left out."""
    out = []
    for kind, at in told:
        last = at + (2 if kind == "between" else 1)
        if last < len(groups):
            out.append((kind, tuple(groups[at : last + 1])))
    return out


# --- scores ----------------------------------------------------------------------------------------------------------


def caption_scores(texts: str | Sequence[str], scenes: Scene | Sequence[Scene]) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of what the captions state, each (n,) in [0, 1], under "PART precision" and so on.

    objects: a thing is right where an object of its shape is there, one to one. attributes: of things that are right,
    each attribute other than the shape; recalled are those that an exact caption states. relations: a stated one is
    right where it is true of its objects; recalled where the caption states it or its inverse. setting: background,
    style, light, camera, word. all: all of these together, each statement counted once.
    Precision is nan where nothing is stated, recall where nothing is there to be stated, F1 where both are.
    Raises ShowtellError where the numbers differ.
    """
    said, shown = as_list(texts), as_list(scenes)
    if len(said) != len(shown):
        raise ShowtellError(f"{len(said)} captions but {len(shown)} scenes; give one caption per scene")
    rows = [_tally(statements(text), scene) for text, scene in zip(said, shown, strict=True)]
    out = {}
    for part in (*PARTS, "setting", "all"):
        counts = np.array([_sum(row) if part == "all" else row[part] for row in rows], float).reshape(-1, 4)
        right, stated_, recalled, there = counts.T
        with np.errstate(invalid="ignore", divide="ignore"):
            out[f"{part} precision"] = right / stated_
            out[f"{part} recall"] = recalled / there
            both = 2 * right * recalled / (right * there + recalled * stated_)
        nothing = (stated_ == 0) & (there == 0)
        out[f"{part} F1"] = np.where(nothing, np.nan, np.nan_to_num(both))
    return out


def caption_f1(texts: str | Sequence[str], scenes: Scene | Sequence[Scene]) -> np.ndarray:
    """(n,) F1 of all that the captions state: "all F1" of `caption_scores`."""
    return caption_scores(texts, scenes)["all F1"]


def caption_exact(texts: str | Sequence[str], scenes: Scene | Sequence[Scene]) -> np.ndarray:
    """(n,) 1 where the whole caption can be read and means exactly the scene, else 0."""
    said, shown = as_list(texts), as_list(scenes)
    if len(said) != len(shown):
        raise ShowtellError(f"{len(said)} captions but {len(shown)} scenes; give one caption per scene")
    return np.array([_exact(text, scene) for text, scene in zip(said, shown, strict=True)], dtype=float)


def hallucination(texts: str | Sequence[str], scenes: Scene | Sequence[Scene]) -> np.ndarray:
    """(n,) share of the things named that are not there (CHAIR, arXiv 1809.02156); nan where none is named."""
    return 1 - caption_scores(texts, scenes)["objects precision"]


def _exact(text: str, scene: Scene) -> bool:
    try:
        return Scene.parse(text).matches(scene)
    except SceneError:
        return False


Tally = tuple[int, int, int, int]  # right of stated, recalled of there


def _sum(row: dict[str, Tally]) -> list[int]:
    return [sum(part[i] for part in row.values()) for i in range(4)]


def _tally(said: Statements, scene: Scene) -> dict[str, Tally]:
    pairs = _pairs(said, scene)  # thing -> object
    named = [(i, name) for i in pairs for name in said.things[i] if name != "shape"]
    right = [said.things[i][name] == getattr(scene.objects[pairs[i]], name) for i, name in named]
    exact = {(j, name) for j, o in enumerate(scene.objects) for name in stated(o) if name != "shape"}
    objects = len(pairs), len(said.things), len(pairs), len(scene.objects)
    stray = sum(len(t.keys() - {"shape"}) for i, t in enumerate(said.things) if i not in pairs)
    recalled = sum(ok and (pairs[i], name) in exact for (i, name), ok in zip(named, right, strict=True))
    # what a caption may leave unsaid is not held against it, nor for it, where it is true
    free = sum(ok and (pairs[i], name) not in exact for (i, name), ok in zip(named, right, strict=True))
    attributes = sum(right) - free, len(named) + stray - free, recalled, len(exact)
    true, found = _relations(said, scene, pairs)
    relations = true, len(said.relations), found, len(scene.relations)
    setting = {name: getattr(scene, name) for name, usual in UNSAID_OF_SCENE.items() if getattr(scene, name) != usual}
    unusual = {name: value for name, value in said.setting.items() if value != UNSAID_OF_SCENE[name] or name in setting}
    agree = sum(getattr(scene, name) == value for name, value in unusual.items())
    return {"objects": objects, "attributes": attributes, "relations": relations,
            "setting": (agree, len(unusual), agree, len(setting))}  # fmt: skip


def _pairs(said: Statements, scene: Scene) -> dict[int, int]:
    """Thing -> object of that shape (or, where no shape is named, of that colour), most attributes shared first."""

    def shared(i: int, j: int) -> int:
        return sum(getattr(scene.objects[j], name) == value for name, value in said.things[i].items())

    def fits(i: int, j: int) -> bool:
        name = "shape" if "shape" in said.things[i] else "colour"
        return bool(said.things[i][name] == getattr(scene.objects[j], name))

    options = [(shared(i, j), -i, -j) for i in range(len(said.things)) for j in range(len(scene.objects)) if fits(i, j)]
    pairs: dict[int, int] = {}
    for _, i, j in sorted(options, reverse=True):
        if -i not in pairs and -j not in pairs.values():
            pairs[-i] = -j
    return pairs


def _relations(said: Statements, scene: Scene, pairs: dict[int, int]) -> tuple[int, int]:
    """(stated relations that are true, relations of the scene that are stated or follow by inversion)."""
    ends = np.cumsum([0, *map(len, scene.groups)])
    truth = {
        (r.kind, tuple(frozenset(range(ends[k], ends[k + 1])) for k in (r.subject, *r.objects)))
        for r in scene.relations
    }
    true, found = 0, set()
    for kind, groups in said.relations:
        members = [frozenset(pairs[i] for i in group if i in pairs) for group in groups]
        if any(len(m) < len(g) for m, g in zip(members, groups, strict=True)):
            continue
        true += holds(kind, *(tuple(scene.objects[j] for j in sorted(m)) for m in members))
        found.add((kind, tuple(members)))
        if kind in INVERSE:
            found.add((INVERSE[kind], tuple(members[::-1])))
    return true, len(truth & found)
