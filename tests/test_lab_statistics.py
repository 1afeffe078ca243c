"""Paired intervals, expectations and verdicts: cases worked out by hand, coverage, and what a verdict turns on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from showtell.errors import ShowtellError
from showtell.measure.statistics import (
    FAILS,
    HOLDS,
    OPEN,
    Clause,
    Interval,
    interval,
    kendall,
    parse,
    spearman,
    verdict,
    worst,
)

ARMS = ["method", "plain", "step size 0", "3 words", "a + b"]


def arm(mean, seeds=3, items=64, spread=0.3, seed=0):
    return mean + spread * np.random.default_rng(seed).standard_normal((seeds, items))


# --- intervals


def test_the_mean_is_the_mean_of_the_cells_and_the_interval_that_of_a_normal_mean():
    cells = np.random.default_rng(0).normal(0.2, 1.0, (1, 400))
    found = interval(cells)
    half = 1.96 * cells.std(ddof=1) / 20
    assert found.mean == pytest.approx(cells.mean())
    assert found.low == pytest.approx(cells.mean() - half, abs=0.01)
    assert found.high == pytest.approx(cells.mean() + half, abs=0.01)


def test_items_and_not_cells_are_drawn():
    """Three copies of the same item say no more than one."""
    cells = np.random.default_rng(0).normal(0, 1, (1, 50))
    once, thrice = interval(cells), interval(np.repeat(cells, 3, axis=0))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low)


def test_what_seeds_have_in_common_widens_the_interval():
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 50))
    shifted = noise + np.array([[-0.5], [0.0], [0.5]])
    half = 4.30 * 0.5 / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert interval(shifted, trained=True).high - interval(shifted).mean == pytest.approx(half, rel=0.1)
    assert interval(shifted) == interval(shifted, trained=True)  # too much to be chance, declared or not
    assert interval(noise).high - interval(noise).low < 0.1


def test_what_seeds_may_have_in_common_by_chance_counts_only_where_they_share_a_training():
    rng = np.random.default_rng(0)
    cells = rng.normal(0, 0.5, (3, 60))
    cells += np.array([[-0.1], [0.0], [0.1]]) - cells.mean(axis=1, keepdims=True)
    plain, trained = interval(cells), interval(cells, trained=True)
    assert trained.high - trained.low > 1.3 * (plain.high - plain.low)


def test_one_item_leaves_the_seeds_and_one_cell_leaves_nothing():
    assert interval([[0.1], [0.2], [0.3]]).high == pytest.approx(0.2 + 4.30 * 0.1 / math.sqrt(3), rel=0.1)
    assert interval([[0.4]]) == Interval(0.4, -math.inf, math.inf)


def test_cells_that_are_not_numbers_are_left_out():
    cells = np.random.default_rng(0).normal(0, 1, (3, 30))
    holed = np.concatenate([cells, np.full((3, 5), np.nan)], axis=1)
    assert interval(holed) == interval(cells)
    cells[0, 0] = np.nan
    assert interval(cells).mean == pytest.approx(np.nanmean(cells))
    with pytest.raises(ShowtellError, match="no finite scores"):
        interval([[np.nan]])


@pytest.mark.parametrize(("of_seed", "of_item"), [(0.0, 0.3), (0.4, 0.1)])
def test_intervals_miss_the_truth_as_often_as_they_promise(of_seed, of_item):
    rng, missed = np.random.default_rng(1), 0
    for _ in range(200):
        cells = of_seed * rng.normal(size=(3, 1)) + of_item * rng.normal(size=(1, 40)) + rng.normal(size=(3, 40)) * 0.3
        found = interval(cells, trained=of_seed > 0, resamples=1000)
        missed += not found.low < 0 < found.high
    assert 2 <= missed <= 20  # 10 expected


def test_the_detectable_effect_is_seen_four_times_out_of_five():
    rng = np.random.default_rng(0)
    effect = interval(rng.normal(0, 1, (1, 400))).detectable
    assert effect == pytest.approx(2.8 / 20, rel=0.1)
    seen = np.mean([interval(rng.normal(effect, 1, (1, 400)), resamples=500).low > 0 for _ in range(200)])
    assert 0.7 < seen < 0.9


# --- expectations


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("method > plain", [Clause("method", ">", "plain")]),
        ("method > plain + 0.05", [Clause("method", ">", "plain", 1, 0.05)]),
        ("method >= plain - .5", [Clause("method", ">=", "plain", 1, -0.5)]),
        ("method>=3*plain", [Clause("method", ">=", "plain", 3)]),
        ("method >= 1.5 * step size 0 + 0.1", [Clause("method", ">=", "step size 0", 1.5, 0.1)]),
        ("method ~ plain, plain > 3 words", [Clause("method", "~", "plain"), Clause("plain", ">", "3 words")]),
        ("method < plain", [Clause("plain", ">", "method")]),
        ("2 * method <= plain", [Clause("plain", ">=", "method", 2)]),
        ("method + 0.1 > plain", [Clause("method", ">", "plain", 1, -0.1)]),
        ("2 * method + 1 > 3 * plain", [Clause("method", ">", "plain", 1.5, -0.5)]),
        ("method > a + b + 0.1", [Clause("method", ">", "a + b", 1, 0.1)]),
        ("method > plain > step size 0", [Clause("method", ">", "plain"), Clause("plain", ">", "step size 0")]),
    ],
)
def test_expectations_are_read(text, clauses):
    assert parse(text, ARMS) == clauses
    assert [parse(str(clause), ARMS) for clause in clauses] == [[clause] for clause in clauses]


@pytest.mark.parametrize(
    "text", ["", "method", "method >", "> plain", "method > palin", "method > 3 x plain", "0 * method > plain"]
)
def test_expectations_that_cannot_be_read_are_refused(text):
    with pytest.raises(ShowtellError) as error:
        parse(text, ARMS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arms", [["one"], ["a", "b > c"], ["a", "b, c"], ["a", " b"]])
def test_arms_that_an_expectation_could_not_tell_apart_are_refused(arms):
    with pytest.raises(ShowtellError):
        parse("a > b", arms)


def test_the_difference_of_a_clause_is_what_it_says():
    scores = {"method": np.array([[0.9]]), "plain": np.array([[0.2]])}
    assert Clause("method", ">=", "plain", 3, 0.1).differences(scores) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("relation", "low", "high", "outcome"),
    [
        (">", 0.01, 0.2, HOLDS),
        (">", 0.0, 0.2, OPEN),
        (">", -0.2, 0.0, FAILS),
        (">=", 0.0, 0.2, HOLDS),
        (">=", -0.1, 0.0, OPEN),
        (">=", -0.2, -0.1, FAILS),
        ("~", -0.04, 0.04, HOLDS),
        ("~", -0.04, 0.06, OPEN),
        ("~", 0.05, 0.06, FAILS),
        ("~", -0.2, -0.05, FAILS),
    ],
)
def test_what_an_interval_says_of_a_clause(relation, low, high, outcome):
    assert Clause("a", relation, "b").outcome(Interval((low + high) / 2, low, high), margin=0.05) == outcome


# --- verdicts


def test_a_better_method_whose_control_loses_the_gain_holds():
    found = verdict({"m": arm(0.7), "plain": arm(0.5, seed=1), "off": arm(0.5, seed=2)}, "m > plain", "off")
    assert found.verdict == HOLDS
    assert found.baseline == "plain"
    assert found.effect.low < 0.2 < found.effect.high


def test_a_method_whose_control_keeps_the_gain_does_not_hold():
    scores = {"m": arm(0.7), "plain": arm(0.5, seed=1), "off": arm(0.68, seed=2)}
    found = verdict(scores, "m > plain", "off")
    assert found.verdict == FAILS
    assert "keeps more than half" in found.reason
    assert verdict(scores, "m > plain").verdict == HOLDS


def test_a_harmful_method_does_not_hold_and_a_useless_one_is_open():
    assert verdict({"m": arm(0.3), "plain": arm(0.5, seed=1)}, "m > plain").verdict == FAILS
    assert verdict({"m": arm(0.5), "plain": arm(0.5, seed=3)}, "m > plain").verdict == OPEN


def test_a_method_that_changes_nothing_does_not_hold():
    same = arm(0.5)
    assert verdict({"m": same, "plain": same}, "m > plain").verdict == FAILS
    assert verdict({"m": same, "plain": same}, "m ~ plain").verdict == HOLDS


def test_less_can_be_better():
    found = verdict({"m": arm(0.3), "plain": arm(0.5, seed=1), "off": arm(0.5, seed=2)}, "plain > m", "off")
    assert found.verdict == HOLDS
    assert found.effect.mean == pytest.approx(0.2, abs=0.06)


def test_the_worst_clause_decides():
    scores = {"m": arm(0.7), "plain": arm(0.5, seed=1), "rival": arm(0.9, seed=2)}
    assert verdict(scores, "m > plain, m > rival").verdict == FAILS
    assert verdict(scores, "m > plain").verdict == HOLDS
    assert worst([HOLDS, OPEN]) == OPEN
    assert worst([HOLDS, OPEN, FAILS]) == FAILS


def test_a_gain_that_only_the_first_judge_sees_does_not_hold():
    first = {"m": arm(0.8), "plain": arm(0.5, seed=1)}
    second = {"m": arm(0.5, seed=2), "plain": arm(0.5, seed=3)}
    assert verdict(first, "m > plain", second=first).verdict == HOLDS
    found = verdict(first, "m > plain", second=second)
    assert found.verdict == FAILS
    assert "second judge" in found.reason


def test_the_second_judge_is_not_asked_for_margins_and_factors():
    first = {"m": arm(0.8), "plain": arm(0.5, seed=1)}
    second = {"m": arm(0.7), "plain": arm(0.5, seed=1)}
    assert verdict(first, "m > plain + 0.2", second=second).verdict == HOLDS


def test_arms_on_different_cells_are_refused():
    with pytest.raises(ShowtellError, match="different cells"):
        verdict({"m": arm(0.5), "plain": arm(0.5, items=10)}, "m > plain")
    with pytest.raises(ShowtellError, match="none of the arms"):
        verdict({"m": arm(0.5), "plain": arm(0.5)}, "m > plain", "off")


def test_spearman_is_scipy_s():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 8), rng.integers(0, 9, 8)
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_kendall_s_tau_by_hand():
    goal = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall(goal, goal) == 1.0 and kendall(-goal, goal) == -1.0
    # One of six pairs discordant: (5 - 1) / 6.
    assert kendall(np.array([2.0, 1.0, 3.0, 4.0]), goal) == pytest.approx(4 / 6)
    # One pair tied in one list: 5 / sqrt(5 * 6).
    assert kendall(np.array([1.0, 1.0, 3.0, 4.0]), goal) == pytest.approx(5 / 30**0.5)
    assert kendall(np.array([1.0, 1.05, 3.0, 4.0]), goal, margin=0.1) == pytest.approx(5 / 30**0.5)
    assert kendall(np.ones(4), goal) == 0.0


def test_kendall_s_tau_is_scipy_s():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (50, 12)).astype(float), rng.integers(0, 8, 12).astype(float)
    assert np.allclose(kendall(a, b), [kendalltau(row, b).statistic for row in a], atol=1e-6)
