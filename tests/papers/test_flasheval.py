"""FlashEval: the search finds planted prompts, and every kind of bridge gives a score matrix."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
from examples import Small, run_example
from hosts import bridge_of, hosts, keywords
from laboratory import Laboratory

from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.measure.statistics import kendall
from showtell.papers.evaluate import flasheval as module
from showtell.papers.evaluate.flasheval import best_alone, distinct_sets, flasheval, score_matrix
from test_bridges_clip import make as make_clip


def planted(seed: int, models: int = 24, prompts: int = 120, good: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Scores in which only the first prompts tell models apart; the others are noise, or tell them apart wrongly."""
    rng = np.random.default_rng(seed)
    skill = rng.normal(size=models)
    weight = np.zeros(prompts)
    weight[:good], weight[good : 2 * good] = 1.0, -0.5
    noise = rng.normal(size=(models, prompts)) * np.where(np.arange(prompts) < good, 0.3, 3.0)
    return skill[:, None] * weight + noise, skill


SMALL: dict[str, Any] = {"draws": 4000, "best": 150, "pools": (90, 60, 40, 25, 15)}


def test_the_search_finds_the_prompts_that_tell_models_apart() -> None:
    """The reference is the planted skill, as the mean of so few prompts is mostly noise."""
    scores, skill = planted(0)
    chosen = flasheval(scores[:12], 5, reference=skill[:12], **SMALL)
    assert chosen.shape == (5,) and len(set(chosen)) == 5 and (np.diff(chosen) > 0).all()
    held = kendall(scores[12:, chosen].mean(1), skill[12:])
    sets = distinct_sets(np.random.default_rng(0), np.arange(120), 500, 5)
    drawn = kendall(scores[12:].T[sets].mean(1), skill[12:])
    assert held > np.quantile(drawn, 0.95)
    mixed = np.random.default_rng(1).permuted(scores[:12], axis=0)
    lost = flasheval(mixed, 5, reference=skill[:12], **SMALL)
    assert kendall(scores[12:, lost].mean(1), skill[12:]) < held


def test_rounds_do_better_than_one() -> None:
    """On the models of the search, shrinking the pool finds sets that as many draws from all prompts do not."""
    better = 0
    for seed in range(5):
        scores, skill = planted(seed, prompts=300)
        goal = skill[:12]
        many = flasheval(scores[:12], 5, reference=goal, seed=seed, draws=500, best=25, pools=(200, 100, 50, 25))
        once = flasheval(scores[:12], 5, reference=goal, seed=seed, draws=2500, best=25, pools=())
        found, flat = (kendall(scores[:12, chosen].mean(1), goal) for chosen in (many, once))
        better += int(found >= flat)
    assert better >= 4


def test_only_the_pool_is_drawn_from_and_nothing_twice() -> None:
    for size in (40, 700):
        pool = np.arange(size) * 3
        sets = distinct_sets(np.random.default_rng(0), pool, 300, 20)
        assert set(sets.ravel()) <= set(pool) and all(len(set(row)) == 20 for row in sets)


def test_best_alone_by_hand() -> None:
    # The means are 5/3, 7/3 and 8/3. Prompt 0 ranks as they do, 2 has one pair wrong, 1 has all of them wrong.
    scores = np.array([[1.0, 3.0, 1.0], [2.0, 2.0, 3.0], [3.5, 1.0, 2.5]])
    assert best_alone(scores, 3).tolist() == [0, 2, 1] and best_alone(scores, 1).tolist() == [0]


def test_bad_calls() -> None:
    for size, models in ((5, 6), (0, 6), (2, 2)):
        with pytest.raises(ShowtellError, match="give fewer"):
            flasheval(np.zeros((models, 5)), size)


@pytest.mark.parametrize("name", hosts("flasheval", "sd", "sdxl", "pixart", "sd3", "flux"))
def test_any_generator_fills_the_matrix(name: str) -> None:
    call = keywords(name, output_type="np")
    models = [
        lambda texts, steps=steps: bridge_of(name).generate(texts, **{**call, "num_inference_steps": steps})
        for steps in (1, 2, 3)
    ]
    prompts = ["a red ring", "a blue star", "a cat"]
    scores = score_matrix(models, prompts, lambda images, texts: [float(np.mean(image)) for image in images])
    assert scores.shape == (3, 3) and len(np.unique(scores)) == 9
    assert scores[1, 2] == pytest.approx(float(np.mean(models[1](prompts)[2])))
    assert len(flasheval(scores, 2, draws=50, best=5)) == 2


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", (1, 2))
    monkeypatch.setattr(module, "SCALES", (1.0, 3.0))
    monkeypatch.setattr(module, "SPLITS", 3)
    lab = Laboratory(bases={"clip": ClipBridge(*make_clip("clip"))})
    lab.trained = lambda key, make, seed=0, **sizes: make()  # type: ignore[method-assign, assignment]
    found = module.experiment(lab)  # type: ignore[arg-type]
    assert found.scores["flasheval"].shape == (2, 3) and (np.abs(found.scores["random"]) <= 1).all()  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bridges = {"clip-vit": ClipBridge(*make_clip("clip")), "stable-diffusion": Small("sd")}
    prompts = run_example(module.EXAMPLE, monkeypatch, bridges)["prompts"]
    printed = ast.literal_eval(capsys.readouterr().out)
    assert len(printed) == 2 and set(printed) < set(prompts)
