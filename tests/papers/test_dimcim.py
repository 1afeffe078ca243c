"""DIMCIM: scores by hand, planted defaults and gaps found by an oracle's answers, every kind of bridge and judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import Small, run_example
from hosts import bridge_of, hosts, keywords
from laboratory import Laboratory
from test_vqascore import bridge, pixels

from showtell.measure.vqa import QUESTION, vqa_score
from showtell.papers.evaluate import dimcim as module
from showtell.papers.evaluate.dimcim import Report, Row, asking, attribute_scores, dimcim

COLOURS = ["red", "blue", "green"]
JUDGES = ("llava", "qwen2_vl", "blip2-opt", "blip2-t5", "janus", "emu3", "chameleon")


def test_scores_by_hand() -> None:
    assert attribute_scores(np.array([[0.9, 0.5, 0.1]])).tolist() == [1.0, 0.0, -1.0]
    assert attribute_scores(np.array([[0.9, 0.1], [0.2, 0.8]])).tolist() == [0.0, 0.0]
    # Red first in three of four images, blue in one; green always last.
    values = np.array([[0.9, 0.5, 0.1]] * 3 + [[0.5, 0.9, 0.1]])
    assert attribute_scores(values).tolist() == [0.75, 0.25, -1.0]


def test_balanced_defaults_score_zero() -> None:
    values = np.random.default_rng(0).random((20_000, 5))
    assert np.abs(attribute_scores(values)).max() < 0.02


def test_report_by_hand() -> None:
    given = [("ring", "red", 0.8, 0.2), ("ring", "blue", -0.8, 1.0), ("cat", "red", 0.0, -0.4)]
    rows = [Row(concept, "colour", colour, default, asked) for concept, colour, default, asked in given]
    report = Report(rows)
    assert report.dim() == pytest.approx(1 - 1.6 / 3) and report.dim("cat") == 1.0
    assert report.cim() == pytest.approx(0.8 / 3) and report.cim("ring") == pytest.approx(0.6)
    assert report.never() == rows[2:] and report.only_by_default() == rows[:1] and report.only_when_asked() == rows[1:2]


class Painter:
    """A model whose images are their captions. By default a thing is red in so many cases; green cannot be had."""

    def __init__(self, skew: float, lacking: str = "") -> None:
        self.skew, self.lacking, self.asked = skew, lacking, list[str]()

    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        rng, made = np.random.default_rng(seed), []
        self.asked += prompts
        for prompt in prompts:
            named = [colour for colour in COLOURS if colour in prompt]
            colour = named[0] if named else "red" if rng.random() < self.skew else str(rng.choice(COLOURS))
            made.append("red" if colour == self.lacking else colour)
        return made

    @staticmethod
    def ask(images: list[str], texts: list[str]) -> np.ndarray:
        noise = np.random.default_rng(0).random((len(images), len(texts))) * 0.1
        return noise + np.array([[float(image in text) for text in texts] for image in images])


def test_planted_defaults_and_gaps_are_found() -> None:
    concepts = {"ring": {"colour": COLOURS}}
    reports = [dimcim(Painter(skew), Painter.ask, concepts, images=200) for skew in (0.0, 0.5, 1.0)]
    dims = [report.dim() for report in reports]
    assert dims[0] > 0.9 and dims[0] > dims[1] + 0.2 > dims[2] + 0.4
    # Always red: red beats both, and the other two draw with each other: S = 1, -0.5, -0.5.
    assert dims[2] == pytest.approx(1 - 2 / 3, abs=0.05)
    assert all(report.cim() == 1.0 and report.never() == [] for report in reports)
    gap = dimcim(Painter(0.0, "green"), Painter.ask, concepts, images=200)
    assert [row.attribute for row in gap.never()] == ["green"] and gap.cim() < 0.6


def test_prompts() -> None:
    painter = Painter(0.0)
    dimcim(painter, Painter.ask, {"ring": {"colour": ["red", "orange"]}}, ["{} on sand", "a photo of {}"], images=2)
    expected = []
    for said in ("a ring", "a red ring", "an orange ring"):
        expected += [f"{said} on sand"] * 2 + [f"a photo of {said}"] * 2
    assert painter.asked == expected


@pytest.mark.parametrize("name", hosts("dimcim", *JUDGES))
def test_judges_are_asked_about_every_attribute(name: str) -> None:
    texts = ["a red ring", "a blue ring"]
    table = asking(bridge(name))(pixels(3), texts)
    assert table.shape == (3, 2)
    expected = [[float(vqa_score(bridge(name), [image], text, QUESTION)) for text in texts] for image in pixels(3)]
    assert np.allclose(np.log(table), np.log(expected), atol=1e-3)


@pytest.mark.parametrize("name", hosts("dimcim", "sd", "sdxl", "pixart", "sd3", "flux"))
def test_any_generator_is_measured(name: str) -> None:
    def make(prompts: list[str], seed: int) -> Any:
        return bridge_of(name).generate(prompts, **keywords(name, output_type="pil", seed=seed, num_inference_steps=1))

    report = dimcim(make, asking(bridge("llava")), {"ring": {"colour": ["red", "blue"]}}, images=2)
    assert [row.attribute for row in report.rows] == ["red", "blue"] and 0 <= report.dim() <= 1 >= report.cim() >= -1
    assert report == dimcim(make, asking(bridge("llava")), {"ring": {"colour": ["red", "blue"]}}, images=2)


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"COLOURS": ("red", "purple"), "SHAPES": ("ring", "heart"), "IMAGES": 2, "SKEWS": (0.0, 1.0), "CLEAN": 0}
    for name, value in {**small, "MISSING": ((1, "ring", "purple"), (1, "heart", "red"))}.items():
        monkeypatch.setattr(module, name, value)
    lab = Laboratory(1, bases={"vlm": bridge("llava")})
    does, can, data, gaps = module.experiment(lab)  # type: ignore[arg-type]
    for one in (does, can, data):
        assert one.scores["dimcim"].shape == (2, 2) and np.abs(one.scores["permuted labels"]).max() <= 1 + 1e-9  # type: ignore[attr-defined]
    assert gaps.scores["dimcim"].shape == (2, 4)  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    bridges = {"blip2": bridge("blip2-t5"), "stable-diffusion": Small("sd")}
    report = run_example(module.EXAMPLE, monkeypatch, bridges)["report"]
    assert [row.attribute for row in report.rows] == ["brown", "black", "white"]
