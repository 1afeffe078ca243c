"""The embedded grammar model on captions of the world: every task, in every language of the world."""

from __future__ import annotations

from dataclasses import replace

import pytest

from showtell import language
from showtell.errors import ShowtellError, UnsupportedError
from showtell.language import Altered, GrammarModel, LanguageModel
from showtell.world.draw import boxes
from showtell.world.language import LANGUAGES
from showtell.world.questions import answer
from showtell.world.sampling import sample
from showtell.world.scene import BACKGROUNDS, LIGHTS, RELATIONS, STYLES, Scene, SceneObject

LM = GrammarModel()
LONG = (
    "three small red circles left of a striped blue star, which is above a green ring on a meadow background, "
    "in watercolour style"
)
SCENES = sample(12, seed=3, objects=(2, 3), style=STYLES, background=BACKGROUNDS, light=LIGHTS)
SCENES += [scene for kind in RELATIONS for scene in sample(2, seed=4, relation=kind, objects=(2, 3))]
TEXTS = [(scene, code, scene.caption(code)) for scene in SCENES for code in LANGUAGES]


def same(one: Scene, other: Scene) -> bool:
    return one.matches(other) and other.matches(one)


def test_no_source_is_the_grammar() -> None:
    lm = language.load()
    assert isinstance(lm, GrammarModel) and isinstance(lm, LanguageModel)
    assert language.load(lm) is lm
    assert lm.parse(LONG).caption() == LONG


def test_split_gives_the_characters_of_every_part() -> None:
    split = LM.split(LONG)
    assert split.prompts == ["three small red circles", "a striped blue star", "a green ring"]
    assert [entity.count for entity in split.entities] == [3, 1, 1]
    pairs = [(m.text, h.text) for m, h in split.pairs]
    assert pairs == [
        ("small", "circles"), ("red", "circles"), ("striped", "star"), ("blue", "star"), ("green", "ring"),
    ]  # fmt: skip
    assert [(r.words.text, r.kind, r.subject, r.objects) for r in split.relations] == [
        ("left of", "left of", 0, (1,)), ("above", "above", 1, (2,)),
    ]  # fmt: skip
    assert split.background == "on a meadow background, in watercolour style"
    assert "a striped blue star above a green ring" in split.concepts and len(split.concepts) == 7


def test_split_of_every_caption_agrees_with_its_scene() -> None:
    for scene, _, text in TEXTS:
        split = LM.split(text)
        spans = [s for e in split.entities for s in (e.phrase, e.head, *e.modifiers)] + list(split.rest)
        spans += [link.words for link in split.relations]
        assert all(text[s.start : s.stop] == s.text != "" for s in spans), text
        for entity in split.entities:
            inside = (entity.head, *entity.modifiers)
            assert all(entity.phrase.start <= s.start and s.stop <= entity.phrase.stop for s in inside), text
        assert sum(entity.count for entity in split.entities) == len(scene.objects)
        assert sorted(link.kind for link in split.relations) == sorted(r.kind for r in scene.relations), text
        for entity, group in zip(split.entities, LM.parse(text).groups, strict=True):
            alone = LM.parse(entity.phrase.text).objects
            if "inside" not in {r.kind for r in scene.relations}:  # which decides sizes that the phrase leaves out
                assert [o.facts for o in alone] == [o.facts for o in group], text


def test_punctuation_is_no_part_of_a_phrase() -> None:
    text = Scene.parse("a red ring on a sand background, in night style").caption("en", "terse")
    assert text == "red ring; sand; night" and LM.split(text).background == "sand, night"


def test_between_two_things_is_one_phrase_for_two_relations() -> None:
    split = LM.split("a red ring between two blue stars")
    assert [e.phrase.text for e in split.entities] == ["two blue stars", "a red ring", "two blue stars"]
    assert [r.words.text for r in split.relations] == ["between", "between"]


def test_chinese_concepts_are_sentences_of_the_world() -> None:
    text = Scene.parse("a red ring left of a blue star").caption("zh")
    concept = LM.split(text).concepts[-1]
    assert same(Scene.parse(concept), Scene.parse(text))


