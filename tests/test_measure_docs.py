"""The page's lines run, and its table names every prompt set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from showtell.measure import scores
from showtell.measure.prompts import NAMES, PromptSet

PAGE = (Path(__file__).parent.parent / "docs" / "measures.md").read_text()


def test_the_example_runs() -> None:
    [block] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict = {}
    exec(block, found)
    assert np.array_equal(found["prompts"].objects(found["images"]) > 0, [True] * 4)


def test_every_set_and_every_score_is_explained() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)[: len(NAMES)] == list(NAMES)
    for name in re.findall(r"`(\w+)`", PAGE.split("| score |")[1].split("`binding` is conditional")[0]):
        assert hasattr(PromptSet, name) or hasattr(scores, name), name
