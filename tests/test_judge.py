"""The judge: scores by hand on known scenes, reading by rendering, and the packaged networks' real accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from parsing import certain
from showtell.data.degrade import KINDS, degrade
from showtell.data.drafts import Draft
from showtell.data.targets import targets
from showtell.errors import ShowtellError
from showtell.measure.judge import compare, load_judge, scene_accuracy
from showtell.world import Scene, SceneObject, draw, sample

RING = SceneObject("ring", "red", x=0.2, y=0.5)
STAR = SceneObject("star", "blue", x=0.8, y=0.5)


def at(thing: SceneObject, **facts) -> SceneObject:
    from dataclasses import replace

    return replace(thing, **facts)


def test_scores_of_a_right_scene_are_all_one() -> None:
    assert compare(Scene((RING, STAR)), Scene((at(STAR, x=0.7), at(RING, x=0.3)))) == (1, 1, 1, 1, 1)


def test_scores_of_a_wrong_colour() -> None:
    objects, attributes, relations, counts, whole = compare(Scene((RING, STAR)), Scene((RING, at(STAR, colour="pink"))))
    assert (objects, relations, counts, whole) == (0.5, 1.0, 0.5, 0.0)
    assert attributes == pytest.approx(1 - 1 / 16)  # 2 x 6 facts of objects, 4 of the scene


def test_scores_of_a_missing_and_of_an_extra_object() -> None:
    objects, attributes, relations, counts, whole = compare(Scene((RING, STAR)), Scene((RING,)))
    assert (objects, relations, counts, whole) == (0.5, 0.0, 0.5, 0.0)
    assert attributes == pytest.approx(10 / 16)
    extra = compare(Scene((RING,)), Scene((RING, STAR)))
    assert extra[0] == 1.0 and np.isnan(extra[2]) and extra[4] == 0.0


def test_scores_of_swapped_objects_and_of_a_wrong_count() -> None:
    swapped = compare(Scene((RING, STAR)), Scene((at(RING, x=0.8), at(STAR, x=0.2))))
    assert swapped[:4] == (1.0, 1.0, 0.0, 1.0) and swapped[4] == 0.0
    three = compare(Scene((RING, at(RING, x=0.5))), Scene((RING, at(RING, x=0.5), at(RING, x=0.8))))
    assert three[0] == 1.0 and three[3] == 0.0 and three[4] == 0.0


def test_a_certain_network_is_taken_at_its_word() -> None:
    for scene in sample(40, 1, word=True):
        assert scene.matches(Draft.read(certain(scene)).scene())


def test_degraded_pictures_differ_by_their_strength_and_seed() -> None:
    images = draw(sample(8, 2))
    for kind in KINDS:
        weak, strong = (degrade(images, np.random.default_rng(0), kinds=(kind,), strength=s) for s in (0.3, 1.0))
        error = [np.abs(x.astype(int) - images).mean() for x in (weak, strong)]
        assert 0 < error[0] < error[1] < 40, kind
        assert np.array_equal(strong, degrade(images, np.random.default_rng(0), kinds=(kind,)))
    assert np.array_equal(degrade(images, np.random.default_rng(0), share=0.0), images)


def test_targets_of_a_scene_by_hand() -> None:
    near, far = at(RING, x=0.5, depth=0), at(STAR, x=0.55, y=0.5, depth=1)
    truth = targets([Scene((near, far), word="HI", style="night")])
    assert truth["present"].tolist() == [[True, True, False, False, False]]
    assert truth["overlap"][0, 0, 1] and truth["overlap"].sum() == 2
    assert truth["word"][0, :3].tolist() == [8, 9, 0] and truth["style"].tolist() == [5]


# --- the packaged judges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("judge", 0.85), ("judge2", 0.4)])
def test_packaged_judges_read_clean_scenes(name: str, least: float) -> None:
    scenes = sample(40, 77, "test", (1, 4))
    assert scene_accuracy(draw(scenes), scenes, judge=name).whole.mean() >= least


def test_packaged_judge_tells_right_from_wrong() -> None:
    scenes = sample(24, 78, "test", 2)
    right = scene_accuracy(draw(scenes), scenes)
    wrong = scene_accuracy(draw(scenes[1:] + scenes[:1]), scenes)
    assert right.to_dict()["objects"] > 0.9 and wrong.to_dict()["objects"] < 0.3 and wrong.whole.mean() == 0


def test_confidence_is_a_probability_and_higher_for_clean_pictures() -> None:
    images = draw(sample(24, 79, "test", (1, 3)))
    judge = load_judge("judge2")
    clean = [r.confidence for r in judge.read(images)]
    noisy = [r.confidence for r in judge.read(degrade(images, np.random.default_rng(0), strength=1.0))]
    assert all(0 <= c <= 1 for c in clean) and np.mean(clean) > np.mean(noisy)


def test_bad_requests() -> None:
    with pytest.raises(ShowtellError, match="one scene per image"):
        scene_accuracy(draw(sample(2, 0)), sample(1, 0))
    with pytest.raises(ShowtellError, match="unknown judge"):
        load_judge("nobody")
