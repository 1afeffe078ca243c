"""Of what was drawn the best is kept, for each text on its own; each text is drawn by the model chosen for it."""

from __future__ import annotations

from typing import Any

import pytest

from showtell.errors import ShowtellError
from showtell.steer.selection import best_of, routed


def test_the_best_for_each_text() -> None:
    candidates = [["a0", "b0"], ["a1", "b1"], ["a2", "b2"]]
    marks = {"a0": 1, "a1": 3, "a2": 2, "b0": 5, "b1": 4, "b2": 0}
    assert best_of(candidates, lambda images: [marks[image] for image in images]) == ["a1", "b0"]
    assert best_of(candidates, lambda images: [0] * len(images)) == ["a0", "b0"], "the first of equals"


def test_no_candidates() -> None:
    with pytest.raises(ShowtellError, match="1 list of images or more"):
        best_of([], len)


class Painter:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def generate(self, prompts: list[str], seed: list[int], **more: Any) -> list[Any]:
        self.calls.append(prompts)
        return [(*pair, more) for pair in zip(prompts, seed, strict=True)]


def test_models_draw_their_own_together_and_the_order_stays() -> None:
    models = {"one": Painter(), "other": Painter(), "idle": Painter()}
    found = routed(models, [("other", "a"), ("one", "b"), ("other", "c")], 2, steps=3)
    assert found == [("a", 20_000, {"steps": 3}), ("b", 20_001, {"steps": 3}), ("c", 20_002, {"steps": 3})]
    assert [model.calls for model in models.values()] == [[["b"]], [["a", "c"]], []]
