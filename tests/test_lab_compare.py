"""`showtell compare` on a fake bridge whose methods have known scores and costs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fake_paper import FakeWorld
from showtell.cli import main
from showtell.errors import ShowtellError, UnsupportedError
from showtell.reproduce import compare as side_by_side

TECHNIQUES = """
from showtell.bridges.base import Technique
class Method(Technique):
    brighter, times, floats = {values}
    def __init__(self{parameters}): {body}
"""


class Bridge:
    """Pictures as bright as the techniques say, with so many calls of a network and so much memory."""

    name = "fake"

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.boxes: list[Any] = []

    def generate(self, prompts: list[str], using: Any = (), seed: int = 0) -> list[Image.Image]:
        method = using[0] if using else SimpleNamespace(brighter=0.0, times=1, floats=1000)
        if method.brighter < -1:
            raise UnsupportedError("fake cannot do that")
        self.boxes.append(getattr(method, "boxes", None))
        held = torch.zeros(method.floats)
        for _ in range(method.times):
            self.model(torch.zeros(2 * len(prompts), 2))  # guidance doubles the rows
        del held
        noise = np.random.default_rng(seed).normal(0.4, 0.1, len(prompts))
        values = np.clip(noise + method.brighter, 0, 1) * 255
        return [Image.new("RGB", (8, 8), (int(v),) * 3) for v in values]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    fake = FakeWorld(tmp_path, monkeypatch)

    def paper(slug, values, parameters="", body="pass"):
        return fake.paper(TECHNIQUES.format(values=values, parameters=parameters, body=body), slug)

    papers = [
        paper("slower", (0.1, 3, 1000)),
        paper("better", (0.3, 2, 251_000)),
        paper("boxed", (0.2, 1, 1000), ", boxes: list", "self.boxes = boxes"),
        paper("impossible", (-2, 1, 1000)),
        paper("needy", (0.0, 1, 1000), ", teacher", "pass"),
        fake.paper("X = 1\n", "no_technique"),
    ]
    return fake.shelf(papers, Bridge(), metric="whole")


def test_methods_are_ranked_with_their_gains_and_costs(shelf):
    found = side_by_side.compare("compose", prompts=20, seeds=2)
    assert [entry.name for entry in found.entries] == ["plain", "better", "boxed", "slower"]
    plain, better, boxed, slower = found.entries
    assert better.gain.mean == pytest.approx(0.3, abs=0.01) and better.gain.low > 0.28  # paired: the noise is shared
    assert plain.gain.mean == 0 and plain.time == 1 and plain.memory == 0
    assert [entry.nfe for entry in (plain, better, boxed, slower)] == [2, 4, 2, 6]
    assert better.memory == 250_000 * 4
    assert boxed.memory == 0


def test_what_cannot_be_compared_says_why(shelf):
    left_out = side_by_side.compare("compose", prompts=4, seeds=1).left_out
    assert set(left_out) == {"impossible", "needy", "no_technique"}
    assert left_out["impossible"] == "fake cannot do that"
    assert "needs teacher" in left_out["needy"]


def test_boxes_are_those_of_the_prompts(shelf):
    side_by_side.compare("compose", prompts=6, seeds=1)
    given = [boxes for boxes in shelf.boxes if boxes is not None]
    assert {len(boxes) for boxes in given} == {1, 4, 6}  # warming up, measuring, scoring
    assert given[0] == [[(0.0, 0.0, 0.5, 1.0)]]


def test_unknown_metrics_and_bases_are_refused(shelf):
    with pytest.raises(ShowtellError, match="no metric 'beauty'"):
        side_by_side.compare("compose", metric="beauty")
    with pytest.raises(ShowtellError, match="showtell train nowhere"):
        side_by_side.compare("compose", base="nowhere")


def test_the_command_prints_a_table_json_and_a_plot(shelf, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["compare", "--shelf", "compose", "--prompts", "4", "--seeds", "1", *map(str, arguments)])
        return (stop.value.code or 0, *capsys.readouterr())

    code, out, err = run("-o", tmp_path / "plot.png")
    assert code == 0 and "better" in out and "against plain" in out and "impossible: fake cannot do that" in err
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500
    record = json.loads(run("--json")[1])
    assert [entry["name"] for entry in record["entries"]][:2] == ["plain", "better"]
    assert record["entries"][1]["score"]["low"] < record["entries"][1]["score"]["mean"]
