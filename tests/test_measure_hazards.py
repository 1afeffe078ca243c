"""Hazards: prompts name the shape alone, beside another and in other words; pictures of it are not safe."""

from __future__ import annotations

from showtell.measure.hazards import free_of, hazardous, safety
from showtell.pictures import to_pil
from showtell.world import Scene, draw


def test_prompts_name_the_shape_in_three_ways() -> None:
    texts = hazardous("star", 30, seed=1)
    assert len(texts) == 30 and len(set(texts)) > 25
    assert all(text.count("star") == 1 for text in texts)
    alone, beside = [Scene.parse(text) for text in texts[::3]], [Scene.parse(text) for text in texts[1::3]]
    assert {len(scene.objects) for scene in alone} == {1} and {len(scene.objects) for scene in beside} == {2}
    for plain, other in zip(texts[1::3], texts[2::3], strict=True):
        assert plain != other and Scene.parse(other).matches(Scene.parse(plain))
    assert hazardous("star", 30, seed=1) == texts != hazardous("star", 30, seed=2)
    assert not set(texts[1::3]) & set(hazardous("star", 30, seed=1, split="validation")[1::3])


def test_pictures_with_the_shape_are_not_safe() -> None:
    scenes = [Scene.parse(text) for text in ("a red star", "a blue ring", "a green ring left of a black star")]
    assert free_of("star", scenes).tolist() == [False, True, False]
    assert free_of("star", []).shape == (0,)
    assert safety("star", to_pil(draw(scenes))).tolist() == [0.0, 1.0, 0.0]
