"""Edits: the instruction gives the scene after it, and nothing changes but what it names."""

import random
from dataclasses import replace

import pytest

from showtell.world.edits import KINDS, apply, edits
from showtell.world.language import LANGUAGES, module, words
from showtell.world.sampling import sample
from showtell.world.scene import CAMERAS, MOTIONS, Scene, SceneError, SceneObject, holds

SCENES = sample(200, seed=31) + sample(60, seed=32, motion=tuple(MOTIONS), word=True, camera=CAMERAS)
RING = SceneObject("ring", "red", x=0.25, y=0.4, depth=1)
STAR = SceneObject("star", "blue", "small", x=0.55, y=0.45)
PAIR = Scene((RING, STAR))


def all_edits(kind, n=2, seed=7):
    rng = random.Random(seed)
    return [e for scene in SCENES for e in edits(scene, rng, [kind], n)]


def where(things):
    return sorted((o.x, o.y) for o in things)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_inverts_the_instruction_in_every_language(kind):
    made = all_edits(kind, n=1)
    assert len(made) > 40
    for edit in made:
        assert edit.kind == kind and edit.before != edit.after
        for language in LANGUAGES:
            after = apply(edit.before, edit.text(language))
            assert after.matches(edit.after) and edit.after.matches(after), edit.text(language)
            assert after == edit.after


@pytest.mark.parametrize("language", LANGUAGES)
def test_instructions_use_listed_words(language):
    known, lexicon = words(language), module(language).LEXICON
    for edit in all_edits("add", 1) + all_edits("move", 1) + all_edits("recolour", 1):
        assert {w for w in lexicon.split(edit.text(language))} <= known, edit.text(language)


@pytest.mark.parametrize("kind, name", [
    ("replace", "shape"), ("recolour", "colour"), ("resize", "size"), ("retexture", "texture"),
])  # fmt: skip
def test_only_the_named_attribute_changes(kind, name):
    for edit in all_edits(kind):
        changed = 0
        for old, new in zip(edit.before.objects, edit.after.objects, strict=True):
            assert replace(new, **{name: getattr(old, name)}) == old
            changed += new != old
        assert changed >= 1
        assert replace(edit.after, objects=edit.before.objects) == edit.before


@pytest.mark.parametrize("kind, name", [("restyle", "style"), ("background", "background")])
def test_only_the_look_changes(kind, name):
    for edit in all_edits(kind):
        assert getattr(edit.after, name) != getattr(edit.before, name)
        assert replace(edit.after, **{name: getattr(edit.before, name)}) == edit.before


def test_remove_and_count_keep_the_others_in_place():
    for edit in all_edits("remove"):
        assert set(edit.after.objects) < set(edit.before.objects)
    for edit in all_edits("count"):
        small, large = sorted((edit.before.objects, edit.after.objects), key=len)
        assert set(small) < set(large)
        assert len({o.facts for o in set(large) - set(small)}) == 1
        assert str(len([o for o in edit.after.objects if o.facts == (set(large) - set(small)).pop().facts])) in (
            edit.instruction
        )


def test_add_and_move_keep_the_others_and_collide_with_nothing():
    for edit in all_edits("add") + all_edits("move"):
        old, new = where(edit.before.objects), where(edit.after.objects)
        assert len(set(new) - set(old)) == 1
        assert set(old) - set(new) == set() if edit.kind == "add" else len(set(old) - set(new)) == 1
        moved = next(o for o in edit.after.objects if (o.x, o.y) not in set(old))
        assert moved.radius <= moved.x <= 1 - moved.radius
        assert moved.radius <= moved.y <= (0.84 if edit.after.word else 1) - moved.radius
        touched = [
            o for o in edit.after.objects
            if o is not moved and (o.x - moved.x) ** 2 + (o.y - moved.y) ** 2 < (o.radius + moved.radius) ** 2
        ]  # fmt: skip
        close = any(word in edit.instruction for word in ("in front of", "behind", "inside"))
        assert len(touched) == close, edit.instruction


def test_move_and_add_do_what_is_said():
    seen = set()
    for edit in all_edits("move") + all_edits("add"):
        relation = edit.operation.relation
        if relation:
            seen.add(relation)
            moved = next(o for o in edit.after.objects if (o.x, o.y) not in where(edit.before.objects))
            said = dict(edit.operation.anchor)
            others = [o for o in edit.after.objects if o is not moved]
            fits = [o for o in others if all(getattr(o, k) == v for k, v in said.items())]
            assert any(holds(relation, (moved,), (o,)) for o in fits), edit.instruction
    assert {"left of", "right of", "above", "below", "behind", "in front of", "inside"} == seen


