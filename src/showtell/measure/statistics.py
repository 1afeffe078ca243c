"""What an experiment says: paired intervals, what a paper expects of its arms, and the verdict that follows.

Scores of an arm are an array (seeds, items): item i is the same prompt, and seed s the same noise or the same training
draw, on every arm. Every difference between arms is therefore taken within its cell before anything is averaged.

    outcome = verdict({"frap": a, "plain": b, "step size 0": c}, "frap > plain", control="step size 0")
    outcome.verdict, outcome.effect.mean, outcome.effect.low, outcome.effect.high
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from showtell.errors import ShowtellError

HOLDS, FAILS, OPEN = "holds", "does not hold", "inconclusive"
VERDICTS = (HOLDS, FAILS, OPEN)
RESAMPLES = 10_000
LEVEL = 0.95
MARGIN = 0.05
RULES = 1
"""Raised whenever the same scores could lead to another verdict; results of other rules are measured again."""

_TINY = 1e-9  # differences below it are rounding
_POWERED = (1.959964 + 0.841621) / 1.959964  # half width of a 95 % interval -> effect seen in 80 % of all runs


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval. Infinite ends where the data cannot say (one item and one seed)."""

    mean: float
    low: float
    high: float

    @property
    def detectable(self) -> float:
        """The true effect that a run with this interval's width would call different from 0 in 80 % of all cases."""
        return _POWERED * (self.high - self.low) / 2


@lru_cache(maxsize=4)
def _weights(items: int, resamples: int) -> np.ndarray:
    """(resamples, items): how often each item is drawn, the same draws for every contrast of an experiment."""
    rng = np.random.default_rng(items)
    return rng.multinomial(items, np.full(items, 1 / items), size=resamples).astype(np.float32)


@lru_cache(maxsize=16)
def _student(freedom: int, resamples: int) -> np.ndarray:
    return np.random.default_rng(freedom).standard_t(freedom, resamples)


def interval(differences: Any, trained: bool = False, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """The mean of paired differences with its bootstrap interval over items and seeds together.

    differences: (seeds, items) or (items,); cells that are nan are left out. Items are drawn with replacement, all
    seeds of an item together, which covers what differs between items and between cells: all there is where a seed
    draws other noise for every item. trained: the items of a seed have more in common (one training run, one search),
    or the data say so (F-test at 1 %). What they have in common is then estimated by two-way analysis of variance, and
    its share is drawn from Student's t with seeds - 1 degrees of freedom: a handful of seeds cannot be resampled.
    Raises ShowtellError where no finite cell is left.
    """
    cells = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    known = np.isfinite(cells)
    if cells.ndim != 2 or not known.any():
        raise ShowtellError(f"no finite scores to compare in an array of shape {cells.shape}; give (seeds, items)")
    kept = known.any(axis=0)
    cells, known = cells[:, kept], known[:, kept]
    mean = float(cells[known].mean())
    rest = np.where(known, cells - mean, 0.0)
    seeds, items = rest.shape
    if items == 1 and seeds == 1:
        return Interval(mean, -math.inf, math.inf)
    draws = _item_draws(rest, known, resamples) if items > 1 else np.zeros(resamples)
    if seeds > 1:
        common, ratio = _between_seeds(rest, known)
        if common > 0 and (trained or items == 1 or ratio > _by_chance(seeds - 1)):
            draws = draws + _student(seeds - 1, resamples) * math.sqrt(common / seeds)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, mean + float(low), mean + float(high))


def _item_draws(rest: np.ndarray, known: np.ndarray, resamples: int) -> np.ndarray:
    """Deviations of the mean under drawing items with replacement, widened for the items being a sample themselves."""
    items = rest.shape[1]
    weights = _weights(items, resamples)
    drawn = weights @ known.sum(axis=0).astype(np.float32)
    sums = weights @ rest.sum(axis=0).astype(np.float32)
    return sums / np.maximum(drawn, 1) * math.sqrt(items / (items - 1))


