"""The style task: another thing is asked for than what a reference shows; style, content and leakage by hand."""

from __future__ import annotations

import pytest

from showtell.errors import ShowtellError
from showtell.measure.prompts import PromptSet
from showtell.measure.styling import StyleTask
from showtell.pictures import to_pil
from showtell.world import Scene, draw

TOLD = ("a red ring left of a blue star, in watercolour style", "a green square, in sepia style")


def task(*texts: str) -> StyleTask:
    return StyleTask(PromptSet.of("own", [Scene.parse(text) for text in texts or TOLD], 0))


def test_another_thing_is_asked_for() -> None:
    found = task()
    assert found.content == ["a red ring and a blue star", "a green square"]
    assert found.texts == ["a green square", "a red ring"]
    assert [thing.shape for thing in found.wanted] == ["square", "ring"] and len(found.references) == 2
    assert task("a red ring", "a blue ring left of a green ring", "a red star").texts[1] == "a red star"
    with pytest.raises(ShowtellError, match="too few shapes"):
        task("a red ring", "a blue ring")


@pytest.mark.parametrize(
    ("shown", "style", "leaked", "right"),
    [
        ("a green square, in watercolour style", 1, 0, 1),
        ("a green square", 0, 0, 0),
        ("a red square, in watercolour style", 1, 0, 0),
        ("a green square left of a blue star, in watercolour style", 1, 1, 0),
    ],
)
def test_metrics_by_hand(shown: str, style: int, leaked: int, right: int) -> None:
    found, images = task(), to_pil(draw([Scene.parse(shown), Scene.parse("a red ring, in sepia style")]))
    assert found.style(images).tolist() == [style, 1] and found.content_leaked(images).tolist() == [leaked, 0]
    assert found.style_without_content(images).tolist() == [right, 1]
