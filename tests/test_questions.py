"""Questions and answers: right, clear, balanced, and answered alike in three languages."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from showtell.world.language import LANGUAGES, module, words
from showtell.world.questions import ATTRIBUTES, KINDS, answer, questions
from showtell.world.sampling import sample
from showtell.world.scene import COLOURS, MOTIONS, SHAPES, Motion, Scene, SceneError, SceneObject

SCENES = sample(250, seed=21) + sample(80, seed=22, motion=tuple(MOTIONS), word=True, camera="pan left")
RING = SceneObject("ring", "red", "large", x=0.25, y=0.5)
STAR = SceneObject("star", "blue", "small", "striped", x=0.75, y=0.5)
PAIR = Scene((RING, STAR), background="sky", style="sepia", light="left", word="HI", camera="zoom in")


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_what_answer_says_and_words_are_listed(language):
    rng, known, lexicon = random.Random(1), words(language), module(language).LEXICON
    for scene in SCENES:
        asked = questions(scene, rng, n=5, language=language)
        assert len({q.question for q in asked}) == len(asked) >= 3
        for q in asked:
            assert answer(scene, q.question) == q.answer
            said = lexicon.split(q.question + (" " + q.answer if q.kind != "word" else ""))
            assert {w for w in said if w not in "?？¿" and not w.isdigit()} <= known, q


def test_every_kind_is_asked_in_every_language():
    for language in LANGUAGES:
        for kind in KINDS:
            found = [q for s in SCENES[-80:] for q in questions(s, random.Random(2), 1, [kind], language)]
            assert found, (language, kind)
            assert {q.kind for q in found} == {kind}


@pytest.mark.parametrize("kind", ["existence", "related"])
def test_yes_and_no_are_balanced(kind):
    rng = random.Random(3)
    answers = Counter(q.answer for s in SCENES for q in questions(s, rng, 1, [kind]))
    assert set(answers) == {"yes", "no"}
    assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_counts_include_zero_and_many():
    rng = random.Random(4)
    counts = Counter(q.answer for s in SCENES for q in questions(s, rng, 2, ["count"]))
    assert {"0", "1", "2", "3"} <= set(counts)
    assert counts["0"] < counts["1"]


@pytest.mark.parametrize(
    "question, expected",
    [
        ("is there a red ring?", "yes"),
        ("is there a blue ring?", "no"),
        ("Is there a red thing?", "yes"),
        ("what colour is the ring?", "red"),
        ("what color is the star", "blue"),
        ("what shape is the blue thing?", "star"),
        ("what size is the ring?", "large"),
        ("what texture does the star have?", "striped"),
        ("what state is the star in?", "whole"),
        ("what is the ring doing?", "none"),
        ("how many stars are there?", "1"),
        ("how many hearts are there?", "0"),
        ("what is left of the blue star?", "red ring"),
        ("what is to the right of the ring?", "blue star"),
        ("is the red ring left of the blue star?", "yes"),
        ("is the red ring right of the blue star?", "no"),
        ("what is the background?", "sky"),
        ("what is the style?", "sepia"),
        ("where does the light come from?", "left"),
        ("what is the word?", "HI"),
        ("what does the camera do?", "zoom in"),
        ("圆环是什么颜色？", "红色"),
        ("有一个红色圆环吗？", "是"),
        ("蓝色星星的左边是什么？", "红色圆环"),
        ("红色圆环在蓝色星星的右边吗？", "否"),
        ("有几颗星星？", "1"),
        ("¿de qué color es la estrella?", "azul"),
        ("¿de qué color es el anillo?", "rojo"),
        ("¿qué hay a la derecha del anillo rojo?", "estrella azul"),
        ("¿está la estrella a la izquierda del anillo?", "no"),
        ("¿cuántas estrellas azules hay?", "1"),
        ("cuantos corazones hay", "0"),
    ],
)
def test_answer(question, expected):
    assert answer(PAIR, question) == expected


def test_between_and_inside():
    scene = Scene((replace(RING, size="medium", x=0.5), SceneObject("star", "blue", x=0.2, y=0.5),
                   SceneObject("heart", "green", x=0.8, y=0.5)))  # fmt: skip
    assert answer(scene, "what is between the star and the heart?") == "red ring"
    assert answer(scene, "is the ring between the star and the heart?") == "yes"
    assert answer(scene, "is the star between the ring and the heart?") == "no"
    inside = Scene((SceneObject("star", "blue", "small"), replace(RING, x=0.5)))
    assert answer(inside, "what is inside the ring?") == "blue star"
    assert answer(inside, "圆环的里面是什么？") == "蓝色星星"


def test_a_wrong_scene_gives_another_answer():
    """Changing the fact that is asked about changes the answer."""
    rng = random.Random(5)
    for scene in SCENES[:120]:
        for q in questions(scene, rng, 2, ["colour", "shape"]):
            things = []
            for o in scene.objects:
                other = {"colour": COLOURS, "shape": SHAPES}[q.kind]
                new = other[(other.index(getattr(o, q.kind)) + 1) % len(other)]
                things.append(replace(o, rotation=0, **{q.kind: new}))
            changed = replace(scene, objects=tuple(things))
            assert answer(changed, q.question) != q.answer


def test_moved_motion_is_told():
    scene = Scene((replace(RING, motion=Motion("translate", "left")),))
    assert answer(scene, "what is the ring doing?") == "moving left"
    assert answer(scene, "圆环在做什么？") == "向左移动"
    assert answer(scene, "¿qué hace el anillo?") == "se mueve hacia la izquierda"


def test_attributes_are_asked_only_of_one_thing():
    twins = Scene((RING, replace(RING, x=0.75)))
    for kind in ATTRIBUTES:
        assert questions(twins, random.Random(0), 3, [kind]) == []


@pytest.mark.parametrize(
    "question, message",
    [
        ("why?", "cannot read the question"),
        ("what colour is the heart?", "nothing in the scene fits 'the heart'"),
        ("what colour is the thing with wings?", "unknown word"),
        ("what is above the star?", "no single answer"),
        ("what is the ring?", "cannot read the question"),
        ("is the ring?", "cannot read the question"),
        ("is the ring left of the heart?", "nothing in the scene fits"),
    ],
)
def test_errors(question, message):
    with pytest.raises(SceneError, match=message):
        answer(PAIR, question)


def test_ambiguous_reference_is_an_error():
    three = Scene((RING, STAR, replace(STAR, colour="green", y=0.2)))
    with pytest.raises(SceneError, match="2 things fit"):
        answer(three, "what size is the star?")
    with pytest.raises(SceneError, match="no single answer"):
        answer(three, "what is right of the ring?")


def test_unknown_kind_and_language():
    with pytest.raises(SceneError, match="existence, count"):
        questions(PAIR, random.Random(0), 1, ["weight"])
    with pytest.raises(SceneError, match="en, zh, es"):
        questions(PAIR, random.Random(0), 1, language="fr")
