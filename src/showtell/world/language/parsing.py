"""The grammar: from symbols to a scene. One grammar for all languages.

scene    = [extra ...] things [extra ...]                       extras (background, style, ...) may stand
anywhere things   = thing { link thing } link     = relation | "and" | ","
prefix order: A left-of B
         | "at" ... relation                                    postfix order (Chinese): A at B left-of
thing    = { article | count | attribute | motion } with one shape
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Any

from showtell.world.language.lexicon import Lexicon, Symbol
from showtell.world.layout import place
from showtell.world.scene import HOLLOW, MAX_OBJECTS, Relation, Scene, SceneError, SceneObject

MAX_TEXT = 1000  # characters; the longest caption has about 700
WORD_FLOOR = 0.84  # a written word takes the canvas below
EXTRAS = ("background", "style", "light", "camera", "word")
ATTRIBUTES = ("shape", "colour", "size", "texture", "state", "rotation", "motion")
JOIN = "join two things with a relation or 'and'"
SINGLE = ("inside", "in front of", "behind", "between")  # relations that hold between one thing and one other


@dataclass
class Description:
    """One thing as it was said: the attributes that were named, how many, the words, and what they mean."""

    said: dict[str, Any]
    count: int | None
    plural: bool
    text: str
    symbols: tuple[Symbol, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.said.get(name)


class Reader:
    """A place in a list of symbols."""

    def __init__(self, symbols: list[Symbol]) -> None:
        self.symbols, self.at = symbols, 0

    def peek(self, ahead: int = 0) -> Symbol:
        where = self.at + ahead
        return self.symbols[where] if where < len(self.symbols) else Symbol("end", None, "the end")

    def take(self, *kinds: str) -> Symbol | None:
        """The next symbol if it is of one of the kinds, else None."""
        symbol = self.peek()
        if symbol.kind not in kinds:
            return None
        self.at += 1
        return symbol

    def skip(self, *kinds: str) -> bool:
        found = False
        while self.take(*kinds):
            found = True
        return found

    def thing(self) -> Description:
        """Reads one description; SceneError where there is none."""
        said: dict[str, Any] = {}
        count, plural = None, False
        words: list[str] = []
        start = self.at
        self.skip("skip")
        first = self.at
        while True:
            symbol = self.peek()
            if symbol.kind in ("article", "count", "the"):
                if said or count is not None:
                    break
                count = symbol.value
            elif symbol.kind in ("shape", "shapes", "thing", "things"):
                if "shape" in said:
                    raise SceneError(f"cannot read {symbol.text!r} after {words[-1]!r}; {JOIN}")
                if symbol.value:
                    said["shape"] = symbol.value
                plural |= symbol.kind in ("shapes", "things")
            elif symbol.kind in ATTRIBUTES:
                if "shape" in said and symbol.kind in said:
                    raise SceneError(f"cannot read {symbol.text!r} after {words[-1]!r}; {JOIN}")
                if said.get(symbol.kind, symbol.value) != symbol.value:
                    raise SceneError(f"{symbol.text!r} contradicts the {symbol.kind} {said[symbol.kind]!r} said before")
                said[symbol.kind] = symbol.value
            elif symbol.kind == "skip" and self.peek(1).kind in ATTRIBUTES and self.peek(1).kind not in said:
                pass  # "a heart that is pink"
            elif symbol.kind != "of":
                break
            self.at += 1
            words.append(symbol.text)
        if not said:
            before = self.symbols[start - 1].text if start else "the beginning"
            raise SceneError(f"expected a thing such as 'a red ring' after {before!r}, not {symbol.text!r}")
        return Description(said, count, plural, " ".join(words), tuple(self.symbols[first : self.at]))


def described(symbols: list[Symbol]) -> tuple[dict[str, str], list[Description], list[Relation]]:
    """What the symbols say of the whole picture, the things in the order of mention, and their relations (indices into
    the things). SceneError where they cannot be read."""
    extras, rest = _split(symbols)
    reader = Reader(rest)
    reader.skip("skip", "comma")
    if reader.peek().kind == "end":
        raise SceneError("the text names no thing; say for example 'a red ring left of a blue star'")
    return extras, *_things(reader)


def scene_of(text: str, lexicon: Lexicon) -> Scene:
    """The scene that the text means in the lexicon's language; see `showtell.world.language.parse`."""
    symbols = lexicon.read(text)
    extras, things, relations = described(symbols)
    groups, relations = _groups(things, relations)
    seed = zlib.crc32(" ".join(f"{s.kind}{s.value}" for s in symbols).encode())
    objects = place(groups, relations, random.Random(seed), WORD_FLOOR if extras.get("word") else 1.0)
    return Scene(objects, **extras)


