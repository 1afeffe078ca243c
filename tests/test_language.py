"""Captions and their parser: every caption, in every language and style, reads back as its scene."""

import random
import re
from dataclasses import replace

import pytest

from showtell.world.language import (
    LANGUAGES,
    MAX_TEXT,
    STYLES,
    caption,
    language_of,
    parse,
    spanish,
    words,
)
from showtell.world.language.english import without_article
from showtell.world.layout import place
from showtell.world.sampling import sample
from showtell.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    LIGHTS,
    MOTIONS,
    RELATIONS,
    ROTATIONS,
    SHAPES,
    SIZES,
    STATES,
    TEXTURES,
    TURNABLE,
    Motion,
    Relation,
    Scene,
    SceneError,
    SceneObject,
)  # fmt: skip
from showtell.world.scene import STYLES as LOOKS

PLAIN = sample(1000, seed=11)
RICH = sample(
    1000, seed=12, word=True, camera=CAMERAS, motion=tuple(MOTIONS), light=LIGHTS, style=LOOKS,
    background=BACKGROUNDS, texture=TEXTURES, state=STATES, rotation=ROTATIONS,
)  # fmt: skip
RING, STAR = SceneObject("ring", "red", x=0.25), SceneObject("star", "blue", x=0.75)


def same(scene: Scene, text: str) -> bool:
    read = Scene.parse(text)
    return read.matches(scene) and scene.matches(read)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_caption_reads_back(language):
    for i, scene in enumerate(PLAIN + RICH):
        text = scene.caption(language, STYLES[i % len(STYLES)])
        assert same(scene, text), text
        assert language_of(text) == language, text


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_reads_back_in_every_style(relation):
    for scene in sample(12, seed=5, relation=relation, objects=(3, 4)):
        for language in LANGUAGES:
            for style in STYLES:
                assert same(scene, caption(scene, language, style)), caption(scene, language, style)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_attribute_is_said_in_every_style(language):
    things = [SceneObject(s, c) for s in SHAPES for c in COLOURS]
    things += [SceneObject("star", "red", a, t, s) for a in SIZES for t in TEXTURES for s in STATES]
    things += [SceneObject(s, "red", rotation=r) for s in TURNABLE for r in ROTATIONS]
    things += [SceneObject("star", "pink", motion=Motion(k, to)) for k, targets in MOTIONS.items() for to in targets]
    scenes = [Scene((thing,)) for thing in things]
    scenes += [Scene((RING,), background=b, style=s) for b in BACKGROUNDS for s in LOOKS]
    scenes += [
        Scene((RING,), light=light, camera=c, word=w) for light in LIGHTS for c in CAMERAS for w in ("", "HI", "7")
    ]
    for turn, style in enumerate(STYLES):
        texts = [caption(scene, language, style) for scene in scenes]
        distinct = {(s.objects[0].facts, s.background, s.style, s.light, s.camera, s.word) for s in scenes}
        assert len(set(texts)) == len(distinct)
        for scene, text in list(zip(scenes, texts, strict=True))[turn % 3 :: 3]:
            assert same(scene, text), text


def test_detailed_says_what_is_as_usual():
    text = caption(Scene((SceneObject("heart", "red"),)), "en", "detailed")
    for word in ("medium", "solid", "whole", "upright", "white", "flat", "evenly", "no word", "still"):
        assert word in text
        assert word not in caption(Scene((SceneObject("heart", "red"),)), "en", "plain")


@pytest.mark.parametrize(
    "text",
    [
        "a red ring left of a blue star",
        "three small red circles and a large striped blue star on a meadow background",
        "a red ring left of a blue star, which is above a green heart",
        "an upside-down pink heart in front of a cracked grey square, in watercolour style, "
        "lit from the left, with the word HELLO",
        "a red ring between a blue star and a green square",
        "a small red star inside a large blue frame",
        "two red crosses above two halved red hearts",
        "an orange oval, a red ring and a blue star",
    ],
)
def test_plain_english_is_what_people_type(text):
    assert Scene.parse(text).caption() == text


@pytest.mark.parametrize(
    "typed, plain",
    [
        ("Red ring to the LEFT of blue star.", "a red ring left of a blue star"),
        ("the red ring is on top of the blue star", "a red ring above a blue star"),
        ("red ring under gray star", "a red ring below a grey star"),
        ("a picture of 3 tiny red discs", "three small red circles"),
        ("a red square shaped thing and a cyan colored star", "a red square and a cyan star"),
        ("a red star in a blue ring", "a small red star inside a large blue ring"),
        ("A red ring. With the word 'hello'", "a red ring, with the word HELLO"),
        (
            "watercolor style: a red ring on the meadow",
            "a red ring on a meadow background, in watercolour style",
        ),
        ("a red ring and a red ring", "two red rings"),
        ("a red ring between two blue stars", "a blue star left of a red ring, which is left of a blue star"),
        ("an upside down heart that is pink", "an upside-down pink heart"),
        ("蓝色星星左边的红色圆环", "a red ring left of a blue star"),
        ("红圆环在蓝星星左边", "a red ring left of a blue star"),
        ("3个红色圆形", "three red circles"),
        ("circulo rojo encima de la estrella azul", "a red circle above a blue star"),
        ("El anillo rojo está a la izquierda del corazón azul.", "a red ring left of a blue heart"),
    ],
)
def test_variants(typed, plain):
    assert parse(typed).caption() == plain


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("style", STYLES)
def test_swapping_sides_does_not_match(language, style):
    scene = Scene((RING, STAR))
    mirrored = Scene((replace(RING, x=0.75), replace(STAR, x=0.25)))
    text = caption(scene, language, style)
    assert not same(mirrored, text)
    assert not parse(text).matches(mirrored)


