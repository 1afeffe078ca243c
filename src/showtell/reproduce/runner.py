"""Running a paper's experiment: every arm on the same base, prompts, seeds and budget; what is done is kept.

The unit of work is one arm with one seed. Its scores and first pictures are written in one step when it is done, so
that a run that is killed goes on where it was; the ledger then gets one row for the whole experiment.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from showtell import __version__, files
from showtell.errors import ShowtellError
from showtell.measure import provenance
from showtell.measure.experiment import PROMPTS, SEEDS, Comparison, Lab, MissingBase, Points, as_comparisons, unchanged
from showtell.measure.statistics import RULES, Interval, Outcome, interval, verdict, worst
from showtell.papers import Paper
from showtell.reproduce import ledger, picture

NOT_RUNNABLE = "not runnable"
FAILED = "failed"
JUDGES = ("judge", "judge2")
"""Their weights are part of every result, since metrics rest on them."""


@dataclass(frozen=True)
class Settings:
    """How large an experiment is, and what it draws. fresh: run even what the ledger holds. trial: on validation
    prompts, to try an experiment out; what comes of it is no result and enters no ledger."""

    prompts: int = PROMPTS
    seeds: int = SEEDS
    seed: int = 0
    fresh: bool = False
    trial: bool = False


@dataclass(frozen=True)
class Result:
    """One row for the ledger, with its pictures by file name. new: it was measured now, not found in a ledger.

    note: one line for the reader: why it could not run, or what the row does not cover.
    """

    row: dict[str, Any]
    pictures: dict[str, bytes] = field(default_factory=dict)
    new: bool = True
    note: str = ""

    def public(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        return {name: self.row.get(name) for name in ledger.FIELDS}


@dataclass(frozen=True)
class Cell:
    """What one arm gave with one seed. scores, second: comparison -> (items,), by either judge; shown: see `picture`;
    points: what the arm added to its curve; trained: whether it asked for something trained. seconds, cpu: wall time
    and processor time of running and scoring it."""

    scores: dict[int, np.ndarray]
    second: dict[int, np.ndarray]
    seconds: float
    cpu: float
    points: Points
    shown: np.ndarray | None
    trained: bool


Cells = dict[tuple[int, str, int], Cell]
"""(number of the comparison, name of the arm, seed) -> what came out."""
Show = Callable[[Iterable[Any], str], Iterator[Any]]


def reproduce(paper: Paper, settings: Settings = Settings(), show: Show | None = None) -> Result:
    """The paper's verdict: from a ledger if one holds it for this code, weights, prompts and seeds, else measured.

    A base that is not there makes a result "not runnable", an experiment that breaks one that "failed".
    Raises ShowtellError for a paper that is not written yet.
    """
    paper.module()
    code = provenance.code_hash(paper.file)
    wanted = ledger.Wanted(paper.slug, code, settings.prompts, settings.seeds, settings.seed)
    if (
        not (settings.fresh or settings.trial)
        and (row := ledger.held(wanted, (ledger.own(), ledger.published()))) is not None
    ):
        below = (
            "" if row.get("deep") == provenance.deep_hash(paper.file) else "code below it has changed since; --fresh"
        )
        return Result(row, new=False, note=below)
    split = "validation" if settings.trial else "test"
    size: dict[str, Any] = {"n": settings.prompts, "seed": settings.seed, "seeds": settings.seeds}
    lab = Lab(paper.slug, paper.file, **size, show=show, split=split)
    try:
        return measured(paper, paper.module().experiment, lab, code)
    except MissingBase as error:
        return Result(_empty(paper, settings, NOT_RUNNABLE), note=str(error))


def record(result: Result, publish: bool = False) -> Result:
    """Enters a new result in the user's own ledger, or any result in the published one.

    Published pictures are small, and the newest takes the place of the one before.
    """
    if result.row["verdict"] in (NOT_RUNNABLE, FAILED) or result.row.get("split") == "validation":
        return result
    if not publish:
        if result.new:
            ledger.own().append(result.row, result.pictures)
        return result
    own = (result.row["slug"], result.row["time"])
    if any((row["slug"], row["time"]) == own for row in ledger.published().rows()):
        return result
    pictures = result.pictures or {path.name: path.read_bytes() for path in ledger.picture_of(result.row)}
    slug = result.row["slug"]
    small = {
        f"{slug}{'' if number == 0 else f'-{number + 1}'}.webp": picture.small(data)
        for number, data in enumerate(pictures.values())
    }
    row = {**result.row, "pictures": list(small)}
    ledger.published().append(row, small)
    return replace(result, row=row, pictures=small)


def measured(paper: Paper, experiment: Callable[[Lab], Any], lab: Lab, code: str) -> Result:
    """Runs every arm with every seed, as far as no earlier run did, and judges."""
    clock = _Clock()
    comparisons = as_comparisons(experiment(lab))
    before = clock.read()  # what is mined or trained before the arms run
    store = _Store(lab, provenance.deep_hash(paper.file))
    works = _plan(comparisons)
    tasks = [(work, seed) for seed in lab.seeds for work in works]
    cells: Cells = {}
    for work, seed in lab.progress(tasks, paper.slug):
        cell = store.cell(comparisons, work, seed)
        cells |= {(number, name, seed): cell for number, name in work.users}
    judged = [_judged(number, one, lab.seeds, cells) for number, one in enumerate(comparisons)]
    ran = [cells[*work.users[0], seed] for work, seed in tasks]
    spent = before[0] + sum(cell.seconds for cell in ran), before[1] + sum(cell.cpu for cell in ran)
    row = _row(paper, lab, code, store.deep, comparisons, judged, spent)
    pictures = _pictures(paper.slug, row, comparisons, lab.seeds, cells)
    return Result({**row, "pictures": list(pictures)}, pictures)


class _Clock:
    """Wall time and processor time of this process since it was made; the latter leaves out what others compute."""

    def __init__(self) -> None:
        self.start = perf_counter(), process_time()

    def read(self) -> tuple[float, float]:
        return perf_counter() - self.start[0], process_time() - self.start[1]


@dataclass(frozen=True)
class _Work:
    """An arm to run once per seed. users: (comparison, name) of everyone who wants its scores; key: its own name."""

    key: str
    arm: Callable[[int], Any]
    users: list[tuple[int, str]]


def _plan(comparisons: Sequence[Comparison]) -> list[_Work]:
    """Every arm once: comparisons that name the very same function share its runs."""
    works: dict[int, _Work] = {}
    for number, comparison in enumerate(comparisons):
        for name, arm in comparison.arms.items():
            if id(arm) not in works:
                taken = any(work.users[0][1] == name for work in works.values())
                works[id(arm)] = _Work(f"{name} ({number + 1})" if taken else name, arm, [])
            works[id(arm)].users.append((number, name))
    return list(works.values())


class _Store:
    """Cells on disk, for this code, weights, prompts and seed."""

    def __init__(self, lab: Lab, deep: str) -> None:
        import torch

        self.lab, self.deep = lab, deep
        # Arms may see lab.n and the base seed; another torch may draw other noise.
        kind = provenance.digest(deep, str(lab.n), str(lab.seed), lab.split, torch.__version__)
        self.folder = provenance.cache_folder() / "cells" / lab.paper / kind

    def cell(self, comparisons: Sequence[Comparison], work: _Work, seed: int) -> Cell:
        """The arm's result, from the disk if it is there."""
        path = self.folder / f"{provenance.digest(work.key)}-{seed}.npz"
        numbers = {number for number, _ in work.users}
        kept = _read_cell(path)
        if kept is not None and set(kept.scores) == numbers:
            return kept
        name = work.users[0][1]
        lines = [curve[own] for i, own in work.users if (curve := comparisons[i].curve) is not None and own in curve]
        before = len(lines[0]) if lines else 0
        marks = _fingerprint(self.lab)
        trainings = self.lab.trainings
        _same_draws(seed)
        clock = _Clock()
        output = work.arm(seed)
        _unharmed(marks, _fingerprint(self.lab), name)
        scores = {i: _scores(comparisons[i], output, name) for i in numbers}
        twice = {i: _scores(comparisons[i], output, name, "second") for i in numbers if comparisons[i].judged_twice}
        seconds, cpu = clock.read()
        cell = Cell(
            scores=scores,
            second=twice,
            seconds=seconds,
            cpu=cpu,
            points=[(float(x), float(y)) for x, y in (lines[0][before:] if lines else ())],
            shown=picture.shown(_images(comparisons[work.users[0][0]], output)) if seed == self.lab.seeds[0] else None,
            trained=self.lab.trainings > trainings,
        )
        _write_cell(path, cell, self.lab.weights | _judges())
        return cell


