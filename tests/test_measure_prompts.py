"""Prompt sets: what each holds, that its words say what its scenes show, and that splits share nothing."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.errors import ShowtellError
from showtell.measure import prompts as prompts_module
from showtell.measure.entities import ENTITIES, INVENTED, explain, facts_for
from showtell.measure.prompts import EDITS, NAMES, prompt_set, together
from showtell.world import Scene, draw
from showtell.world.edits import apply
from showtell.world.language import words
from showtell.world.questions import answer
from showtell.world.sampling import held_out, split_of
from showtell.world.scene import BACKGROUNDS, MOTIONS, RELATIONS, STYLES

N = 8
SETS = {name: prompt_set(name, N, seed=5) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_words_say_what_scenes_show(name: str) -> None:
    prompts = SETS[name]
    assert len(prompts) == len(prompts.texts) == len(set(prompts.texts)) == N or name == "edits"
    for text, scene in zip(prompts.plain, prompts.scenes, strict=True):
        assert Scene.parse(text).matches(scene), text
    if name not in ("edits", "knowledge"):
        assert prompts.texts == prompts.plain


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_the_beginning_of_a_longer_one_and_differs_by_seed(name: str) -> None:
    assert prompt_set(name, 3, seed=5).prompts == SETS[name].prompts[:3] == SETS[name][:3].prompts
    assert prompt_set(name, 3, seed=6).texts != SETS[name].texts[:3]


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_prompt_whatever_the_seed(name: str) -> None:
    """What decides is the split of the scene, or of the scene before the edit; it is the hash of its facts."""
    for split, seed in (("test", 5), ("validation", 5), ("validation", 11)):
        prompts = SETS[name] if (split, seed) == ("test", 5) else prompt_set(name, 4, seed, split)
        given = [e.before for e in prompts.edits] if name == "edits" else prompts.scenes
        assert {split_of(scene) for scene in given} == {split}


def test_what_each_set_holds() -> None:
    def objects(name: str) -> list[tuple]:
        return [scene.objects for scene in SETS[name].scenes]

    assert all(len(o) == 2 and o[0].shape != o[1].shape and o[0].colour != o[1].colour for o in objects("pairs"))
    assert all(scene.relations for scene in SETS["pairs"].scenes)
    assert all(len({t.shape for t in o}) == 1 and len({t.colour for t in o}) == len(o) for o in objects("same-shape"))
    assert all(len(o) in (3, 4) for o in objects("objects-3-4"))
    assert [len({t.shape for t in o}) for o in objects("bindings")] == [2, 1] * (N // 2)
    assert all(len({getattr(t, f) for t in o}) == 2 for o in objects("bindings") for f in ("colour", "texture"))
    assert all(t.texture != "solid" for o in objects("bindings") for t in o)
    assert [len(o) for o in objects("counts")] == [2, 3, 4, 5, 2, 3, 4, 5]
    assert all(len(scene.groups) == 1 for scene in SETS["counts"].scenes)
    assert [scene.relations[0].kind for scene in SETS["relations"].scenes] == list(RELATIONS)
    assert all(t.size != "medium" for o in objects("attributes")[::3] for t in o)
    assert all(t.texture != "solid" for o in objects("attributes")[1::3] for t in o)
    assert all(t.state != "whole" for o in objects("attributes")[2::3] for t in o)
    assert min(len(text.split()) for text in SETS["long"].texts) >= 15
    assert all(scene.word for scene in SETS["words"].scenes)
    assert [e.kind for e in SETS["edits"].edits] == list(EDITS[:N])
    assert [s.objects[0].motion.kind for s in SETS["motion"].scenes if s.objects[0].motion] == list(MOTIONS)[:N]
    assert all(thing.motion is None for o in objects("motion") for thing in o[1:])
    assert [scene.style for scene in SETS["styles"].scenes][:5] == list(STYLES[1:])


def test_kinds_stay_balanced_and_prompts_different_in_larger_sets() -> None:
    many = prompt_set("counts", 40, seed=2)
    assert [len(scene.objects) for scene in many.scenes] == [2, 3, 4, 5] * 10 and len(set(many.texts)) == 40


def test_more_prompts_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    few = prompts_module._captions(objects=1, **prompts_module.PLAIN | {"shape": "star", "background": BACKGROUNDS})
    monkeypatch.setitem(prompts_module._SETS, "few", (few, ()))
    monkeypatch.setattr(prompts_module, "_TRIES", 10)
    with pytest.raises(ShowtellError, match="different prompts of 'few' found in test; ask for fewer than 99"):
        prompt_set("few", 99)


def test_kinds_can_be_chosen() -> None:
    assert {e.kind for e in prompt_set("edits", 4, 1, kinds=("recolour", "remove")).edits} == {"recolour", "remove"}
    assert {s.style for s in prompt_set("styles", 3, 1, kinds="night").scenes} == {"night"}
    with pytest.raises(ShowtellError, match="unknown kind 'fly'"):
        prompt_set("motion", 2, kinds="fly")


def test_sets_put_together() -> None:
    both = together([SETS["words"], SETS["pairs"][:2]])
    assert both.texts == SETS["words"].texts + SETS["pairs"].texts[:2] and both.name == "words and pairs"
    assert (both.seed, both.split) == (5, "test") and len(both.boxes) == N + 2
    for sets in ([], [SETS["words"], prompt_set("pairs", 2, seed=6)]):
        with pytest.raises(ShowtellError, match="one seed"):
            together(sets)


def test_edits_carry_sources_and_targets() -> None:
    prompts = SETS["edits"]
    for text, edit, scene in zip(prompts.texts, prompts.edits, prompts.scenes, strict=True):
        assert apply(edit.before, text) == edit.after == scene
    assert np.array_equal(np.asarray(prompts.sources[0]), draw(prompts.edits[0].before)[0])
    assert Scene.parse(prompts.captions[0]).matches(prompts.edits[0].before)
    with pytest.raises(ShowtellError, match="hold no edits"):
        _ = SETS["pairs"].sources


def test_boxes_masks_and_phrases_belong_together() -> None:
    prompts = SETS["pairs"]
    for scene, boxes, masks, phrases in zip(prompts.scenes, prompts.boxes, prompts.masks, prompts.phrases, strict=True):
        assert boxes.shape == (2, 4) and masks.shape == (2, 64, 64) and masks.dtype == bool
        for thing, (x0, y0, x1, y1), mask, phrase in zip(scene.objects, boxes, masks, phrases, strict=True):
            rows, columns = np.nonzero(mask)
            assert x0 * 64 - 1 <= columns.min() and columns.max() <= x1 * 64 + 1
            assert y0 * 64 - 1 <= rows.min() and rows.max() <= y1 * 64 + 1
            assert phrase in (f"a {thing.colour} {thing.shape}", f"an {thing.colour} {thing.shape}")


def test_questions_are_settled_by_the_words_alone() -> None:
    """Another layout of the same caption has the same answers."""
    for name in ("pairs", "objects-3-4", "counts"):
        prompts = SETS[name]
        for text, asked in zip(prompts.plain, prompts.questions, strict=True):
            assert 3 <= len(asked) <= 6
            other = Scene.parse(text)
            assert [answer(other, q.question) for q in asked] == [q.answer for q in asked]


def test_entities_say_nothing_but_stand_for_looks() -> None:
    looks = {entity.look for entity in ENTITIES.values()}
    assert len(looks) == len(ENTITIES) and len(INVENTED) >= 12
    for entity in ENTITIES.values():
        assert entity.name not in words("en") and entity.name == entity.name.lower()
        assert Scene.parse(entity.description).objects[0].facts == entity.thing().facts
        assert not held_out(entity.thing().shape, entity.thing().colour)
    assert explain("a tomato above an egg and a wug") == "a red circle above a white oval and a dotted cyan heart"


def test_knowledge_prompts_name_entities_and_come_with_facts() -> None:
    prompts = SETS["knowledge"]
    for text, scene, prompt in zip(prompts.texts, prompts.scenes, prompts.prompts, strict=True):
        assert all(entity.noun in text and entity.description not in text for entity in prompt.entities)
        assert Scene.parse(explain(text)).matches(scene)
    for prompt, facts, more in zip(prompts.prompts, prompts.facts(), prompts.facts(3), strict=True):
        assert sorted(facts) == sorted(entity.fact for entity in prompt.entities)
        assert set(facts) < set(more) and len(more) == len(facts) + 3
    assert all(e.invented for p in prompt_set("knowledge", 3, 1, kinds="invented").prompts for e in p.entities)


def test_bad_requests_are_one_clear_line() -> None:
    import random

    for arguments, what in (
        (("pair", 3), "unknown prompts 'pair'; use one of: pairs,"),
        (("pairs", 0), "ask for 1 or more"),
        (("pairs", 3, 0, "train"), "unknown split 'train' of prompts; use one of: test, validation"),
    ):
        with pytest.raises(ShowtellError, match=what):
            prompt_set(*arguments)
    with pytest.raises(ShowtellError, match="unknown entity 'cat'"):
        facts_for(["cat"], random.Random(0))
    with pytest.raises(ShowtellError, match="only"):
        facts_for(["egg"], random.Random(0), distractors=99)