@pytest.mark.parametrize("language", LANGUAGES)
def test_changing_one_fact_does_not_match(language):
    rng = random.Random(3)
    for scene in PLAIN[:60]:
        text = caption(scene, language)
        i = rng.randrange(len(scene.objects))
        other = rng.choice([c for c in COLOURS if c != scene.objects[i].colour])
        things = list(scene.objects)
        things[i] = replace(things[i], colour=other)
        assert not parse(text).matches(replace(scene, objects=tuple(things)))


@pytest.mark.parametrize("a, b, said", [
    ("star", "red", "una estrella roja"), ("ring", "red", "un anillo rojo"),
    ("cross", "yellow", "una cruz amarilla"),
    ("flower", "blue", "una flor azul"),
    ("heart", "grey", "un corazón gris"), ("drop", "brown", "una gota marrón"),
])  # fmt: skip
def test_spanish_gender(a, b, said):
    assert caption(Scene((SceneObject(a, b),)), "es") == said


@pytest.mark.parametrize("thing, said", [
    (SceneObject("circle", "red"), "tres círculos rojos"),
    (SceneObject("star", "red", "small", "striped"), "tres estrellas rojas pequeñas rayadas"),
    (SceneObject("cross", "blue", "large"), "tres cruces azules grandes"),
    (SceneObject("heart", "brown", state="cracked"), "tres corazones marrones agrietados"),
    (SceneObject("arrow", "green", rotation=90), "tres flechas verdes giradas a la derecha"),
    (SceneObject("drop", "grey", motion=Motion("recolour", "red")), "tres gotas grises que se vuelven rojas"),
])  # fmt: skip
def test_spanish_plural(thing, said):
    scene = Scene(tuple(replace(thing, x=0.2 + 0.3 * i) for i in range(3)))
    assert caption(scene, "es") == said


def test_spanish_adjectives_agree_throughout():
    for scene in RICH[:300]:
        for group in scene.groups:
            thing, many = group[0], len(group) > 1
            feminine = thing.shape in spanish.FEMININE
            for value in (thing.colour, thing.size, thing.texture, thing.state):
                base = spanish.ADJECTIVES[value]
                if base.endswith("o"):
                    bent = base[:-1] + ("a" if feminine else "o") + ("s" if many else "")
                    assert bent in spanish.noun({"shape": thing.shape, "x": 0, **_one(value)}, len(group)).split()


def _one(value):
    kinds = {"size": SIZES, "texture": TEXTURES, "state": STATES}
    return {next((kind for kind, values in kinds.items() if value in values), "colour"): value}


def test_chinese_measure_words():
    for shape, said in {
        "star": "一颗",
        "flower": "一朵",
        "circle": "一个",
        "arrow": "一支",
        "drop": "一滴",
    }.items():
        assert caption(Scene((SceneObject(shape, "red"),)), "zh").startswith(said)
    two = Scene((RING, replace(RING, x=0.8)))
    assert caption(two, "zh") == "两个红色圆环"
    assert caption(Scene((RING, STAR)), "zh") == "一个红色圆环在一颗蓝色星星的左边"


def test_words_without_their_article():
    phrases = ["an orange ring", "The red ring", "a", "another ring", "ring", ""]
    assert [without_article(one) for one in phrases] == ["orange ring", "red ring", "a", "another ring", "ring", ""]