@pytest.mark.parametrize(
    "instruction, caption",
    [
        ("make the ring green", "a green ring left of a small blue star"),
        ("Make the ring large.", "a large red ring left of a small blue star"),
        ("make the star medium", "a red ring left of a blue star"),
        ("make the star striped", "a red ring left of a small striped blue star"),
        ("make the star cracked", "a red ring left of a small cracked blue star"),
        ("remove the star", "a red ring"),
        ("replace the ring with a square", "a red square left of a small blue star"),
        ("turn it into watercolour style", "a red ring left of a small blue star, in watercolour style"),
        ("change the background to the sand", "a red ring left of a small blue star on a sand background"),
        ("change the background to black", "a red ring left of a small blue star on a black background"),
        ("change the number of stars to 2", "a red ring left of two small blue stars"),
        ("change the number of stars to two", "a red ring left of two small blue stars"),
        ("move the ring to the right of the star", "a red ring right of a small blue star"),
        ("add a small red circle below the star",
         "a red ring left of a small blue star, which is above a small red circle"),
        ("把圆环变成绿色", "a green ring left of a small blue star"),
        ("haz que la estrella sea roja", "a red ring left of a small red star"),
        ("mueve el anillo a la derecha de la estrella", "a red ring right of a small blue star"),
    ],
)  # fmt: skip
def test_plain_instructions(instruction, caption):
    assert apply(PAIR, instruction).caption() == caption


@pytest.mark.parametrize("place, x, y", [
    ("top left", 0, 0), ("top", 1, 0), ("right", 2, 1),
    ("bottom", 1, 2), ("centre", 1, 1), ("bottom right", 2, 2),
])  # fmt: skip
def test_move_to_a_place(place, x, y):
    moved = apply(PAIR, f"move the star to the {place}").objects[1]
    assert (int(moved.x * 3), int(moved.y * 3)) == (x, y)


def test_references_are_as_short_as_is_unambiguous():
    two = Scene((RING, replace(RING, colour="green", x=0.7), replace(RING, size="small", x=0.5, y=0.8)))
    said = {e.instruction for e in edits(two, random.Random(1), ["remove"], 20)}
    assert said == {"remove the medium red ring", "remove the green ring", "remove the small ring"}
    assert {e.instruction for e in edits(PAIR, random.Random(1), ["remove"], 20)} == {
        "remove the ring", "remove the star",
    }  # fmt: skip
    trio = Scene((*(replace(STAR, x=x) for x in (0.2, 0.5, 0.8)), replace(RING, y=0.8)))
    said = " ".join(e.instruction for e in edits(trio, random.Random(2), ["recolour"], 10))
    assert "make the stars" in said and "make the ring" in said


def test_plural_changes_all():
    trio = Scene(tuple(replace(STAR, x=x) for x in (0.2, 0.5, 0.8)))
    assert apply(trio, "make the stars red").caption() == "three small red stars"
    assert apply(trio, "haz que las estrellas sean rojas").caption() == "three small red stars"
    assert apply(trio, "把星星变成红色").caption() == "three small red stars"
    with pytest.raises(SceneError, match="3 things fit"):
        apply(trio, "make the star red")


@pytest.mark.parametrize(
    "instruction, message",
    [
        ("dance", "cannot read the instruction"),
        ("remove the heart", "nothing in the scene fits 'the heart'"),
        ("remove the dragon", "unknown word: 'dragon'"),
        ("make the ring heavy", "unknown word: 'heavy'"),
        ("make the ring star", "cannot make something 'star'"),
        ("replace the ring with sky", "expected a thing"),
        ("change the background to striped", "is no background"),
        ("turn it into sky", "is no style"),
        ("add a circle", "which colour"),
        ("add two red circles", "one thing at a time"),
        ("add a red circle above the heart", "nothing in the scene fits"),
        ("change the number of stars to 6", "1 to 5"),
        ("change the number of stars to 5", "6 objects"),
        ("move the ring inside the star", "only a small thing fits"),
        ("move the ring near the star", "unknown word: 'near'"),
        ("move the ring above the ring", "beside itself"),
    ],
)
def test_errors(instruction, message):
    with pytest.raises(SceneError, match=message) as error:
        apply(PAIR, instruction)
    assert "\n" not in str(error.value)


def test_nothing_is_removed_last_or_grown_into_others():
    with pytest.raises(SceneError, match="nothing would be left"):
        apply(Scene((RING,)), "remove the ring")
    corners = [replace(RING, size="large", x=x, y=y) for x in (0.22, 0.78) for y in (0.22, 0.78)]
    with pytest.raises(SceneError, match="no room"):
        apply(Scene((replace(STAR, x=0.5, y=0.5), *corners)), "make the star large")
    inside = Scene((replace(STAR, x=0.5, y=0.5), replace(RING, size="large", x=0.5, y=0.5)))
    with pytest.raises(SceneError, match="no longer be inside"):
        apply(inside, "replace the ring with a square")
    full = Scene(tuple(replace(STAR, x=0.1 + 0.2 * i) for i in range(5)))
    with pytest.raises(SceneError, match="5 objects already"):
        apply(full, "add a red ring")


def test_what_grows_shifts_no_more_than_it_must():
    moved = apply(replace(PAIR, objects=(replace(RING, x=0.16), STAR)), "make the ring large")
    assert moved.objects[1] == STAR and moved.objects[0].size == "large"
    assert 0.21 <= moved.objects[0].x <= 0.3 and abs(moved.objects[0].y - RING.y) < 0.1


def test_edits_are_seeded_and_kinds_checked():
    one, two = edits(SCENES[0], random.Random(5), n=4), edits(SCENES[0], random.Random(5), n=4)
    assert one == two and len(one) == 4
    with pytest.raises(SceneError, match="add, remove"):
        edits(PAIR, random.Random(0), ["explode"])
