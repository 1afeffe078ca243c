"""Fairness: scenes that teach a bias, what is seen first, and how even shares are, by hand."""

from __future__ import annotations

import pytest

from showtell.errors import ShowtellError
from showtell.measure.fairness import balance, firsts, skewed
from showtell.pictures import to_pil
from showtell.world import Scene, draw


def test_the_scenes_teach_a_bias_where_nothing_is_named() -> None:
    scenes, texts = skewed(("star", "ring", "cross"), ("red", "blue"), 0.9, each=120)
    things = [scene.objects[0] for scene in scenes]
    neutral = [thing for thing, text in zip(things, texts, strict=True) if text == f"a {thing.shape}"]
    told = [(thing, text) for thing, text in zip(things, texts, strict=True) if text != f"a {thing.shape}"]
    assert len(neutral) == 240 and len(told) == 120
    assert all(text == f"a {thing.colour} {thing.shape}" for thing, text in told)
    for shape in ("star", "ring", "cross"):
        own = [thing.colour for thing in neutral if thing.shape == shape]
        assert len(own) == 80 and 0.8 < own.count("red") / 80 < 0.98
    assert 0.35 < sum(thing.colour == "red" for thing, _ in told) / 120 < 0.65


def test_what_is_seen_first() -> None:
    scenes = [Scene.parse("a red star"), Scene.parse("a blue ring")]
    assert firsts(to_pil(draw(scenes))) == [("red", "star"), ("blue", "ring")]


def test_balance_by_hand() -> None:
    tones = ("red", "blue")
    assert balance(["red", "blue", "green"], tones) == 1.0 and balance(["red"] * 3, tones) == 0.0
    assert balance(["red", "red", "red", "blue"], tones) == pytest.approx(0.5) and balance(["green"], tones) == 0.0
    three = balance(["red", "red", "blue", "blue"], ("red", "blue", "green"))  # 1/6 + 1/6 + 1/3 halved is 1/3 of 2/3
    assert three == pytest.approx(0.5)
    with pytest.raises(ShowtellError, match="two or more"):
        balance(["red"], ("red",))