def test_span_positions() -> None:
    class Word:
        def __init__(self, start: int, stop: int, *positions: int) -> None:
            self.start, self.stop, self.positions = start, stop, positions

    red = LM.split("a red ring").pairs[0][0]
    assert (red.start, red.stop) == (2, 5)
    assert red.positions([Word(0, 1, 1), Word(2, 5, 2, 3), Word(6, 10, 4)]) == (2, 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_layouts_honour_the_relations(seed: int) -> None:
    for scene, _, text in TEXTS:
        layout = LM.plan_layout(text, seed)
        assert len(layout.placed) == len(scene.objects)
        assert all(0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in layout.boxes)
        # The boxes are those of objects with the scene's facts, moved: put them there and compare.
        parsed = LM.parse(text)
        moved = []
        for thing, box in zip(parsed.objects, layout.boxes, strict=True):
            old = boxes(Scene((replace(thing, x=0.5, y=0.5),)))[0]
            moved.append(replace(thing, x=box[0] - old[0] + 0.5, y=box[1] - old[1] + 0.5))
        assert parsed.matches(replace(parsed, objects=tuple(moved))), text


def test_layouts_are_seeded_and_counted() -> None:
    one, again, other = (LM.plan_layout(LONG, seed) for seed in (0, 0, 1))
    assert one == again and one.boxes != other.boxes
    assert [p.prompt for p in one.placed[:3]] == ["a small red circle"] * 3
    assert [p.entity for p in one.placed] == [0, 0, 0, 1, 2] and one.placed[0].phrase == "three small red circles"
    assert one.background == "on a meadow background, in watercolour style"


def test_questions_are_about_what_is_said_and_hold_in_every_layout() -> None:
    for _, _, text in TEXTS[::4]:
        parsed = LM.parse(text)
        for question in LM.ask(text):
            assert answer(parsed, question.question) == question.answer
            assert LM.answer(text, question.question) == question.answer, (text, question)


def test_questions_on_every_fact() -> None:
    asked = {question.question: question.answer for question in LM.ask(LONG)}
    assert asked["how many red circles are there?"] == "3"
    assert asked["what texture does the star have?"] == "striped"
    assert asked["is the star above the ring?"] == "yes"
    assert asked["what is the background?"] == "meadow"
    assert "where does the light come from?" not in asked, "the text does not say it"
    few = LM.ask(LONG, 3, seed=1)
    assert len(few) == 3 and set(few) <= set(LM.ask(LONG)) and few == LM.ask(LONG, 3, seed=1)
    assert {tuple(LM.ask(LONG, 3, seed=seed)) for seed in range(5)} != {tuple(few)}


def test_answers() -> None:
    scene = Scene.parse("a red ring left of a blue star")
    assert LM.answer(scene, "is the ring left of the star?") == "yes"
    assert LM.answer(scene, "is there a green heart?") == "no"
    assert LM.answer(scene, "is the heart left of the star?") == "no"
    assert LM.answer(scene, "what colour is the heart?") == "unknown"
    assert LM.answer(scene, "¿está el corazón a la izquierda de la estrella?") == "no"
    with pytest.raises(UnsupportedError, match="cannot answer 'who painted it"):
        LM.answer(scene, "who painted it?")


def test_a_caption_does_not_tell_what_it_leaves_open() -> None:
    text = "a red ring, a blue star and a green heart"
    assert LM.answer(text, "is the ring left of the heart?") == "unknown"
    assert LM.answer(text, "what colour is the heart?") == "green"


@pytest.mark.parametrize("code", LANGUAGES)
def test_paraphrases_keep_the_meaning(code: str) -> None:
    for _, language_, text in TEXTS:
        if language_ != code:
            continue
        found = LM.paraphrase(text, 4)
        assert len(found) == len(set(found)) >= 3 and text not in found
        assert all(same(Scene.parse(other), Scene.parse(text)) for other in found), text
        assert found == LM.paraphrase(text, 4)
    many = LM.paraphrase("a red ring, a blue star and a green heart", 20)
    assert len(many) == 20, "free orders give more"


def test_translations() -> None:
    for _, _, text in TEXTS:
        for to in LANGUAGES:
            assert same(Scene.parse(LM.translate(text, to)), Scene.parse(text))
    assert LM.translate(LM.translate(LONG, "zh"), "en") == LONG
    with pytest.raises(ShowtellError, match="unknown language 'fr'; use one of: en, zh, es"):
        LM.translate(LONG, "fr")


def test_expansion_spells_out_or_invents() -> None:
    for _, _, text in TEXTS[:30]:
        (spelled,) = LM.expand(text)
        assert same(Scene.parse(spelled), Scene.parse(text)) and len(spelled) > len(text)
    plain = "a red ring left of a blue star"
    for text in LM.expand(plain, 4, seed=2, add=3):
        scene = Scene.parse(text)
        assert [(o.shape, o.colour) for o in scene.objects] == [("ring", "red"), ("star", "blue")]
        assert [r.kind for r in scene.relations] == ["left of"]
        facts = [scene.background != "white", scene.style != "flat", scene.light != "even"]
        facts += [o.size != "medium" for o in scene.objects] + [o.texture != "solid" for o in scene.objects]
        assert sum(facts) == 3, text
    assert LM.expand(plain, 2, seed=1, add=3) != LM.expand(plain, 2, seed=2, add=3)
    with pytest.raises(ShowtellError, match="add is -1"):
        LM.expand(plain, add=-1)


def test_expansion_keeps_what_is_said() -> None:
    for seed in range(6):
        for text in LM.expand("a small striped red ring in watercolour style, lit from above", 2, seed, add=9):
            scene = Scene.parse(text)
            thing = scene.objects[0]
            assert (thing.size, thing.texture, scene.style, scene.light) == ("small", "striped", "watercolour", "above")
            assert scene.background != "white"


@pytest.mark.parametrize("code", LANGUAGES)
def test_suggestions_can_be_appended(code: str) -> None:
    text = Scene.parse("a red ring left of a black star").caption(code)
    found = LM.suggest(text, 40)
    assert len(found) == len(set(found)) == 7 + 5 + 4 - 1, "all but what is meant anyway and what would hide the star"
    before = Scene.parse(text)
    for modifier in found:
        after = Scene.parse(f"{text}{'，' if code == 'zh' else ', '}{modifier}")
        changed = [n for n in ("background", "style", "light") if getattr(after, n) != getattr(before, n)]
        assert len(changed) == 1 and [o.facts for o in after.objects] == [o.facts for o in before.objects]
    assert not any("style" in modifier for modifier in LM.suggest("a red ring in night style", 40))
    assert LM.suggest(text, 3, seed=1) != LM.suggest(text, 3, seed=2)


def test_edits() -> None:
    assert LM.edit("a red ring left of a blue star", "make the ring green") == "a green ring left of a blue star"
    zh = LM.edit(Scene.parse("a red ring").caption("zh"), "make the ring green")
    assert zh == Scene.parse("a green ring").caption("zh")
    with pytest.raises(ShowtellError, match="nothing in the scene fits"):
        LM.edit("a red ring", "make the star green")


def test_alterations_differ_in_one_respect() -> None:
    text = "a red ring left of a striped blue star"
    found = LM.alter(text, 30)
    assert len({one.text for one in found}) == len(found) > 10 and text not in {one.text for one in found}
    assert {one.kind for one in found} >= {"swap", "relation", "background"}
    for one in found:
        assert not same(Scene.parse(one.text), Scene.parse(text))
        if one.instruction and one.kind != "move":
            assert same(Scene.parse(LM.edit(text, one.instruction)), Scene.parse(one.text)), one
    assert LM.alter(text, kinds=["relation"]) == [Altered("relation", "", text.replace("left", "right"))]
    swaps = {one.text for one in LM.alter(text, 5, kinds=["swap"])}
    assert swaps == {"a blue ring left of a striped red star", "a striped red ring left of a blue star"}
    with pytest.raises(ShowtellError, match="unknown kind of alteration 'melt'"):
        LM.alter(text, kinds=["melt"])


def thing(shape: str, colour: str, x: float, **more: object) -> SceneObject:
    return SceneObject(shape, colour, x=x, **more)  # type: ignore[arg-type]


WANTED = "a red ring left of a blue star"


@pytest.mark.parametrize(
    "objects, more, told",
    [
        ([thing("ring", "red", 0.2)], {}, {("missing", "there is no blue star")}),
        ([thing("ring", "red", 0.8), thing("star", "blue", 0.2)], {},
         {("relation", "the red ring is not left of the blue star")}),
        ([thing("ring", "green", 0.2), thing("star", "blue", 0.8)], {},
         {("colour", "the ring is green instead of red")}),
        ([thing("ring", "red", 0.2), thing("star", "blue", 0.8, size="large", texture="striped")], {},
         {("size", "the blue star is large instead of medium"),
          ("texture", "the blue star is striped instead of solid")}),
        ([thing("ring", "red", 0.2), thing("oval", "blue", 0.8)], {}, {("shape", "the blue star is an oval")}),
        ([thing("ring", "red", 0.2), thing("star", "blue", 0.8), thing("heart", "pink", 0.5)], {},
         {("extra", "there is a pink heart that was not asked for")}),
        ([thing("ring", "red", 0.1), thing("ring", "red", 0.3), thing("star", "blue", 0.8)], {},
         {("count", "there are 2 red rings instead of 1")}),
        ([thing("ring", "red", 0.2), thing("star", "blue", 0.8)], {"background": "sand", "word": "HI"},
         {("background", "the background is sand instead of white"),
          ("word", "the picture says HI instead of nothing")}),
    ],
)  # fmt: skip
def test_critique_says_what_is_wrong(objects: list[SceneObject], more: dict[str, str], told: set) -> None:
    found = LM.critique(WANTED, Scene(tuple(objects), **more))
    assert {(m.kind, m.text) for m in found.mismatches} == told and not found.right
    assert found.revised != WANTED and same(Scene.parse(found.revised), Scene.parse(WANTED))


def test_critique_of_a_right_picture() -> None:
    found = LM.critique(WANTED, Scene.parse("a blue star right of a red ring"))
    assert found.right and found.mismatches == () and found.revised == WANTED
    assert LM.critique(WANTED, "a blue star right of a red ring").right


def test_critique_counts_and_clips() -> None:
    found = LM.critique("three red circles", Scene.parse("two red circles"))
    assert [m.text for m in found.mismatches] == ["there are 2 red circles instead of 3"]
    # A picture shows no motion; a clip does.
    moving = "a red ring moving left"
    assert LM.critique(moving, Scene.parse("a red ring")).right
    (wrong,) = LM.critique(moving, Scene.parse("a red ring moving right")).mismatches
    assert wrong.text == "the red ring is moving right instead of moving left"


def test_revision_puts_what_is_missing_first_and_spells_out() -> None:
    text = "a red ring, a blue star and a green heart"
    revised = LM.critique(text, Scene.parse("a red ring and a blue star")).revised
    assert revised.index("green heart") < revised.index("red ring")
    spelled = LM.critique(text, replace(Scene.parse(text), background="sand")).revised
    assert "white background" in spelled
    assert (
        LM.critique(text, Scene.parse("a red ring"), seed=1).revised
        != LM.critique(text, Scene.parse("a red ring")).revised
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda text: LM.parse(text), lambda text: LM.paraphrase(text), lambda text: LM.translate(text, "zh"),
        lambda text: LM.expand(text), lambda text: LM.edit(text, "make it green"),
        lambda text: LM.critique(text, WANTED), lambda text: LM.critique(WANTED, text),
        lambda text: LM.answer(text, "is there a cat?"), lambda text: LM.alter(text, kinds=["recolour"]),
    ],
)  # fmt: skip
def test_what_the_grammar_cannot_do_is_said_in_one_line(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnsupportedError, match=r"only captions of its own world.*'cat'.*language\.load") as caught:
        call("a cat on a mat")
    assert "\n" not in str(caught.value)


def test_the_grammar_does_not_chat() -> None:
    for call in (lambda: LM.chat("hello"), lambda: LM.sample("hello", 2), lambda: LM.structured("hello", list[str])):
        with pytest.raises(UnsupportedError, match="does not chat"):
            call()


def test_bad_input() -> None:
    with pytest.raises(ShowtellError, match="the text is empty"):
        LM.split(" ")
    with pytest.raises(ShowtellError, match="n is 0; ask for 1 or more"):
        LM.paraphrase(WANTED, 0)
    with pytest.raises(ShowtellError, match="options are for"):
        language.load(None, timeout=3)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        language.lode  # noqa: B018
