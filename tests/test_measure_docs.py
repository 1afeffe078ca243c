"""The page's lines run, and its table names every prompt set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from showtell.measure import prompts, scores
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


def test_the_tables_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scores.reading_figures(4, 3)
    assert [(row["judge"], row["reading"]) for row in rows] == [
        (judge, how) for judge in ("first", "second") for how in ("with rendering", "network alone")
    ]
    assert all(0.5 <= row["objects"] <= 1 and row["ms per image"] >= 0 for row in rows)
    monkeypatch.setattr(prompts, "NAMES", ("pairs", "counts", "edits"))
    table = prompts.ceilings(2, 0, fast=True)
    assert table["pairs"]["first: whole"] == table["pairs"]["second: relations"] == 1
    assert "first: relations" not in table["counts"] and set(table["edits"]) == {
        f"{judge}: {metric}" for judge in ("first", "second") for metric in ("success", "preserved")
    }