def _scores(comparison: Comparison, output: Any, arm: str, judge: str | None = None) -> np.ndarray:
    """(items,) scores of an arm's output. Raises ShowtellError for any other shape."""
    if comparison.metric is None:
        values = output[0] if isinstance(output, tuple) else output
    else:
        values = comparison.metric(output) if judge is None else comparison.metric(output, judge=judge)
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ShowtellError(f"arm {arm!r}: the scores have the shape {scores.shape}; give one number per item, (n,)")
    if np.isinf(scores).any():
        raise ShowtellError(f"arm {arm!r}: a score is infinite; give numbers, or nan where an item does not count")
    return scores


def _images(comparison: Comparison, output: Any) -> Any:
    """What to show of an output: itself, or the second of a pair where the arm scores itself."""
    if comparison.metric is not None:
        return output
    return output[1] if isinstance(output, tuple) and len(output) > 1 else None


def _same_draws(seed: int) -> None:
    """The global generators, so that an arm that uses them gives the same result in a run that was resumed."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # what the arms may use
    torch.manual_seed(seed)


def _judges() -> dict[str, str]:
    from showtell.weights import folder

    found = {}
    for name in JUDGES:
        try:
            found[name] = provenance.weights_hash(folder(name))
        except ShowtellError:
            continue
    return found


def _fingerprint(lab: Lab) -> dict[str, float]:
    """base -> a sum over all its weights, which training in place would change."""
    import torch

    with torch.no_grad():
        return {
            name: sum(float(p.double().abs().sum()) for part in modules(base) for p in part.parameters())
            for name, base in lab.opened.items()
        }


def _unharmed(before: Mapping[str, float], after: Mapping[str, float], arm: str) -> None:
    for name, mark in before.items():
        if after[name] != mark:
            raise ShowtellError(
                f"arm {arm!r} changed the weights of the base {name!r}, which the other arms share; "
                f"train on lab.base({name!r}, fresh=True)"
            )


def modules(thing: Any, depth: int = 3) -> list[Any]:
    """The networks that an object holds, directly or inside what it holds."""
    from torch import nn

    if isinstance(thing, nn.Module):
        return [thing]
    if depth == 0 or isinstance(thing, str | int | float | type) or not hasattr(thing, "__dict__"):
        return []
    inside = [*vars(thing).values()]
    return list({id(part): part for one in inside for part in modules(one, depth - 1)}.values())


# --- cells on disk ------------------------------------------------------------------------------------------------


def _write_cell(path: Path, cell: Cell, weights: Mapping[str, str]) -> None:
    arrays: dict[str, np.ndarray] = {f"scores{i}": values for i, values in cell.scores.items()}
    arrays |= {f"second{i}": values for i, values in cell.second.items()}
    if cell.shown is not None:
        arrays["shown"] = cell.shown
    about = json.dumps(
        {
            "seconds": cell.seconds,
            "cpu": cell.cpu,
            "points": cell.points,
            "trained": cell.trained,
            "weights": dict(weights),
        }
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(about), **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, buffer.getvalue())


def _read_cell(path: Path) -> Cell | None:
    """The cell, or None where there is none, it is damaged, or weights that it rests on have changed."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            about = json.loads(str(kept["about"]))
            if not unchanged(about["weights"]):
                return None
            named = {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Cell(
        scores={int(name[6:]): values for name, values in named.items() if name.startswith("scores")},
        second={int(name[6:]): values for name, values in named.items() if name.startswith("second")},
        seconds=about["seconds"],
        cpu=about["cpu"],
        points=[(x, y) for x, y in about["points"]],
        shown=named.get("shown"),
        trained=about["trained"],
    )


# --- from cells to a row ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    outcome: Outcome
    arms: dict[str, Interval]
    second: dict[str, float]
    items: int


def _judged(number: int, comparison: Comparison, seeds: Sequence[int], cells: Cells) -> _Judged:
    def stacked(judge: str) -> dict[str, np.ndarray]:
        found = {}
        for name in comparison.arms:
            rows = [getattr(cells[number, name, seed], judge)[number] for seed in seeds]
            if len({len(row) for row in rows}) > 1:
                sizes = ", ".join(str(len(row)) for row in rows)
                raise ShowtellError(f"arm {name!r} scored {sizes} items with its seeds; give the same number each time")
            found[name] = np.stack(rows)
        return found

    scores = stacked("scores")
    second = stacked("second") if comparison.judged_twice else None
    trained = comparison.trained or any(cells[number, name, seed].trained for name in comparison.arms for seed in seeds)
    outcome = verdict(scores, comparison.expect, comparison.control, comparison.margin, second, trained)
    return _Judged(
        outcome,
        {name: interval(values, trained) for name, values in scores.items()},
        {name: float(np.nanmean(values)) for name, values in (second or {}).items()},
        next(iter(scores.values())).shape[1],
    )


def _row(
    paper: Paper,
    lab: Lab,
    code: str,
    deep: str,
    comparisons: Sequence[Comparison],
    judged: Sequence[_Judged],
    spent: tuple[float, float],
) -> dict[str, Any]:
    """spent: wall time and processor time."""
    import torch

    parts = [_part(comparison, one) for comparison, one in zip(comparisons, judged)]
    overall = worst(part["verdict"] for part in parts)
    head = parts[0]
    return {
        **_identity(paper),
        **head,
        "verdict": overall,
        "n": judged[0].items,
        "seeds": len(lab.seeds),
        "seconds": round(spent[0], 2),
        "cpu_seconds": round(spent[1], 2),
        "base": ", ".join(lab.weights) or None,
        "reason": next(part["reason"] for part in parts if part["verdict"] == overall),
        "also": parts[1:],
        "seed": lab.seed,
        "prompts": lab.n,
        "sets": list(dict.fromkeys(lab.drawn)),
        "split": lab.split,
        "code": code,
        "deep": deep,
        "rules": RULES,
        "weights": lab.weights | _judges(),
        "machine": provenance.machine(),
        "versions": {"showtell": __version__, "torch": torch.__version__},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _identity(paper: Paper) -> dict[str, Any]:
    return {"arxiv": paper.arxiv, "slug": paper.slug, "shelf": paper.shelf}


def _part(comparison: Comparison, judged: _Judged) -> dict[str, Any]:
    """What one comparison says."""
    effect = judged.outcome.effect
    return {
        "verdict": judged.outcome.verdict,
        "metric": comparison.name,
        "expect": comparison.expect,
        "arms": {name: _number(found.mean) for name, found in judged.arms.items()},
        "effect": _number(effect.mean),
        "ci": [_number(effect.low), _number(effect.high)],
        "control": comparison.control,
        "baseline": judged.outcome.baseline,
        "intervals": {name: [_number(found.low), _number(found.high)] for name, found in judged.arms.items()},
        "second": {name: _number(mean) for name, mean in judged.second.items()},
        "detectable": _number(effect.detectable),
        "reason": judged.outcome.reason,
        "findings": [
            [f.what, _number(f.interval.mean), _number(f.interval.low), _number(f.interval.high), f.outcome]
            for f in judged.outcome.findings
        ],
    }


def _number(value: float) -> float | None:
    """Six digits; None for what JSON cannot say."""
    return round(value, 6) if np.isfinite(value) else None


def _empty(paper: Paper, settings: Settings, why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(ledger.FIELDS)
    return {**nothing, **_identity(paper), "verdict": why, "arms": {}, "n": 0, "seeds": settings.seeds, "seconds": 0.0}


def failed(paper: Paper, settings: Settings, error: BaseException) -> Result:
    """The result of an experiment that broke."""
    line = (str(error).strip().splitlines() or [""])[0]
    return Result(_empty(paper, settings, FAILED), note=f"{type(error).__name__}: {line}")


def _pictures(
    slug: str, row: Mapping[str, Any], comparisons: Sequence[Comparison], seeds: Sequence[int], cells: Cells
) -> dict[str, bytes]:
    """File name -> bytes: the sheet of the first comparison that has pictures, and every curve."""
    stem = f"{slug}-{provenance.digest(json.dumps(row, default=str))}"
    found: dict[str, bytes] = {}
    for number, comparison in enumerate(comparisons):
        every = {name: cells[number, name, seeds[0]].shown for name in comparison.arms}
        arms = {name: pixels for name, pixels in every.items() if pixels is not None}
        if arms:
            ending, data = picture.encoded(picture.sheet(arms, comparison.texts))
            found[f"{stem}{ending}"] = data
            break
    for number, comparison in enumerate(comparisons):
        lines = {
            name: [point for seed in seeds for point in cells[number, name, seed].points] or list(fixed)
            for name, fixed in (comparison.curve or {}).items()
        }
        if any(lines.values()):
            found[f"{stem}-curve{number or ''}.png"] = picture.curves(lines, comparison.axes, comparison.name)
    return found
