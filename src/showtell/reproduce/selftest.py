"""The laboratory tried on methods whose effect is known: how often its verdicts are right, and how small an effect it
can see.

A simulated experiment has prompts of different difficulty, noise that the arms of one seed share in part, and two
judges that err independently. Nothing is generated; what is tested is everything from scores to verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from showtell.measure.experiment import PROMPTS, SEEDS
from showtell.measure.statistics import FAILS, HOLDS, verdict

EXPERIMENTS = 200
EFFECT = 0.2
PROMISED = 0.025
"""The share of wrong verdicts that a 95 % interval allows on one side."""

_ACCURACY = 0.65  # of plain sampling, where a method has room both ways
_SPREAD = 0.8  # of the prompts' difficulty, in standard deviations of the noise
_SHARED = 0.5  # part of the noise that arms of one seed have in common: they start from the same latents
_ERRORS = (0.05, 0.08)  # how often the judges misread a picture
_RESAMPLES = 1000


@dataclass(frozen=True)
class Planted:
    """A method with a known effect. method, control: what they add to the share of pictures that are right; pleases:
    what the method adds to the share that the first judge takes for right, whether it is or not; luck: deviation,
    over seeds, of what a training run adds or takes. right: the verdict it deserves; wrong: what would be an error."""

    name: str
    method: float
    control: float
    pleases: float
    right: str
    wrong: str
    luck: float = 0.0


def planted(effect: float = EFFECT) -> list[Planted]:
    return [
        Planted("better", effect, 0.0, 0.0, HOLDS, FAILS),
        Planted("useless", 0.0, 0.0, 0.0, "not holds", HOLDS),
        Planted("useless, but trained with luck", 0.0, 0.0, 0.0, "not holds", HOLDS, luck=0.1),
        Planted("harmful", -effect, 0.0, 0.0, FAILS, HOLDS),
        Planted("cheating: reads the judge", 0.0, 0.0, effect, FAILS, HOLDS),
        Planted("control keeps the gain", effect, effect, 0.0, FAILS, HOLDS),
    ]


def simulate(
    method: Planted, rng: np.random.Generator, prompts: int = PROMPTS, seeds: int = SEEDS
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of the three arms by the first and by the second judge, arm -> (seeds, prompts) of 0 and 1."""
    shape = (seeds, prompts)
    normal = NormalDist()
    ease = rng.normal(normal.inv_cdf(_ACCURACY) * math.hypot(1, _SPREAD), _SPREAD, prompts)
    common = rng.normal(size=shape)
    first, second = {}, {}
    for arm, added in (("method", method.method), ("plain", 0.0), ("control", method.control)):
        noise = math.sqrt(_SHARED) * common + math.sqrt(1 - _SHARED) * rng.normal(size=shape)
        lucky = added + (method.luck * rng.normal(size=(seeds, 1)) if arm != "plain" else 0.0)
        right = _changed(noise < ease, lucky, _ACCURACY, rng)
        first[arm], second[arm] = (np.where(rng.random(shape) < error, ~right, right) for error in _ERRORS)
        if arm == "method" and method.pleases:
            first[arm] = _changed(first[arm], method.pleases, _ACCURACY, rng)
    return tuple({arm: seen.astype(float) for arm, seen in judge.items()} for judge in (first, second))  # type: ignore[return-value]


def _changed(right: np.ndarray, added: np.ndarray | float, share: float, rng: np.random.Generator) -> np.ndarray:
    """Some wrong pictures made right (or right ones wrong), so that their share changes by `added` on average."""
    more = np.broadcast_to(np.asarray(added) > 0, right.shape)
    chosen = rng.random(right.shape) < np.abs(added) / np.where(more, 1 - share, share)
    return np.where(more, right | chosen, right & ~chosen)


def verdicts(
    method: Planted, experiments: int = EXPERIMENTS, prompts: int = PROMPTS, seeds: int = SEEDS, seed: int = 0
) -> Counter[str]:
    """How often each verdict was given to a planted method."""
    found: Counter[str] = Counter()
    for number in range(experiments):
        first, second = simulate(method, np.random.default_rng([seed, number]), prompts, seeds)
        trained = method.luck > 0
        outcome = verdict(first, "method > plain", "control", second=second, trained=trained, resamples=_RESAMPLES)
        found[outcome.verdict] += 1
    return found


@dataclass(frozen=True)
class Tried:
    """What became of a planted method. rates: verdict -> share. passed: its wrong verdict is as rare as promised."""

    method: Planted
    rates: dict[str, float]
    passed: bool


def self_test(experiments: int = EXPERIMENTS, seed: int = 0) -> list[Tried]:
    """Every planted method through so many experiments of the default size."""
    allowed = _allowed(experiments)
    found = []
    for method in planted():
        counted = verdicts(method, experiments, seed=seed)
        rates = {name: count / experiments for name, count in counted.items()}
        found.append(Tried(method, rates, counted[method.wrong] <= allowed))
    return found


def _allowed(experiments: int) -> int:
    """How many errors chance alone exceeds in one of 100 self-tests, at the promised rate."""
    mean = experiments * PROMISED
    return math.floor(mean + 2.33 * math.sqrt(mean * (1 - PROMISED)))


def power(
    effects: Sequence[float], experiments: int = EXPERIMENTS, prompts: int = PROMPTS, seeds: int = SEEDS, seed: int = 0
) -> list[float]:
    """For each true effect, the share of experiments that say "holds"."""
    return [
        verdicts(Planted("", effect, 0.0, 0.0, HOLDS, FAILS), experiments, prompts, seeds, seed)[HOLDS] / experiments
        for effect in effects
    ]


def smallest_effect(effects: Sequence[float], found: Sequence[float], wanted: float = 0.8) -> float:
    """The effect at which the power first reaches `wanted`, between the two that were tried; nan where none does."""
    for (low, below), (high, above) in zip(zip(effects, found), zip(effects[1:], found[1:])):
        if below < wanted <= above:
            return low + (wanted - below) / (above - below) * (high - low)
    return math.nan


def plot(sizes: Sequence[tuple[int, int]], effects: Sequence[float], experiments: int = EXPERIMENTS) -> bytes:
    """The power of experiments of several sizes (prompts, seeds) against the true effect, as PNG."""
    from showtell.reproduce.picture import curves

    lines = {
        f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)}": list(
            zip(effects, power(effects, experiments, prompts, seeds))
        )
        for prompts, seeds in sizes
    }
    return curves(lines, ("true effect on the share of right pictures", 'share of verdicts "holds"'))
