"""Questions about scenes with their answers, in English, Chinese and Spanish.

`questions` writes them, `answer` answers any of them from the scene: only what has one clear answer is
asked. A relation is asked about where it is clear, and denied only where it is clearly false, so that the
answer does not depend on a threshold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from showtell.world.language import LANGUAGES, module
from showtell.world.language.parsing import Description, Reader
from showtell.world.language.reference import ReferenceFailed, Said, finished, fitting, placed, refer, the_one
from showtell.world.language.templates import fill, gaps, sentence
from showtell.world.scene import COLOURS, INVERSE, RELATIONS, SHAPES, Scene, SceneError, _relation, holds

ATTRIBUTES = ("colour", "shape", "size", "texture", "state", "motion")
WHOLE = ("background", "style", "light", "word", "camera")
KINDS = ("existence", "count", *ATTRIBUTES, "relation", "related", *WHOLE)


@dataclass(frozen=True, slots=True)
class Question:
    """kind: one of `KINDS`; answer: short and canonical ("yes", "red", "2", "red ring")."""

    kind: str
    question: str
    answer: str


def questions(
    scene: Scene, rng: random.Random, n: int = 1, kinds: Sequence[str] | None = None, language: str = "en"
) -> list[Question]:
    """Up to n different questions of the kinds; fewer where the scene has no more to ask about.

    Yes and no are equally frequent. Kinds: "existence" (is there a red ring?), "count", an attribute's name
    ("colour": what colour is the ring?), "relation" (what is left of the star?), "related" (is the ring
    left of the star?), and "background", "style", "light", "word", "camera". SceneError for unknown kinds
    and languages.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise SceneError(f"unknown kind of question {kind!r}; use some of: {', '.join(KINDS)}")
    module(language)
    weights = dict.fromkeys(kinds, 1) if kinds else _visible(scene)
    made: dict[str, Question] = {}
    for _ in range(12 * n):
        kind = rng.choices(list(weights), list(weights.values()))[0]
        text = _ask(scene, rng, kind, language)
        if text and text not in made:
            made[text] = Question(kind, text, answer(scene, text))
        if len(made) == n:
            break
    return list(made.values())


def _visible(scene: Scene) -> dict[str, int]:
    """The kinds to ask by default, with how often: motion and camera only where something moves."""
    weights = {kind: 1 for kind in KINDS} | {"existence": 5, "count": 3, "relation": 4, "related": 5}
    weights |= {"colour": 3, "shape": 2, "motion": 3 * any(o.motion for o in scene.objects)}
    return weights | {"camera": int(scene.camera != "still")}


def answer(scene: Scene, question: str) -> str:
    """The answer to any question that `questions` can write, in the question's language.

    SceneError for other questions; its kind ReferenceFailed where what is asked about is not in the scene or
    ambiguous.
    """
    kind, reader, language = _understood(question)
    return _answer(scene, kind, reader, language)


def kind_of(question: str) -> str:
    """The kind, one of `KINDS`, of a question that `questions` can write; SceneError for others."""
    return _understood(question)[0]


def _understood(question: str) -> tuple[str, Reader, str]:
    """(kind, what it asks about, language)."""
    for language in LANGUAGES:
        words = module(language)
        tokens = sentence(question, words.LEXICON)
        for kind, forms in words.QUESTIONS.items():
            for form in forms:
                parts = gaps(form, tokens, words.LEXICON)
                if parts is not None:
                    asked = words.LEXICON.read(" ".join(parts[0])) if parts else []
                    return kind, Reader(asked), language
    raise SceneError("cannot read the question; ask for example 'what colour is the ring?' or 'is there a red ring?'")


def _answer(scene: Scene, kind: str, reader: Reader, language: str) -> str:
    words = module(language)
    if kind in WHOLE:
        return _whole(scene, kind, language)
    if kind == "relation":
        where = placed(reader)
        if where is None:
            raise SceneError("cannot read the question; ask for example 'what is left of the star?'")
        finished(reader)
        return str(words.noun(_subject(scene, *where)))
    thing = reader.thing()
    if kind == "related":
        where = placed(reader)
        if where is None:
            raise SceneError("cannot read the question; ask for example 'is the ring left of the star?'")
        finished(reader)
        return _yes(_holds(scene, where[0], [the_one(scene, t) for t in (thing, *where[1])]), language)
    finished(reader)
    if kind in ("existence", "count"):
        found = fitting(scene.objects, thing.said)
        return _yes(bool(found), language) if kind == "existence" else str(len(found))
    target = scene.objects[the_one(scene, thing)]
    value = getattr(target, kind)
    return str(words.value(kind, value, thing["shape"] or "thing")) if value is not None else words.ANSWERS[""]


def _whole(scene: Scene, kind: str, language: str) -> str:
    words, value = module(language), getattr(scene, kind)
    if kind == "word":
        return value or str(words.ANSWERS[""])
    if (kind, value) == ("light", "even"):
        return str(words.ANSWERS["even"])
    return str(words.WORDING.name(kind, value, "terse"))


def _yes(true: bool, language: str) -> str:
    return str(module(language).ANSWERS["yes" if true else "no"])


