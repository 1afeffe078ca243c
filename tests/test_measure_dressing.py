"""Scenes redressed: structure, appearance and what is wanted of them; things by colour and shape."""

from __future__ import annotations

from showtell.measure.dressing import redressed, things_of
from showtell.world import Scene


def test_redressed() -> None:
    scene = Scene.parse("a red ring left of a blue star")
    [grey], [other], [wanted] = redressed([scene])
    assert {thing.colour for thing in grey.objects} == {"grey"}
    for a, g, o, w in zip(scene.objects, grey.objects, other.objects, wanted.objects, strict=True):
        assert (g.x, g.y, g.shape) == (a.x, a.y, a.shape) == (w.x, w.y, w.shape) and (o.x, o.y) == (1 - a.x, 1 - a.y)
        assert (o.colour, o.texture) == (w.colour, w.texture) and w.colour != "grey"
    assert redressed([scene]) == redressed([scene])


def test_things_are_told_by_colour_and_shape() -> None:
    assert things_of(Scene.parse("an orange ring left of a striped blue star")) == "an orange ring and a blue star"