def test_english_articles_and_plurals():
    assert caption(Scene((SceneObject("oval", "red"),))) == "a red oval"
    assert caption(Scene((SceneObject("oval", "orange"),))) == "an orange oval"
    assert caption(Scene((SceneObject("heart", "red", rotation=180),))) == "an upside-down red heart"
    assert caption(Scene((SceneObject("cross", "red"), SceneObject("cross", "red", x=0.9)))) == "two red crosses"


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_use_listed_words_only(language):
    known = words(language)
    for scene in RICH[:200]:
        for style in STYLES:
            text = caption(replace(scene, word=""), language, style)
            said = set(re.findall(r"[^\W\d]" if language == "zh" else r"[\w-]+", text))
            assert said <= known, said - known


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a red ring " * 200, f"at most {MAX_TEXT}"),
        (
            "a red rnig left of a bleu star",
            "'rnig' (nearest known word: 'ring'), 'bleu' (nearest known word: 'blue')",
        ),
        ("un anilo rojo y una estrela azul", "'anilo' (nearest known word: 'anillo'), 'estrela'"),
        ("红色圆环在蓝色飞机左边", "'飞机'"),
        ("a ring", "which colour"),
        ("red", "which shape"),
        ("red rings", "how many"),
        ("a red ring left of", "the end"),
        ("a red ring blue star", "join two things"),
        ("a red blue ring", "contradicts"),
        ("left of a red ring", "expected a thing"),
        ("a red ring of of", "cannot read 'of'"),
        ("six red circles", "1 to 5"),
        ("three red circles and three blue stars", "6 things"),
        ("a large star inside a red ring", "does not fit inside"),
        ("a red star inside a blue circle", "only these are hollow"),
        ("a red ring left of a red ring", "one group"),
        ("two red rings behind a blue star", "only one thing"),
        ("a red ring and a blue star between a green heart and a red cross", "first three"),
        ("a red ring between a blue star", "two things"),
        ("an upside-down red circle", "looks the same"),
        ("a red ring on a sky background, on a sand background", "'sky' and 'sand'"),
        ("a large red star left of a large blue star, which is left of a large green star", "do not fit"),
        ("a red ring, with the word ANTIDISESTABLISH", "cannot write"),
    ],
)
def test_errors_say_what_is_wrong(text, message):
    with pytest.raises(SceneError) as error:
        parse(text)
    assert message.lower() in str(error.value).lower()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("language", LANGUAGES)
def test_scrambled_captions_parse_or_say_why_not(language):
    """Whatever is typed, the parser gives a scene or one line of explanation, never another error."""
    rng, known, read = random.Random(9), sorted(words(language)), 0
    for scene in RICH[:400]:
        text = caption(scene, language, rng.choice(STYLES))
        tokens = list(text) if language == "zh" else text.split(" ")
        for _ in range(rng.randint(1, 3)):
            spot = rng.randrange(len(tokens))
            tokens[spot : spot + rng.randint(0, 1)] = [rng.choice((*known, "3", ",", "-", "wörd", "\n", "²"))]
        try:
            read += parse(("" if language == "zh" else " ").join(tokens)) is not None
        except SceneError as error:
            assert "\n" not in str(error)
    assert 0 < read < 400


def test_unknown_language_and_style():
    with pytest.raises(SceneError, match="en, zh, es"):
        caption(PLAIN[0], "fr")
    with pytest.raises(SceneError, match="terse, plain"):
        caption(PLAIN[0], "en", "poetic")
    with pytest.raises(SceneError, match="en, zh, es"):
        words("fr")


# --- layout -------------------------------------------------------------------------------------


def test_layout_states_exactly_what_the_text_states():
    for scene in PLAIN[:400]:
        read = parse(caption(scene))
        assert [r.kind for r in read.relations] == [r.kind for r in scene.relations]
        assert read.relations == scene.relations


def test_layout_keeps_apart_what_is_not_in_front_behind_or_inside():
    close = {"inside", "in front of", "behind"}
    for scene in PLAIN[:300]:
        read = parse(caption(scene))
        owner = [g for g, group in enumerate(read.groups) for _ in group]
        allowed = {frozenset((r.subject, r.objects[0])) for r in read.relations if r.kind in close}
        for i, a in enumerate(read.objects):
            assert 0.9 * a.radius <= a.x <= 1 - 0.9 * a.radius
            for j, b in enumerate(read.objects[:i]):
                if frozenset((owner[i], owner[j])) not in allowed:
                    assert ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 >= 0.86 * (a.radius + b.radius)


def test_same_text_same_scene_and_a_word_keeps_its_room():
    text = "a red ring and a blue star, with the word HELLO"
    assert parse(text) == parse(text)
    assert all(o.y + 0.9 * o.radius <= 0.84 for o in parse(text).objects)


def test_place_is_seeded_and_varied():
    groups = [[SceneObject("ring", "red")], [SceneObject("star", "blue")] * 2]
    wanted = [Relation("left of", 0, (1,))]
    layouts = {place(groups, wanted, random.Random(i)) for i in range(20)}
    assert len(layouts) == 20
    assert place(groups, wanted, random.Random(1)) == place(groups, wanted, random.Random(1))
    assert all(Scene(layout).relations == tuple(wanted) for layout in layouts)
    assert len(place(groups, None, random.Random(1))) == 3


def test_place_refuses_what_cannot_be():
    large = [[SceneObject("circle", "red", "large")] * 5]
    with pytest.raises(SceneError, match="do not fit"):
        place(large, [], random.Random(0))
    with pytest.raises(SceneError, match="1 to 5"):
        place([[SceneObject("circle", "red")] * 6], None, random.Random(0))
