"""All methods of a shelf side by side on the same base, prompts and seeds: how right the pictures are, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.cost import counted, network_of, peak_memory, spent
from showtell.measure.statistics import Interval, interval
from showtell.reproduce.ground import PLAIN, Ground, said
from showtell.reproduce.runner import Show

_MEASURED = 4  # prompts for the costs that need instruments


@dataclass(frozen=True)
class Entry:
    """One method. score: of the task's metric; gain: over plain sampling, paired. seconds: per image, of processor time
    (wall time where a GPU does the work); time: as a multiple of plain sampling. nfe: samples that the network
    evaluated, per image. memory: bytes at the peak beyond those of plain sampling, for 4 prompts together."""

    name: str
    score: Interval
    gain: Interval
    seconds: float
    time: float
    nfe: float
    memory: int


@dataclass(frozen=True)
class SideBySide:
    """entries: plain sampling first, then the methods, best first. left_out: method -> why it could not run here."""

    shelf: str
    task: str
    base: str
    metric: str
    n: int
    seeds: int
    seed: int
    entries: list[Entry]
    left_out: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(heads, rows) for people."""
        heads = ["method", f"{self.metric} on {self.task}", "against plain", "time", "NFE", "extra memory"]
        rows = []
        for one in self.entries:
            costs = [f"{one.time:.2f}x", f"{one.nfe:.0f}", f"{one.memory / 2**20:+.1f} MB"]
            rows.append([one.name, said(one.score, ".3f"), said(one.gain), *costs])
        return heads, rows


def compare(
    shelf: str,
    task: str = "pairs",
    base: str = "unet",
    metric: str = "whole",
    prompts: int = 64,
    seeds: int = 3,
    seed: int = 0,
    show: Show | None = None,
) -> SideBySide:
    """Every method of the shelf that a bridge can use while it samples, against plain sampling.

    base: a packaged base, or what `showtell.load` takes. Methods that need boxes get those of the prompt set.
    Raises ShowtellError: an unknown shelf, prompt set, base or metric.
    """
    ground = Ground.open(shelf, task, base, metric, prompts, seeds, seed, show)
    scores: dict[str, np.ndarray] = {}
    entries: list[Entry] = []
    for name in ground.lab.progress(ground.methods, shelf):
        try:
            rows, seconds = _scored(ground, name)
            nfe, memory = _instruments(ground, name)
        except ShowtellError as error:
            if name == PLAIN:
                raise
            ground.left_out[name] = str(error)
            continue
        scores[name] = rows
        each, first = seconds / rows.size, entries[0] if entries else None
        entries.append(
            Entry(
                name,
                interval(rows),
                interval(rows - scores[PLAIN]),
                each,
                each / first.seconds if first else 1.0,
                nfe,
                memory,
            )
        )
    plain, *others = [replace(entry, memory=entry.memory - entries[0].memory) for entry in entries]
    ranked = [plain, *sorted(others, key=lambda entry: -entry.score.mean)]
    return SideBySide(shelf, task, base, metric, prompts, seeds, seed, ranked, ground.left_out)


def _scored(ground: Ground, name: str) -> tuple[np.ndarray, float]:
    """(scores (seeds, prompts), seconds of sampling). A short first call pays for what is loaded once."""
    ground.sample(name, seed=0, count=1)
    rows, seconds = [], 0.0
    for seed in ground.lab.seeds:
        start = spent()
        images = ground.sample(name, seed=seed)
        seconds += spent() - start
        rows.append(ground.score(images))
    return np.stack(rows), seconds


def _instruments(ground: Ground, name: str) -> tuple[float, int]:
    """(samples that the network evaluated per image, bytes at the peak)."""
    sample = partial(ground.sample, name, seed=0, count=_MEASURED)
    with counted([network_of(ground.bridge)]) as calls:
        sample()
    return sum(calls) / min(_MEASURED, len(ground.texts)), peak_memory(sample)


def plot(found: SideBySide, path: Path) -> None:
    """Accuracy with its interval against what it costs, as an image file: time, evaluations, extra memory."""
    import io

    from matplotlib.figure import Figure
    from PIL import Image

    from showtell import pictures

    costs: dict[str, Callable[[Entry], float]] = {
        "time, as a multiple of plain sampling": lambda entry: entry.time,
        "evaluations of the network, per image": lambda entry: entry.nfe,
        "extra memory for 4 images, MB": lambda entry: entry.memory / 2**20,
    }
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True)
    for axes, (cost, of) in zip(panels, costs.items()):
        for number, entry in enumerate(found.entries):
            score, x = entry.score, of(entry)
            spread = [[score.mean - score.low], [score.high - score.mean]]
            axes.errorbar(x, score.mean, yerr=spread, fmt="o", capsize=3, color=f"C{number % 10}", label=entry.name)
        axes.set(xlabel=cost)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=f"{found.metric} on {found.task}")
    figure.suptitle(f"{found.shelf} on {found.base}, {found.n} prompts, {found.seeds} seeds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pictures.save(Image.open(buffer).convert("RGB"), path)
