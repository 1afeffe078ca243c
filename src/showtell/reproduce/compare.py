"""All methods of a shelf side by side on the same base, prompts and seeds: how right the pictures are, at what cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.measure.cost import counted, network_of, peak_memory, spent
from showtell.measure.experiment import Lab, MissingBase
from showtell.measure.statistics import Interval, interval
from showtell.papers import Paper, catalogue
from showtell.papers.using import Layouts, made
from showtell.reproduce.runner import Show

PLAIN = "plain"
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
            rows.append([one.name, _said(one.score, ".3f"), _said(one.gain, "+.3f"), *costs])
        return heads, rows


def _said(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


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
    papers = [paper for paper in catalogue(shelf) if paper.implemented]
    lab = Lab("compare", n=prompts, seed=seed, seeds=seeds, show=show)
    drawn, score, bridge, layouts = opened(lab, task, base, metric)
    methods, left_out = methods_of(papers, drawn.texts, layouts)
    scores: dict[str, np.ndarray] = {}
    entries: list[Entry] = []
    for name in lab.progress(methods, shelf):
        sample = partial(_sample, bridge, methods[name], drawn.texts, layouts)
        try:
            rows, seconds = _scored(sample, score, lab.seeds)
            nfe, memory = _instruments(bridge, partial(sample, count=_MEASURED), min(_MEASURED, len(drawn.texts)))
        except ShowtellError as error:
            if name == PLAIN:
                raise
            left_out[name] = str(error)
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
    return SideBySide(shelf, task, base, metric, prompts, seeds, seed, ranked, left_out)


def opened(lab: Lab, task: str, base: str, metric: str) -> tuple[Any, Callable[..., Any], Any, Layouts]:
    """(the prompt set, its metric, the bridge, what is where in each prompt)."""
    drawn = lab.prompts(task)
    if not callable(score := getattr(drawn, metric, None)):
        raise ShowtellError(
            f"prompt sets have no metric {metric!r}; use one such as whole, objects, binding, relations"
        )
    layouts = [list(zip(phrases, map(tuple, boxes))) for phrases, boxes in zip(drawn.phrases, drawn.boxes)]
    return drawn, score, _bridge(lab, base), layouts


def _sample(
    bridge: Any, method: Method, texts: list[str], layouts: Layouts, seed: int, count: int | None = None
) -> Any:
    """Images of the first `count` prompts."""
    return bridge.generate(texts[:count], using=method.using(texts[:count], layouts[:count]), seed=seed)


def _scored(sample: Callable[..., Any], score: Callable[..., Any], seeds: Sequence[int]) -> tuple[np.ndarray, float]:
    """(scores (seeds, prompts), seconds of sampling). A short first call pays for what is loaded once."""
    sample(seed=0, count=1)
    rows, seconds = [], 0.0
    for seed in seeds:
        start = spent()
        images = sample(seed=seed)
        seconds += spent() - start
        rows.append(np.asarray(score(images), dtype=float))
    return np.stack(rows), seconds


def _instruments(bridge: Any, sample: Callable[..., Any], count: int) -> tuple[float, int]:
    """(samples that the network evaluated per image, bytes at the peak)."""
    with counted([network_of(bridge)]) as calls:
        sample(seed=0)
    return sum(calls) / count, peak_memory(partial(sample, seed=0))


def _bridge(lab: Lab, base: str) -> Any:
    """A packaged base by name, else whatever can be loaded."""
    import showtell

    try:
        return lab.base(base)
    except MissingBase:
        if not any(mark in base for mark in "/\\."):
            raise
    return showtell.load(base)


@dataclass(frozen=True)
class Method:
    """Makes the techniques of a paper, or none, for some prompts and the boxes that they state."""

    paper: Paper | None = None

    def using(self, texts: Sequence[str], layouts: Layouts) -> list[Technique]:
        return [] if self.paper is None else made(self.paper, {}, texts, layouts)


def methods_of(
    papers: Sequence[Paper], texts: Sequence[str], layouts: Layouts
) -> tuple[dict[str, Method], dict[str, str]]:
    """Plain sampling and what can be made without being told more; and why the others cannot."""
    methods, left_out = {PLAIN: Method()}, {}
    for paper in papers:
        try:
            Method(paper).using(texts[:1], layouts[:1])
        except ShowtellError as error:
            left_out[paper.slug] = str(error)
        else:
            methods[paper.slug] = Method(paper)
    return methods, left_out


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
