"""The embedded language model: the world's own grammar. No network, no weights, deterministic for a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NoReturn

from showtell.errors import ShowtellError, UnsupportedError
from showtell.language.base import LanguageModel, Messages, given, positive
from showtell.language.chunks import chunk
from showtell.language.plan import free_layout, relaid, world_layout
from showtell.language.reading import Reading, read
from showtell.language.results import Altered, Critique, Entity, Layout, Link, Split
from showtell.language.review import compare
from showtell.world.edits import KINDS as EDITS
from showtell.world.edits import apply, edits
from showtell.world.language import STYLES, caption, language_of, module
from showtell.world.language.english import article, indefinite
from showtell.world.language.parsing import WORD_FLOOR
from showtell.world.language.reference import ReferenceFailed, refer
from showtell.world.language.templates import fill
from showtell.world.layout import place
from showtell.world.questions import Question, answer, kind_of
from showtell.world.scene import (
    BACKGROUNDS,
    INVERSE,
    LIGHTS,
    SIZES,
    TEXTURES,
    Scene,
    SceneError,
    SceneObject,
)
from showtell.world.scene import STYLES as LOOKS

ALTERATIONS = (*EDITS, "swap", "relation")
_OPEN = {"style": LOOKS, "background": BACKGROUNDS, "light": LIGHTS}  # what `suggest` and `expand` may add
_WORDINGS = tuple(style for style in STYLES if style != "detailed")
_LAYOUTS = 8  # of a caption, to see whether an answer depends on what the caption leaves open
_OTHERWISE = "language.load('openai:MODEL') or language.load('a folder or hub id') does it on any text"


class GrammarModel(LanguageModel):
    """Every task on the world's captions, in English, Chinese and Spanish.

    On other text: `split`, `plan_layout`, `ask`, `suggest` and the "swap" of `alter`, by a small English chunker.
    Whatever else is asked raises UnsupportedError, in one line that says which models can do it; so does `complete`,
    since a grammar does not chat.
    """

    name = "the embedded grammar model"

    def complete(
        self,
        conversations: Sequence[Messages],
        *,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        max_tokens: int = 1024,
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        raise UnsupportedError(f"{self.name} does not chat, it has tasks (parse, split, ask ...); {_OTHERWISE}")

    def parse(self, text: str) -> Scene:
        return self._read(text, "parse").scene

    def paraphrase(self, text: str, n: int = 1, seed: int = 0) -> list[str]:
        positive(n)
        reading = self._read(text, "paraphrase")
        said = [caption(s, reading.language, w) for s in _orders(reading.scene) for w in _WORDINGS]
        return _some(said, n, seed, text)

    def split(self, text: str) -> Split:
        reading = self._try(text)
        return reading.split if isinstance(reading, Reading) else self._chunk(text, "split", reading)

    def plan_layout(self, text: str, seed: int = 0) -> Layout:
        reading = self._try(text)
        if isinstance(reading, Reading):
            return world_layout(reading, seed)
        return free_layout(self._chunk(text, "plan a layout for", reading), seed)

    def ask(self, text: str, n: int | None = None, seed: int = 0) -> list[Question]:
        if n is not None:
            positive(n)
        reading = self._try(text)
        if isinstance(reading, Reading):
            made = _questions(reading)
        else:
            made = _free_questions(self._chunk(text, "ask about", reading))
        if n is None or n >= len(made):
            return made
        return [made[i] for i in sorted(random.Random(f"{seed} {text}").sample(range(len(made)), n))]

    def answer(self, about: Scene | str, question: str) -> str:
        if isinstance(about, Scene):
            return self._answer(about, question)
        scene = self._read(about, "answer from").scene
        said = self._answer(scene, question)
        if kind_of(question) not in ("relation", "related"):
            return said
        # A caption fixes only the relations that it states: the answer must be the same in other layouts of it.
        return said if all(self._answer(other, question) == said for other in _layouts(scene)) else "unknown"

    def critique(self, text: str, seen: Scene | str, seed: int = 0) -> Critique:
        reading = self._read(text, "criticise pictures of")
        shown = seen if isinstance(seen, Scene) else self._read(seen, "criticise").scene
        mismatches, wrong = compare(reading.scene, shown)
        if not mismatches:
            return Critique((), text)
        return Critique(tuple(mismatches), _revised(reading, [m.kind for m in mismatches], wrong, seed))

    def translate(self, text: str, to: str) -> str:
        module(to)
        return caption(self._read(text, "translate").scene, to)

    def expand(self, text: str, n: int = 1, seed: int = 0, add: int = 0) -> list[str]:
        positive(n)
        if add < 0:
            raise ShowtellError(f"add is {add}; give how many details to invent, 0 or more")
        reading = self._read(text, "expand")
        if not add:
            said = [caption(s, reading.language, "detailed") for s in _orders(reading.scene)]
            return _some(said, n, seed, text, first=True)
        rng = random.Random(f"{seed} {text}")
        made = [_invented(reading, add, rng) for _ in range(4 * n + 8)]
        return _some([text for text in made if text], n, seed, text, first=True)

    def suggest(self, text: str, n: int = 5, seed: int = 0) -> list[str]:
        positive(n)
        reading = self._try(text)
        if isinstance(reading, Reading):
            language, taken = reading.language, {*reading.extras}
        else:
            self._english(text, "suggest modifiers for", reading)
            low = text.lower()
            language, taken = "en", {name for name in _OPEN if name in low} | ({"light"} if " lit " in low else set())
        rng = random.Random(f"{seed} {text}")
        shown = {o.colour for o in reading.scene.objects} if isinstance(reading, Reading) else set()
        columns = []
        for name, values in _OPEN.items():
            if name not in taken:
                free = [v for v in values[1:] if v not in shown]  # the first is what is meant anyway
                columns.append([_modifier(language, name, value) for value in rng.sample(free, len(free))])
        rng.shuffle(columns)
        mixed = [m for row in itertools.zip_longest(*columns) for m in row if m is not None]
        return mixed[:n]

    def edit(self, text: str, instruction: str) -> str:
        reading = self._read(text, "edit")
        try:
            return caption(apply(reading.scene, given(instruction)), reading.language)
        except SceneError as error:
            raise ShowtellError(f"cannot apply {instruction!r} to {text!r}: {error}") from error

    def alter(self, text: str, n: int = 1, seed: int = 0, kinds: Sequence[str] = ()) -> list[Altered]:
        positive(n)
        for kind in kinds:
            if kind not in ALTERATIONS:
                raise ShowtellError(f"unknown kind of alteration {kind!r}; use some of: {', '.join(ALTERATIONS)}")
        rng = random.Random(f"{seed} {text}")
        reading = self._try(text)
        if isinstance(reading, Reading):
            return _altered(reading, n, rng, tuple(kinds) or ALTERATIONS)
        split = self._chunk(text, "alter", reading)
        if kinds and "swap" not in kinds:
            self._refuse(text, "alter", reading)
        found = _free_swaps(split)
        rng.shuffle(found)
        return found[:n]

    # --- what the grammar can read ----------------------------------------------------------------------------------

    def _try(self, text: str) -> Reading | SceneError:
        """The reading of a caption of the world; otherwise why it cannot be read."""
        try:
            return read(given(text))
        except SceneError as error:
            return error

    def _read(self, text: str, what: str) -> Reading:
        reading = self._try(text)
        return reading if isinstance(reading, Reading) else self._refuse(text, what, reading)

    def _refuse(self, text: str, what: str, error: SceneError) -> NoReturn:
        raise UnsupportedError(
            f"{self.name} can {what} only captions of its own world, not {_short(text, 60)!r} "
            f"({_short(str(error), 90)}); {_OTHERWISE}"
        ) from error

    def _english(self, text: str, what: str, error: SceneError) -> None:
        if language_of(text) != "en" or not text.isascii():
            self._refuse(text, what, error)

    def _chunk(self, text: str, what: str, error: SceneError) -> Split:
        self._english(text, what, error)
        return chunk(text)

    def _answer(self, scene: Scene, question: str) -> str:
        try:
            return answer(scene, given(question))
        except ReferenceFailed:
            no = str(module(language_of(question)).ANSWERS["no"])
            return no if kind_of(question) == "related" else "unknown"
        except SceneError as error:
            raise UnsupportedError(f"{self.name} cannot answer {question!r}: {error}; {_OTHERWISE}") from error


@lru_cache(maxsize=256)
def _layouts(scene: Scene) -> tuple[Scene, ...]:
    return tuple(relaid(scene, seed) for seed in range(1, _LAYOUTS))


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _some(texts: Sequence[str], n: int, seed: int, unlike: str, first: bool = False) -> list[str]:
    """n of the different texts, drawn with the seed; first: the first of them leads."""
    found = [text for text in dict.fromkeys(texts) if text != unlike.strip()]
    lead = found[:1] if first else []
    rest = found[len(lead) :]
    random.Random(f"{seed} {unlike}").shuffle(rest)
    return [*lead, *rest][:n]


def _orders(scene: Scene) -> list[Scene]:
    """The scene with its things mentioned in other orders, where no relation fixes one; itself first."""
    groups = scene.groups
    if scene.relations or len(groups) == 1 or _repeats(groups):
        return [scene]
    found = [scene]
    for order in itertools.islice(itertools.permutations(groups), 1, 6):
        found.append(_relocated(scene, order, ()))
    return found


def _repeats(groups: Sequence[Sequence[SceneObject]]) -> bool:
    """Whether two groups have equal facts: side by side they would be one."""
    return len({group[0].facts for group in groups}) < len(groups)


def _relocated(scene: Scene, groups: Sequence[Sequence[SceneObject]], relations: Sequence[Any]) -> Scene:
    """The scene with these groups, placed so that exactly the relations are true. SceneError where nothing fits."""
    rng = random.Random(f"{scene.to_json()} {groups} {relations}")
    return replace(scene, objects=place(groups, relations, rng, WORD_FLOOR if scene.word else 1.0))


def _revised(reading: Reading, kinds: Sequence[str], wrong: Sequence[int], seed: int) -> str:
    """The same meaning again: what went wrong comes first where the order is free, and is spelled out."""
    scenes = _orders(reading.scene)
    facts = {reading.scene.objects[i].facts for i in wrong}
    scenes.sort(key=lambda s: [group[0].facts not in facts for group in s.groups])
    unsaid = any(kind not in ("missing", "extra", "count", "relation") for kind in kinds)
    styles = ["detailed", *_WORDINGS] if unsaid else ["paraphrase-1", "paraphrase-3", "detailed", "plain"]
    said = [caption(scene, reading.language, style) for style in styles for scene in scenes[:2]]
    found = [text for text in dict.fromkeys(said) if text != reading.split.text.strip()]
    return found[seed % len(found)]


def _modifier(language: str, name: str, value: str) -> str:
    """ "in watercolour style": what says one fact of the whole picture."""
    wording = module(language).WORDING
    template = wording.templates["plain"][name]
    return str(template.format(wording.name(name, value, "plain"))).strip(" ,，、；;")


def _invented(reading: Reading, add: int, rng: random.Random) -> str:
    """A detailed caption with facts that the text leaves open; what it says stays true. "" where they do not fit."""
    scene, groups = reading.scene, [list(group) for group in reading.scene.groups]
    owners = iter(reading.owners)
    said = [{name for _ in group for name in reading.things[next(owners)].said} for group in groups]
    choices: list[tuple[int, str, Sequence[str]]] = [
        (-1, name, values[1:]) for name, values in _OPEN.items() if name not in reading.extras
    ]
    for i, names in enumerate(said):
        # What is inside something else has the only size that fits.
        free = {"texture": TEXTURES[1:], "size": SIZES[::2] if _resizable(scene, i) else ()}
        choices += [(i, name, values) for name, values in free.items() if values and name not in names]
    shown = {o.colour for o in scene.objects}
    for i, name, values in rng.sample(choices, min(add, len(choices))):
        value = rng.choice([v for v in values if v not in shown])  # a background must not hide a thing
        new: dict[str, Any] = {name: value}
        if i < 0:
            scene = replace(scene, **new)
        else:
            groups[i] = [replace(o, **new) for o in groups[i]]
    if any(a[0].facts == b[0].facts for a, b in itertools.pairwise(groups)):
        return ""
    try:
        return caption(_relocated(scene, groups, scene.relations), reading.language, "detailed")
    except SceneError:  # what has grown finds no place
        return ""


def _resizable(scene: Scene, group: int) -> bool:
    return not any(r.kind == "inside" and group in (r.subject, *r.objects) for r in scene.relations)


# --- questions -----------------------------------------------------------------------------------------------------


def _questions(reading: Reading) -> list[Question]:
    """One on every fact that the caption states and that can be asked without ambiguity; things first."""
    words, scene = module(reading.language), reading.scene
    asked: list[str] = []
    ask: Callable[[str, str], None] = lambda kind, what: asked.append(fill(words.QUESTIONS[kind][0], what))  # noqa: E731
    first: dict[int, int] = {}
    for i, owner in enumerate(reading.owners):
        first.setdefault(owner, i)
    for owner, i in first.items():
        thing = scene.objects[i]
        ask("existence", words.a({"shape": thing.shape, "colour": thing.colour}))
        if (reading.things[owner].count or 1) > 1:
            asked.append(_how_many(words, reading.language, thing))
    for owner, i in first.items():
        for name in ("colour", "size", "texture", "state", "motion"):
            said = refer(scene.objects, [i], without=name) if name in reading.things[owner].said else None
            if said:
                ask(name, words.the(said))
    for link in reading.split.relations:
        asked += _related(reading, link, first)
    for name in reading.extras:
        asked.append(str(words.QUESTIONS[name][0]))
    made: dict[str, Question] = {}
    for text in asked:
        made.setdefault(text, Question(kind_of(text), text, answer(scene, text)))
    return list(made.values())


def _how_many(words: Any, language: str, thing: SceneObject) -> str:
    said = {"shape": thing.shape, "colour": thing.colour}
    forms = words.QUESTIONS["count"]
    form = forms[0]
    if language == "es" and thing.shape in words.FEMININE:
        form = forms[1]
    if language == "zh":
        form = f"有几{words.MEASURES.get(thing.shape, '个')}{{}}？"
    return fill(form, words.noun(said, 2))


def _related(reading: Reading, link: Link, first: dict[int, int]) -> list[str]:
    words, objects = module(reading.language), reading.scene.objects
    if link.kind == "between" or any((reading.things[i].count or 1) > 1 for i in (link.subject, *link.objects)):
        return []
    one, other = (refer(objects, [first[i]]) for i in (link.subject, link.objects[0]))
    if one is None or other is None:
        return []
    return [fill(words.QUESTIONS["related"][0], words.standing(words.the(one), link.kind, words.the(other)))]


def _free_questions(split: Split) -> list[Question]:
    """The same of free text, in the words of the text."""
    heads = [entity.head.text.lower() for entity in split.entities]
    names = [_name(e) if heads.count(h) > 1 else h for e, h in zip(split.entities, heads, strict=True)]
    made: list[Question] = []
    for entity in split.entities:
        if entity.count == 1:
            name = _name(entity)
            made.append(Question("existence", f"is there {indefinite(name)}?", "yes"))
        else:
            made.append(Question("existence", f"are there {_name(entity)}?", "yes"))
            made.append(Question("count", f"how many {_name(entity)} are there?", str(entity.count)))
    for entity in split.entities:
        be = "is" if entity.count == 1 else "are"
        for modifier in entity.modifiers:
            made.append(Question("attribute", f"{be} the {entity.head.text.lower()} {modifier.text.lower()}?", "yes"))
    for link in split.relations:
        be = "is" if split.entities[link.subject].count == 1 else "are"
        others = " and ".join(f"the {names[i]}" for i in link.objects)
        if link.kind or link.words.text.endswith("ing"):
            subject = f"the {names[link.subject]}"
            made.append(Question("related", f"{be} {subject} {link.words.text.lower()} {others}?", "yes"))
    return list(dict.fromkeys(made))


def _name(entity: Entity) -> str:
    return " ".join(span.text.lower() for span in (*entity.modifiers, entity.head))


# --- alterations ---------------------------------------------------------------------------------------------------


def _altered(reading: Reading, n: int, rng: random.Random, kinds: Sequence[str]) -> list[Altered]:
    """n versions, drawn from edits, swaps and turned relations."""
    scene, language = reading.scene, reading.language
    made = []
    if wanted := [kind for kind in kinds if kind in EDITS]:
        for one in edits(scene, rng, wanted, n):
            made.append(Altered(one.kind, one.text(language), caption(one.after, language)))
    if "swap" in kinds:
        made += [Altered("swap", "", caption(s, language)) for s in _swapped(scene)]
    if "relation" in kinds:
        made += [Altered("relation", "", caption(s, language)) for s in _turned(scene)]
    rng.shuffle(made)
    plain = caption(scene, language)
    found = {one.text: one for one in made if one.text not in (plain, reading.split.text)}
    return list(found.values())[:n]


def _swapped(scene: Scene) -> list[Scene]:
    """Two groups exchange an attribute, each at its own place."""
    found = []
    starts = [0, *itertools.accumulate(len(group) for group in scene.groups)]
    for i, j in itertools.combinations(range(len(scene.groups)), 2):
        a, b = scene.groups[i][0], scene.groups[j][0]
        for name in ("colour", "texture"):
            one, other = getattr(a, name), getattr(b, name)
            same_else = replace(a, **{name: other}).facts == b.facts
            if one == other or same_else:  # the exchange would show nothing
                continue
            objects = list(scene.objects)
            objects[starts[i] : starts[i + 1]] = [replace(o, **{name: other}) for o in scene.groups[i]]
            objects[starts[j] : starts[j + 1]] = [replace(o, **{name: one}) for o in scene.groups[j]]
            found.append(replace(scene, objects=tuple(objects)))
    return found


def _turned(scene: Scene) -> list[Scene]:
    """One stated relation becomes its opposite."""
    found = []
    for i, relation in enumerate(scene.relations):
        if relation.kind in INVERSE:
            turned = [replace(r, kind=INVERSE[r.kind]) if k == i else r for k, r in enumerate(scene.relations)]
            found.append(_relocated(scene, scene.groups, turned))
    return found


def _free_swaps(split: Split) -> list[Altered]:
    """Two entities of free text exchange a modifier: "a white cat and a black dog"."""
    found = []
    for a, b in itertools.combinations(split.entities, 2):
        for one, other in itertools.product(a.modifiers, b.modifiers):
            if one.text.lower() == other.text.lower() or one.start > other.start:
                continue
            t = split.text
            text = t[: one.start] + other.text + t[one.stop : other.start] + one.text + t[other.stop :]
            found.append(Altered("swap", "", _articles(text)))
    return found


def _articles(text: str) -> str:
    """ "a" or "an" as the following word wants it."""
    import re

    def fitting(match: re.Match[str]) -> str:
        before, space, word = match.groups()
        return f"{before[0]}{article(word)[1:]}{space}{word}"

    return re.sub(r"\b([Aa]n?)(\s+)([A-Za-z]+)", fitting, text)
