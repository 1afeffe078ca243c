"""The judge: scores by hand on known scenes, reading by rendering, and the packaged networks' real accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.data.degrade import KINDS, degrade
from showtell.data.targets import LETTERS, OBJECT_VALUES, SCENE_VALUES, targets
from showtell.errors import ShowtellError
from showtell.measure import reading
from showtell.measure.judge import compare, load_judge, scene_accuracy
from showtell.measure.reading import Draft, improve
from showtell.nets.scene_parser import OBJECT_HEADS
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


def certain(scene: Scene, doubt: float = 0.0) -> dict[str, np.ndarray]:
    """What a parser would say of a scene, with `doubt` spread over all other values."""
    truth, grid = targets([scene]), 16
    slots = 3 * grid * grid
    out = {"present": np.full(slots, 0.001), "place": np.zeros((slots, 2)), "depth": np.zeros(slots)}
    out |= {name: np.full((slots, size), doubt) for name, size in OBJECT_HEADS.items()}
    out |= {name: np.full(len(values), doubt) for name, values in SCENE_VALUES.items()}
    out["word"] = np.zeros((8, len(LETTERS)))
    for i, thing in enumerate(scene.objects):
        column, row = int(thing.x * grid), int(thing.y * grid)
        slot = (OBJECT_VALUES["size"].index(thing.size) * grid + row) * grid + column
        out["present"][slot], out["depth"][slot] = 0.9, thing.depth
        out["place"][slot] = thing.x, thing.y
        for name in OBJECT_HEADS:
            out[name][slot, truth[name][0, i]] = 1 - doubt
    for name in SCENE_VALUES:
        out[name][truth[name][0]] = 1 - doubt
    out["word"][range(8), truth["word"][0]] = 1.0
    return out


def test_a_certain_network_is_taken_at_its_word() -> None:
    for scene in sample(40, 1, word=True):
        assert scene.matches(Draft.read(certain(scene)).scene())


def test_rendering_repairs_what_the_network_got_wrong() -> None:
    """Second-best values, two pixels off, objects missed or imagined: the picture tells."""
    scene = Scene((at(RING, texture="striped"), at(STAR, size="large", x=0.7)), background="sky")
    out = certain(scene, doubt=0.05)
    wrong = Draft.read(out)
    wrong.things = [at(wrong.things[0], colour="green", x=0.22), at(wrong.things[1], shape="cross", size="medium")]
    wrong.rest = wrong.rest | {"background": "sand"}
    assert not scene.matches(wrong.scene())
    improve([wrong], draw(scene))
    assert scene.matches(wrong.scene())


def test_a_drawing_is_read_even_where_the_network_is_certain_of_something_else() -> None:
    """Facts that hide one another, a form that is somewhere else, an object missed and one behind another imagined."""
    scene = Scene((at(RING, colour="green", size="small", texture="striped"), at(STAR, shape="heart", state="halved")))
    shown = draw(scene)
    ring, heart = scene.objects
    behind = at(STAR, shape="circle", size="small", x=0.22, y=0.52, depth=3)
    for wrong in (
        (at(ring, colour="grey", texture="solid"), heart),
        (ring, at(heart, state="whole", size="small", x=0.74)),
        (at(heart, shape="square", colour="cyan"), at(ring, x=0.22)),
        (heart,),
    ):
        assert not scene.matches(Scene(wrong))
        draft = Draft.read(certain(Scene(wrong)))
        improve([draft], shown)
        assert scene.matches(draft.scene()), wrong
        assert np.array_equal(draw(draft.scene()), shown)
    large = Scene((at(RING, shape="square", size="large"),))
    draft = Draft.read(certain(Scene((*large.objects, behind))))
    improve([draft], draw(large))
    assert large.matches(draft.scene())


def test_what_the_network_held_impossible_has_to_explain_much_of_a_spoilt_picture() -> None:
    scenes = sample(24, 5, "validation", (1, 3), style="flat")
    spoilt = degrade(draw(scenes), np.random.default_rng(0), kinds=("noise", "blur"), strength=1.0)
    drafts = [Draft.read(certain(scene)) for scene in scenes]
    improve(drafts, spoilt)
    assert np.mean([a.matches(b.scene()) for a, b in zip(scenes, drafts, strict=True)]) > 0.95
    orange, yellow = (Scene((at(RING, colour=colour),)) for colour in ("orange", "yellow"))
    for share, colour in ((0.505, "orange"), (0.6, "yellow")):
        mixed = (share * draw(yellow) + (1 - share) * draw(orange)).round().astype(np.uint8)
        draft = Draft.read(certain(orange))
        improve([draft], mixed)
        assert draft.things[0].colour == colour


def test_places_are_found_to_a_fraction_of_a_pixel() -> None:
    scene = Scene((at(RING, x=0.2137), at(STAR, x=0.3012, y=0.5519, depth=1), at(STAR, x=0.7773)))
    draft = Draft.read(certain(scene))
    draft.things = [at(thing, x=thing.x + 0.02, y=thing.y - 0.015) for thing in draft.things]
    improve([draft], draw(scene))
    found = sorted((thing.x, thing.y) for thing in draft.things)
    assert np.allclose(found, sorted((thing.x, thing.y) for thing in scene.objects), atol=3e-4)


def test_nothing_is_drawn_twice_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []
    monkeypatch.setattr(reading, "draw", lambda scenes, size: drawn.extend(scenes) or draw(scenes, size))
    scene = Scene((at(RING, texture="striped"), at(STAR, x=0.7)), background="sky")
    draft = Draft.read(certain(scene, doubt=0.05))
    draft.things = [at(draft.things[0], x=0.22), draft.things[1]]
    reading.improve([draft], draw(scene))
    assert scene.matches(draft.scene()) and abs(draft.things[0].x - scene.objects[0].x) < 0.01
    within = [one for one in drawn if len(one.objects) == 2]  # objects more or less are tried by another measure too
    assert len(within) > 50 and len(set(within)) == len(within)


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
