"""The second judge as a verifier: yes-no questions about what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from showtell.measure import verifying
from showtell.measure.experiment import Comparison
from showtell.pictures import to_pil
from showtell.steer.boxes import cut, grown
from showtell.world import Scene, draw
from showtell.world.draw import boxes


def test_yes_and_no_by_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    scenes = [Scene.parse("a red ring left of a blue star"), Scene.parse("a green square")]
    monkeypatch.setattr(verifying, "read", lambda images, judge: asked.append(judge) or scenes)
    questions = [["is there a red ring?", "is the ring right of the star?"], ["is the ring left of the star?"]]
    assert verifying.says_yes(["one", "other"], questions) == [[True, False], [False]]
    assert asked == ["second"]


def test_a_judge_knows_good_things_by_their_crops() -> None:
    """What is drawn exactly is good, and nothing is good in another thing's box."""
    scene = Scene.parse("a red ring left of a blue star")
    names, [image] = ["a red ring", "a blue star"], to_pil(draw([scene]))
    pieces = [cut(image, grown(tuple(map(float, box)), 20 / 512)) for box in boxes(scene)]  # type: ignore[arg-type]
    assert verifying.shown(pieces, names, "first") == [1, 1] and verifying.shown(pieces, names[::-1], "first") == [0, 0]


def test_a_metric_for_the_first_judge() -> None:
    def complete(images: Any, judge: str = "first") -> np.ndarray:
        return np.ones(len(images)) if judge == "first" else np.zeros(len(images))

    alone = verifying.first_judge_only(complete)
    assert alone([1, 2]).tolist() == [1, 1] and alone.__name__ == "complete"
    assert Comparison({}, complete, "", None, "").judged_twice and not Comparison({}, alone, "", None, "").judged_twice
