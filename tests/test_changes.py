"""What makes one scene of another."""

from __future__ import annotations

import random
from dataclasses import replace

from showtell.world import Scene, SceneObject, sample
from showtell.world.changes import Change, changed, changes
from showtell.world.edits import KINDS, edits

RING = SceneObject("ring", "red", size="large", x=0.25, y=0.25, depth=0)
STAR = SceneObject("star", "blue", x=0.75, y=0.75, depth=1)
OVAL = SceneObject("oval", "pink", x=0.5, y=0.2, depth=2)


def test_changes_by_hand() -> None:
    before = Scene((RING, STAR))
    green = replace(RING, colour="green")
    assert changes(before, before) == []
    assert changes(before, Scene((green, STAR))) == [Change(0, green)]
    assert changes(before, Scene((STAR,))) == [Change(0)]
    assert changes(before, Scene((RING, OVAL, STAR), "sky")) == [
        Change(look="background", value="sky"),
        Change(2, OVAL),
    ]
    nearer = Scene((replace(STAR, depth=0, x=0.3), replace(RING, depth=1)))  # the ring only gave way
    assert changes(Scene((STAR, RING)), nearer) == [Change(0, replace(STAR, depth=0, x=0.3))]


def test_changes_are_carried_out() -> None:
    before = Scene((RING, STAR, OVAL))
    assert changed(before, [Change(1)]).objects == (RING, replace(OVAL, depth=1))
    front = changed(before, [Change(2, replace(OVAL, depth=0))])
    assert [(o.shape, o.depth) for o in front.objects] == [("ring", 1), ("star", 2), ("oval", 0)]
    assert changed(Scene((RING,)), [Change(0)]).objects == (RING,)  # a scene has at least one object
    many = changed(before, [Change(i, replace(OVAL, depth=0)) for i in range(3, 9)])
    assert len(many.objects) == 5 and many.objects[:3] == tuple(replace(o, depth=o.depth + 2) for o in before.objects)


def test_every_edit_is_the_sum_of_its_changes() -> None:
    rng, kinds = random.Random(0), set()
    for scene in sample(300, 3, "validation", (1, 4)):
        for edit in edits(scene.canonical(), rng):
            kinds.add(edit.kind)
            made = changed(edit.before, changes(edit.before, edit.after))
            assert edit.after.matches(made) and made.canonical().matches(edit.after), edit.instruction
    assert kinds == set(KINDS)