def _split(symbols: list[Symbol]) -> tuple[dict[str, str], list[Symbol]]:
    """Extras, which may stand anywhere, and everything else with a comma where an extra stood."""
    extras: dict[str, str] = {}
    rest = []
    for symbol in symbols:
        if symbol.kind in EXTRAS:
            if extras.get(symbol.kind, symbol.value) != symbol.value:
                raise SceneError(f"two values for the {symbol.kind}: {extras[symbol.kind]!r} and {symbol.value!r}")
            extras[symbol.kind] = symbol.value
            rest.append(Symbol("comma", None, symbol.text))
        else:
            rest.append(symbol)
    return extras, rest


def _things(reader: Reader) -> tuple[list[Description], list[Relation]]:
    things = [reader.thing()]
    relations: list[Relation] = []
    while True:
        loose = reader.skip("comma", "skip", "of")
        if reader.peek().kind == "end":
            return things, relations
        joined = reader.take("and") is not None
        reader.skip("comma", "skip")
        here = len(things) - 1
        symbol = reader.peek()
        if found := reader.take("relation"):
            if found.value == "between":
                _between(reader, things, relations)
            elif reader.peek().kind == "of" and reader.peek(1).kind != "end" and here == 0:  # "B left-of 's A"
                reader.skip("of")
                things.insert(0, reader.thing())
                relations.append(Relation(found.value, 0, (1,)))
            else:
                things.append(reader.thing())
                relations.append(Relation(found.value, here, (here + 1,)))
        elif reader.take("at"):
            things.append(reader.thing())
            if reader.take("and"):
                things.append(reader.thing())
            after = reader.take("relation")
            if after is None or (after.value == "between") != (len(things) == here + 3):
                raise SceneError(f"expected a relation after {things[-1].text!r}, not {reader.peek().text!r}")
            relations.append(Relation(after.value, here, tuple(range(here + 1, len(things)))))
        elif joined or (loose and symbol.kind != "stray"):
            things.append(reader.thing())
        else:
            raise SceneError(f"cannot read {symbol.text!r} after {things[-1].text!r}; {JOIN}")


def _between(reader: Reader, things: list[Description], relations: list[Relation]) -> None:
    here = len(things) - 1
    one = reader.thing()
    if one.count == 2 and reader.peek().kind != "and":  # "between two stars": one on either side
        one.count = 1
        things[here:] = [one, things[here], Description(dict(one.said), 1, False, one.text, one.symbols)]
        relations += [Relation("left of", here, (here + 1,)), Relation("left of", here + 1, (here + 2,))]
        return
    if not reader.take("and"):
        raise SceneError(f"'between' needs two things joined by 'and', not {one.text!r} alone")
    things += [one, reader.thing()]
    relations.append(Relation("between", here, (here + 1, here + 2)))


def _groups(things: list[Description], relations: list[Relation]) -> tuple[list[list[SceneObject]], list[Relation]]:
    """Objects for the descriptions, with neighbours of equal facts merged into one group."""
    for r in relations:
        if r.kind == "inside":
            _fit_inside(things[r.subject], things[r.objects[0]])
        several = [things[i] for i in (r.subject, *r.objects) if (things[i].count or 1) > 1]
        if r.kind in SINGLE and several:
            raise SceneError(f"only one thing can be {r.kind} another, not {several[0].text!r}")
    if any(r.kind == "between" and r.subject for r in relations):
        raise SceneError("'between' is for the first three things of a text: 'a red ring between a blue star and ...'")
    groups: list[list[SceneObject]] = []
    index = []
    related = {i for r in relations for i in r.objects}
    for i, thing in enumerate(things):
        made = _made(thing)
        if groups and made[0].facts == groups[-1][0].facts:
            if i in related:
                raise SceneError(
                    f"two equal things side by side are one group; say how many: 'two ...' for {thing.text!r}"
                )
            groups[-1] += made
        else:
            groups.append(made)
        index.append(len(groups) - 1)
    total = sum(map(len, groups))
    if total > MAX_OBJECTS:
        raise SceneError(f"the text names {total} things; a scene has 1 to {MAX_OBJECTS}")
    return groups, [Relation(r.kind, index[r.subject], tuple(index[i] for i in r.objects)) for r in relations]


def _fit_inside(a: Description, b: Description) -> None:
    """Sizes that were not said become the ones that "inside" needs; SceneError where it cannot be."""
    if b["shape"] not in HOLLOW:
        raise SceneError(f"nothing fits inside {b.text!r}; only these are hollow: {', '.join(HOLLOW)}")
    if a.said.setdefault("size", "small") != "small" or b.said.setdefault("size", "large") != "large":
        raise SceneError(f"{a.text!r} does not fit inside {b.text!r}; only a small thing fits inside a large one")


def _made(thing: Description) -> list[SceneObject]:
    for name in ("shape", "colour"):
        if name not in thing.said:
            raise SceneError(f"say which {name} {thing.text!r} has, as in 'a red ring'")
    if thing.count is None and thing.plural:
        raise SceneError(f"say how many: 'two {thing.text}'")
    count = thing.count if thing.count is not None else 1
    if not 1 <= count <= MAX_OBJECTS:
        raise SceneError(f"cannot show {thing.text!r}; a scene has 1 to {MAX_OBJECTS} things")
    return [SceneObject(**thing.said)] * count
