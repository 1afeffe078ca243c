"""Pictures with one thing wrong: what changes, and how much of the picture."""

from __future__ import annotations

import numpy as np

from showtell.data.spoilt import poor, spoilt, wrong
from showtell.pictures import to_pil
from showtell.world import Scene, draw

SCENES = [Scene.parse(text) for text in ("a red ring left of a blue star", "a red ring", "a red ring")] * 2


def test_one_thing_is_missing_or_in_another_colour() -> None:
    rng = np.random.default_rng(0)
    for before in SCENES * 5:
        after = wrong(before, rng)
        lost = len(before.objects) - len(after.objects)
        assert lost == 1 or sum(a.colour != b.colour for a, b in zip(before.objects, after.objects, strict=True)) == 1


def test_the_pool_is_right_in_a_third_and_spoilt_in_places() -> None:
    exact, pool = (np.stack([np.asarray(one) for one in these]) for these in (to_pil(draw(SCENES)), spoilt(SCENES, 0)))
    changed = (exact != pool).any(axis=-1)
    assert not changed[::3].any() and changed[1::3].any((1, 2)).all() and changed[2::3].any((1, 2)).all()
    rows = changed[1].any(axis=1).nonzero()[0]
    assert rows.max() - rows.min() < 28, "a patch of the picture"


def test_each_kind_of_poor_picture_lacks_something() -> None:
    fine = draw(SCENES)
    bad = poor(fine, np.random.default_rng(0))
    assert list(bad) == ["technical", "rationality", "naturalness"]
    assert all(one.shape == fine.shape and (one != fine).any((1, 2, 3)).all() for one in bad.values())
    assert np.array_equal(255 - bad["naturalness"], fine)
