"""Scenes as symbols: facts, relations, matching, JSON; sampling in splits that never meet."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from showtell.world import Motion, Scene, SceneError, SceneObject, holds, sample
from showtell.world.sampling import SPLITS, held_out, split_of
from showtell.world.scene import COLOURS, RELATIONS, SHAPES


def thing(x: float, y: float, shape: str = "circle", colour: str = "red", **more) -> SceneObject:
    return SceneObject(shape, colour, x=x, y=y, **more)


RING, STAR, HEART = thing(0.2, 0.5, "ring"), thing(0.8, 0.5, "star", "blue"), thing(0.5, 0.9, "heart", "green")


def kinds(*objects: SceneObject) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(r.kind, r.subject, r.objects) for r in Scene(objects).relations]


def test_relations_follow_from_geometry() -> None:
    assert kinds(RING, STAR) == [("left of", 0, (1,))]
    assert kinds(STAR, RING) == [("right of", 0, (1,))]
    assert kinds(thing(0.5, 0.2), thing(0.5, 0.8, "star")) == [("above", 0, (1,))]
    assert kinds(thing(0.2, 0.2), thing(0.8, 0.8, "star")) == []  # a diagonal is no clear relation
    assert kinds(thing(0.5, 0.5, "heart"), RING, STAR) == [("between", 0, (1, 2))]
    near, far = thing(0.45, 0.5, depth=0), thing(0.6, 0.5, "star", depth=1)
    assert kinds(near, far) == [("in front of", 0, (1,))] and kinds(far, near) == [("behind", 0, (1,))]
    inner, outer = thing(0.5, 0.5, size="small"), thing(0.51, 0.5, "frame", size="large")
    assert kinds(inner, outer) == [("inside", 0, (1,))]


def test_groups_count_equal_neighbours() -> None:
    scene = Scene((thing(0.2, 0.2), thing(0.2, 0.8), STAR))
    assert [len(group) for group in scene.groups] == [2, 1]
    assert [(r.kind, r.subject, r.objects) for r in scene.relations] == [("left of", 0, (1,))]


def test_what_is_stated_holds_and_its_inverse_does_not() -> None:
    for scene in sample(300, 7):
        for r in scene.relations:
            groups = [scene.groups[i] for i in (r.subject, *r.objects)]
            assert holds(r.kind, *groups)
            if r.kind in ("left of", "above", "in front of", "inside"):
                assert not holds(r.kind, *reversed(groups))


def test_matching_ignores_positions_but_not_facts() -> None:
    scene = Scene((RING, STAR))
    assert scene.matches(Scene((thing(0.9, 0.4, "star", "blue"), thing(0.3, 0.6, "ring"))))
    assert not scene.matches(Scene((thing(0.2, 0.5, "star", "blue"), thing(0.8, 0.5, "ring"))))  # swapped
    assert not scene.matches(Scene((replace(RING, colour="pink"), STAR)))
    assert not scene.matches(Scene((RING, STAR, HEART)))
    assert not scene.matches(Scene((RING,)))
    assert not scene.matches(Scene((RING, STAR), style="night"))
    assert not scene.matches(Scene((RING, STAR), word="HI"))


def test_matching_finds_the_right_partner_among_equals() -> None:
    """Two red circles are listed apart; only one of them is left of the star."""
    one = Scene((thing(0.1, 0.5), STAR, thing(0.5, 0.1)))
    other = Scene((thing(0.5, 0.1), thing(0.1, 0.5), STAR))
    assert one.matches(other)


def test_canonical_order_is_left_to_right_and_means_the_same() -> None:
    for scene in sample(200, 5):
        ordered = scene.canonical()
        assert Counter(ordered.objects) == Counter(scene.objects) and scene.matches(ordered)
        first = [min(o.x for o in group) for group in ordered.groups]
        assert first == sorted(first)


def test_json_round_trip() -> None:
    for scene in sample(100, 3, motion=True, word=True, camera=["pan left", "zoom in"]):
        assert Scene.from_json(scene.to_json()) == scene
        assert Scene.from_json(json.loads(scene.to_json())) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"objects": [{"shape": "blob", "colour": "red"}]}',
        '{"objects": [{"shape": "ring"}]}',
        '{"objects": 3}',
        '{"objects": [], "mood": 1}',
    ],
)
def test_bad_json_is_a_scene_error(text: str) -> None:
    with pytest.raises(SceneError) as caught:
        Scene.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [
    lambda: thing(0.5, 0.5, "blob"), lambda: thing(1.5, 0.5), lambda: thing(0.5, 0.5, rotation=90),
    lambda: thing(0.5, 0.5, depth=-1), lambda: Scene(()), lambda: Scene((RING,) * 6), lambda: Scene((RING,), word="h!"),
    lambda: Scene((RING,), background="moon"), lambda: Motion("dance"), lambda: Motion("translate", "sideways"),
])  # fmt: skip
def test_impossible_scenes_are_refused(make) -> None:
    with pytest.raises(SceneError):
        make()


def test_scenes_are_immutable() -> None:
    with pytest.raises(AttributeError):
        Scene((RING,)).background = "black"  # type: ignore[misc]


# --- sampling --------------------------------------------------------------------------------------------------------


def facts(scene: Scene) -> tuple:
    return (tuple(sorted(map(str, (o.facts for o in scene.objects)))), scene.background, scene.style, scene.light)


def test_sampling_is_seeded_and_longer_lists_extend_shorter_ones() -> None:
    assert sample(20, 4) == sample(30, 4)[:20] != sample(20, 5)


def test_splits_never_share_facts() -> None:
    seen: dict[tuple, str] = {}
    for split in SPLITS:
        for scene in sample(600 if split == "train" else 200, 1, split, objects=(1, 2)):
            assert seen.setdefault(facts(scene), split) == split == split_of(scene)


def test_unseen_pairs_occur_in_their_split_only() -> None:
    pairs = {(shape, colour) for shape in SHAPES for colour in COLOURS if held_out(shape, colour)}
    assert 10 <= len(pairs) <= 25 and len({s for s, _ in pairs}) > 8 and len({c for _, c in pairs}) > 8
    for split in ("train", "validation", "test"):
        assert not any(held_out(o.shape, o.colour) for s in sample(300, 2, split) for o in s.objects)
    assert all(any(held_out(o.shape, o.colour) for o in s.objects) for s in sample(50, 2, "unseen"))


def test_constraints_are_kept() -> None:
    scenes = sample(
        60, 0, "test", 2, shape=["ring", "star"], colour="red", size="small", background="sky", style="night"
    )
    for scene in scenes:
        assert len(scene.objects) == 2 and scene.background == "sky" and scene.style == "night"
        assert {(o.colour, o.size) for o in scene.objects} == {("red", "small")}
        assert {o.shape for o in scene.objects} <= {"ring", "star"}
    assert all(len(s.groups) == 1 and len(s.objects) == 4 for s in sample(20, 0, count=4))
    for scene in sample(40, 0, objects=3, distinct=("colour", "shape")):
        assert len({o.colour for o in scene.objects}) == len({o.shape for o in scene.objects}) == 3
    assert all(
        len({o.shape for o in s.objects}) == 1 for s in sample(40, 0, objects=2, same="shape", distinct="colour")
    )
    assert all(s.word == "HI" for s in sample(5, word="hi"))
    assert all(o.motion for s in sample(20, motion="rotate") for o in s.objects)


@pytest.mark.parametrize("kind", RELATIONS)
def test_every_relation_can_be_asked_for(kind: str) -> None:
    assert all(scene.relations[0].kind == kind for scene in sample(15, 3, "validation", relation=kind))


def test_objects_stay_on_the_canvas_and_apart() -> None:
    for scene in sample(300, 9):
        overlapping = {r.kind for r in scene.relations} & {"in front of", "behind", "inside"}
        for i, a in enumerate(scene.objects):
            assert a.radius <= a.x <= 1 - a.radius and a.radius <= a.y <= 1 - a.radius
            for b in scene.objects[:i]:
                apart = ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5
                assert overlapping or apart > a.radius + b.radius


def test_skew_correlates_what_it_names_and_nothing_else() -> None:
    def share(skew) -> float:
        things = [o for s in sample(500, 0, objects=1, background="dusk", skew=skew) for o in s.objects]
        pairs = Counter((o.shape, o.colour) for o in things)
        top = {shape: max((n, c) for (s, c), n in pairs.items() if s == shape)[0] for shape, _ in pairs}
        return sum(top.values()) / len(things)

    assert share(None) < 0.4 < 0.75 < share({"colour": ("shape", 0.9)})


@pytest.mark.parametrize("bad", [
    {"split": "holdout"}, {"objects": 9}, {"objects": (3, 2)}, {"colour": "beige"}, {"mood": "happy"}, {"shape": []},
    {"relation": "near"}, {"objects": 1, "relation": "left of"}, {"skew": {"colour": ("shape", 2.0)}}, {"count": 7},
    {"rotation": 90, "shape": "circle"},
])  # fmt: skip
def test_impossible_requests_are_refused(bad: dict) -> None:
    with pytest.raises(SceneError) as caught:
        sample(3, **bad)
    assert "\n" not in str(caught.value)