def _between_seeds(rest: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """(variance of what the items of a seed have in common, its mean square as a multiple of the cells' own).

    Two-way analysis of variance of deviations from the mean; the variance is 0 where cells explain everything.
    """
    seeds, items = rest.shape
    of_seed = rest.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    between = float(of_seed.var(ddof=1))
    if items == 1:
        return between, math.inf
    of_item = rest.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    left = np.where(known, rest - of_seed[:, None] - of_item[None], 0.0)
    noise = float((left**2).sum()) / max(int(known.sum()) - items - seeds + 1, 1) / items
    if between < _TINY**2:
        return 0.0, 0.0
    return max(between - noise, 0.0), between / max(noise, _TINY**2)


def _by_chance(freedom: int) -> float:
    """The mean square ratio that seeds with nothing in common exceed in 1 % of all cases (Wilson and Hilferty)."""
    part = 2 / (9 * freedom)
    return (1 - part + 2.326 * math.sqrt(part)) ** 3


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of two rows of numbers, in [-1, 1]; equal numbers share their mean rank, and it is 0
    where a row does not vary."""
    ranked = [np.array([sum(v > w for w in z) + sum(v == w for w in z) / 2 for v in z]) for z in (x, y)]
    return 0.0 if min(map(np.ptp, ranked)) == 0 else float(np.corrcoef(ranked[0], ranked[1])[0, 1])


def kendall(a: np.ndarray, b: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Kendall's tau-b, in [-1, 1], of each row of a (..., items) and of b (items,), (...).

    (C - D) / sqrt((C + D + T1) (C + D + T2)); items whose numbers differ by no more than `margin` are tied. 0 where all
    items are tied in one of the two.
    """
    first, second = np.triu_indices(b.shape[-1], 1)

    def signs(x: np.ndarray) -> np.ndarray:
        difference = x[..., first] - x[..., second]
        return np.where(np.abs(difference) <= margin, 0, np.sign(difference)).astype(np.float32)

    ours, theirs = signs(a), signs(b)
    agreed = ours @ theirs  # concordant minus discordant pairs
    untied = np.square(ours).sum(-1) * np.square(theirs).sum(-1)
    return np.where(untied > 0, agreed / np.sqrt(np.maximum(untied, 1)), 0.0)


# --- what a paper expects -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clause:
    """`left  relation  times * right + plus`, with relation ">", ">=" or "~"."""

    left: str
    relation: str
    right: str
    times: float = 1.0
    plus: float = 0.0

    @property
    def names(self) -> tuple[str, str]:
        return self.left, self.right

    def __str__(self) -> str:
        factor = "" if self.times == 1 else f"{self.times:g} * "
        term = "" if self.plus == 0 else f" {'+' if self.plus > 0 else '-'} {abs(self.plus):g}"
        return f"{self.left} {self.relation} {factor}{self.right}{term}"

    def differences(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """(seeds, items): by how much each cell exceeds what the clause asks for."""
        return scores[self.left] - self.times * scores[self.right] - self.plus

    def outcome(self, difference: Interval, margin: float = MARGIN) -> str:
        """Which verdict the interval of `differences` leads to."""
        if self.relation == "~":
            if difference.low > -margin and difference.high < margin:
                return HOLDS
            return FAILS if difference.low >= margin or difference.high <= -margin else OPEN
        if self.relation == ">=":
            if difference.low >= -_TINY:
                return HOLDS
            return FAILS if difference.high < -_TINY else OPEN
        if difference.low > _TINY:
            return HOLDS
        return FAILS if difference.high <= _TINY else OPEN


_RELATION = re.compile(r"(>=|<=|>|<|~)")
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_TERM = re.compile(rf"^(?:(?P<times>{_NUMBER})\s*\*\s*)?(?P<arm>.+?)(?:\s+(?P<sign>[+-])\s*(?P<plus>{_NUMBER}))?$")


def check_arms(arms: Iterable[str]) -> list[str]:
    """The names of the arms, if an expectation can tell them apart. Raises ShowtellError."""
    names = list(arms)
    if len(names) < 2:
        raise ShowtellError(f"cannot compare {len(names)} arms; give the method first and at least one other")
    for name in names:
        if not name.strip() or name != name.strip() or re.search(r"[,<>~=*]", name):
            raise ShowtellError(f"cannot name an arm {name!r}; use words without , < > ~ = *")
    return names


def parse(expect: str, arms: Iterable[str]) -> list[Clause]:
    """The clauses of an expectation over these arms, all of which have to hold.

    expect: "a > b + 0.05, a > c", "a >= 3 * b", "a ~ b" (equal within a margin), "a < b", and chains "a > b > c".
    Raises ShowtellError: an arm that is not there, or a text that cannot be read.
    """
    names = check_arms(arms)
    clauses: list[Clause] = []
    for text in expect.split(","):
        parts = [part.strip() for part in _RELATION.split(text)]
        if len(parts) < 3 or not all(parts):
            raise ShowtellError(f"cannot read the expectation {text.strip()!r}; write such as: a > b, a >= 3 * b")
        terms, relations = parts[0::2], parts[1::2]
        for left, relation, right in zip(terms, relations, terms[1:]):
            clauses.append(_clause(left, relation, right, names))
    return clauses


def _clause(left: str, relation: str, right: str, names: Sequence[str]) -> Clause:
    if relation.startswith("<"):
        left, relation, right = right, relation.replace("<", ">"), left
    (arm, times, plus), (other, factor, term) = _term(left, names), _term(right, names)
    if times <= 0:
        raise ShowtellError(f"cannot compare {left!r}: the factor must be above 0")
    return Clause(arm, relation, other, factor / times, (term - plus) / times)


def _term(text: str, names: Sequence[str]) -> tuple[str, float, float]:
    """(arm, factor, summand) of "3 * plain + 0.05"."""
    if text in names:
        return text, 1.0, 0.0
    match = _TERM.match(text)
    if match is None or match["arm"] not in names:
        raise ShowtellError(f"the expectation names {text!r}, which is none of the arms: {', '.join(names)}")
    plus = float(match["plus"] or 0) * (-1 if match["sign"] == "-" else 1)
    return match["arm"], float(match["times"] or 1), plus


# --- verdicts -----------------------------------------------------------------------------------------------------


Spread = Callable[[np.ndarray], Interval]


@dataclass(frozen=True)
class Finding:
    """One thing that was tested: what, its interval, what follows from it."""

    what: str
    interval: Interval
    outcome: str


@dataclass(frozen=True)
class Outcome:
    """effect: the method against the baseline of the first clause, positive where the method is better.

    findings: every clause, then the control, then the second judge.
    """

    verdict: str
    effect: Interval
    baseline: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The finding that decided, in words."""
        deciding = next((f for f in self.findings if f.outcome == self.verdict), self.findings[0])
        found = deciding.interval
        return f"{deciding.what}: {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def worst(verdicts: Iterable[str]) -> str:
    """`does not hold` if any does not, `inconclusive` if any is, else `holds`."""
    found = set(verdicts)
    return next(verdict for verdict in (FAILS, OPEN, HOLDS) if verdict in found or verdict == HOLDS)


def verdict(
    scores: Mapping[str, Any],
    expect: str,
    control: str | None = None,
    margin: float = MARGIN,
    second: Mapping[str, Any] | None = None,
    trained: bool = False,
    resamples: int = RESAMPLES,
) -> Outcome:
    """Whether the arms behave as expected, the control loses the effect and a second judge sees it too.

    scores: arm -> (seeds, items), the method first; second: the same cells scored by the other judge. trained: see
    `interval`.

    holds: the interval of every clause lies above 0 (above what it adds to the right side), the control loses the
    effect, and the second judge sees every ">" clause with an interval above 0.
    does not hold: the interval of some clause lies at or below 0 under either judge; or the control keeps the gain:
    its gain over the baseline is more than half the method's, with interval; or the second judge sees less than half
    of what the first one does, with interval (the method pleases the judge, not the prompt).
    inconclusive: everything else.
    Raises ShowtellError: unknown arms, shapes that differ, no finite scores.
    """
    cells = _checked(scores)
    clauses = parse(expect, cells)
    if control is not None and control not in cells:
        raise ShowtellError(f"the control {control!r} is none of the arms: {', '.join(cells)}")
    method = next(iter(cells))
    spread = partial(interval, trained=trained, resamples=resamples)
    findings = []
    for clause in clauses:
        found = spread(clause.differences(cells))
        findings.append(Finding(str(clause), found, clause.outcome(found, margin)))
    sign, baseline = _baseline(clauses, method, control)
    if control is not None and control != method:
        findings += _control(cells, method, control, baseline, sign, spread)
    if second is not None:
        other = _checked(second, like=cells)
        findings += [f for clause in clauses for f in _second(clause, cells, other, spread)]
    reference = baseline or next((n for n in clauses[0].names if n != method), clauses[0].right)
    effect = spread(sign * (cells[method] - cells[reference]))
    return Outcome(worst(f.outcome for f in findings), effect, reference, findings)


def _checked(scores: Mapping[str, Any], like: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    cells = {name: np.atleast_2d(np.asarray(values, dtype=np.float64)) for name, values in scores.items()}
    shapes = {name: array.shape for name, array in {**(like or {}), **cells}.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShowtellError(f"arms were scored on different cells: {listed}; give every arm (seeds, items) alike")
    if like is not None and set(like) != set(cells):
        raise ShowtellError("the second judge scored other arms than the first; give it the same")
    return cells


def _baseline(clauses: Sequence[Clause], method: str, control: str | None) -> tuple[int, str | None]:
    """(+1 where more is better and -1 where less is, the arm that the method has to beat)."""
    named = [c for c in clauses if c.relation != "~" and method in c.names]
    against = [c for c in named if control not in c.names] or named
    if not against:
        return 1, None
    clause = against[0]
    return (1, clause.right) if clause.left == method else (-1, clause.left)


def _control(
    cells: Mapping[str, np.ndarray], method: str, control: str, baseline: str | None, sign: int, spread: Spread
) -> list[Finding]:
    gap = spread(sign * (cells[method] - cells[control]))
    if baseline is None or baseline == control:
        outcome = HOLDS if gap.low > _TINY else FAILS if gap.high <= _TINY else OPEN
        return [Finding(f"{method} against the control {control}", gap, outcome)]
    gain, kept = cells[method] - cells[baseline], cells[control] - cells[baseline]
    excess = spread(sign * (kept - gain / 2))
    if excess.low > _TINY:
        return [Finding(f"the control {control} keeps more than half of the gain", excess, FAILS)]
    if gap.high <= _TINY:
        return [Finding(f"{method} against the control {control}", gap, FAILS)]
    if excess.high <= _TINY:
        return [Finding(f"the control {control} keeps at most half of the gain", excess, HOLDS)]
    return [Finding(f"{method} against the control {control}", gap, HOLDS if gap.low > _TINY else OPEN)]


def _second(
    clause: Clause, cells: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], spread: Spread
) -> list[Finding]:
    """What the other judge says of a clause. Factors and margins belong to the first judge's scale, so only the
    direction is asked for, and that at least half of the difference is there."""
    if clause.relation == "~" or clause.times != 1:
        return []
    first, again = cells[clause.left] - cells[clause.right], other[clause.left] - other[clause.right]
    seen, share = spread(again), spread(again - first / 2)
    what = f"{clause.left} {clause.relation} {clause.right} under the second judge"
    if share.high < -_TINY and spread(first).low > _TINY:
        return [Finding(f"{what}: less than half of the effect", share, FAILS)]
    return [Finding(what, seen, Clause(clause.left, clause.relation, clause.right).outcome(seen))]