def _holds(scene: Scene, kind: str, indices: Sequence[int]) -> bool:
    return holds(kind, *((scene.objects[i],) for i in indices))


def _subject(scene: Scene, kind: str, others: list[Description]) -> Said:
    """Colour and shape of the one object that stands in the relation to the others."""
    anchors = [the_one(scene, other) for other in others]
    found = [i for i in range(len(scene.objects)) if i not in anchors and _holds(scene, kind, (i, *anchors))]
    if len(found) != 1:
        raise ReferenceFailed(
            f"{len(found) or 'no'} thing(s) {kind} {others[0].text!r}; the question has no single answer"
        )
    return {"shape": scene.objects[found[0]].shape, "colour": scene.objects[found[0]].colour}


# --- asking -------------------------------------------------------------------------------------


def _ask(scene: Scene, rng: random.Random, kind: str, language: str) -> str:
    """A question of the kind, or "" where the draw led to none with a clear answer."""
    if kind in WHOLE:
        return str(module(language).QUESTIONS[kind][0])
    if kind in ATTRIBUTES:
        return _ask_attribute(scene, rng, kind, language)
    ask: dict[str, Callable[[Scene, random.Random, str], str]] = {
        "existence": _ask_existence, "count": _ask_count, "relation": _ask_relation, "related": _ask_related,
    }  # fmt: skip
    return ask[kind](scene, rng, language)


def _ask_existence(scene: Scene, rng: random.Random, language: str) -> str:
    words = module(language)
    said = _part(scene, rng) if rng.random() < 0.5 else _absent(scene, rng)
    return fill(words.QUESTIONS["existence"][0], words.a(said)) if said else ""


def _ask_count(scene: Scene, rng: random.Random, language: str) -> str:
    words = module(language)
    said = _part(scene, rng) if rng.random() < 0.85 else _absent(scene, rng)
    if not said or ("shape" not in said and language == "zh"):
        return ""
    form = words.QUESTIONS["count"][0]
    if language == "es" and said.get("shape", "thing") in words.FEMININE:
        form = words.QUESTIONS["count"][1]
    if language == "zh":
        form = f"有几{words.MEASURES.get(said['shape'], '个')}{{}}？"
    return fill(form, words.noun(said, 2))


def _part(scene: Scene, rng: random.Random) -> Said:
    """Some attributes of a random object: shape, colour, or both, sometimes with a third."""
    thing = rng.choice(scene.objects)
    names = list(rng.choice((("shape",), ("colour",), ("shape", "colour"), ("shape", "colour"))))
    third = rng.choice(("size", "texture", "state"))
    if rng.random() < 0.2 and getattr(thing, third) not in ("medium", "solid", "whole"):
        names.append(third)
    return {name: getattr(thing, name) for name in names}


def _absent(scene: Scene, rng: random.Random) -> Said:
    """Attributes that no object has together, often crossed from two objects."""
    for _ in range(8):
        said = _part(scene, rng)
        other = rng.choice(scene.objects)
        name = rng.choice([name for name in ("shape", "colour") if name in said])
        crossed = getattr(other, name) if rng.random() < 0.5 else rng.choice(SHAPES if name == "shape" else COLOURS)
        said[name] = crossed
        if not fitting(scene.objects, said):
            return said
    return {}


def _ask_attribute(scene: Scene, rng: random.Random, kind: str, language: str) -> str:
    index = rng.randrange(len(scene.objects))
    if kind == "motion" and scene.objects[index].motion is None:
        return ""
    said = refer(scene.objects, [index], without=kind)
    words = module(language)
    return fill(words.QUESTIONS[kind][0], words.the(said)) if said else ""


def _ask_relation(scene: Scene, rng: random.Random, language: str) -> str:
    pair = _clear_pair(scene, rng)
    if pair is None:
        return ""
    subject, anchor, kind = pair
    said = refer(scene.objects, [anchor])
    others = (i for i in range(len(scene.objects)) if i not in (subject, anchor))
    if said is None or any(_holds(scene, kind, (i, anchor)) for i in others):
        return ""
    words = module(language)
    return fill(words.QUESTIONS["relation"][0], words.located(kind, words.the(said)))


def _ask_related(scene: Scene, rng: random.Random, language: str) -> str:
    pair = _clear_pair(scene, rng)
    if pair is None:
        return ""
    subject, anchor, kind = pair
    one, other = refer(scene.objects, [subject]), refer(scene.objects, [anchor])
    if rng.random() < 0.5:
        false = [k for k in RELATIONS if k != "between" and not _holds(scene, k, (subject, anchor))]
        kind = INVERSE.get(kind) or rng.choice(false)
    if one is None or other is None:
        return ""
    words = module(language)
    return fill(words.QUESTIONS["related"][0], words.standing(words.the(one), kind, words.the(other)))


def _clear_pair(scene: Scene, rng: random.Random) -> tuple[int, int, str] | None:
    """Two objects and the relation that is clear between them."""
    if len(scene.objects) < 2:
        return None
    subject, anchor = rng.sample(range(len(scene.objects)), 2)
    kind = _relation((scene.objects[subject],), (scene.objects[anchor],))
    return (subject, anchor, kind) if kind else None
