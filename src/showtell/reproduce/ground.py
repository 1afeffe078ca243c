"""The ground that methods of a shelf share when they are compared: one base, one prompt set, the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.measure.experiment import Lab, MissingBase
from showtell.measure.statistics import Interval
from showtell.papers import Paper, catalogue
from showtell.papers.using import Layouts, made
from showtell.reproduce.runner import Show

PLAIN = "plain"


@dataclass(frozen=True)
class Ground:
    """texts, layouts: the prompts, and what is where in each. judged: images -> a score each. methods: plain sampling
    (None) and all papers of the shelf whose techniques can be made without being told more; left_out: the others ->
    why."""

    lab: Lab
    bridge: Any
    texts: list[str]
    layouts: Layouts
    judged: Callable[[Any], Any]
    methods: dict[str, Paper | None]
    left_out: dict[str, str]

    @classmethod
    def open(
        cls, shelf: str, task: str, base: str, metric: str, prompts: int, seeds: int, seed: int, show: Show | None
    ) -> Ground:
        """base: a packaged base, or what `showtell.load` takes. Raises ShowtellError: an unknown shelf, prompt set,
        base or metric."""
        papers = [paper for paper in catalogue(shelf) if paper.implemented]
        lab = Lab("compare", n=prompts, seed=seed, seeds=seeds, show=show)
        drawn = lab.prompts(task)
        if not callable(judged := getattr(drawn, metric, None)):
            raise ShowtellError(
                f"prompt sets have no metric {metric!r}; use one such as whole, objects, binding, relations"
            )
        layouts = [list(zip(phrases, map(tuple, boxes))) for phrases, boxes in zip(drawn.phrases, drawn.boxes)]
        methods: dict[str, Paper | None] = {PLAIN: None}
        left_out: dict[str, str] = {}
        for paper in papers:
            try:
                made(paper, {}, drawn.texts[:1], layouts[:1])
            except ShowtellError as error:
                left_out[paper.slug] = str(error)
            else:
                methods[paper.slug] = paper
        return cls(lab, _bridge(lab, base), drawn.texts, layouts, judged, methods, left_out)

    def using(self, names: Sequence[str], count: int | None = None) -> list[Technique]:
        """Fresh techniques of these methods, for the first `count` prompts."""
        texts, layouts = self.texts[:count], self.layouts[:count]
        papers = [paper for name in names if (paper := self.methods[name]) is not None]
        return [one for paper in papers for one in made(paper, {}, texts, layouts)]

    def sample(self, *names: str, seed: int, count: int | None = None) -> Any:
        """Images of the first `count` prompts, with these methods together."""
        return self.bridge.generate(self.texts[:count], using=self.using(names, count), seed=seed)

    def score(self, images: Any) -> np.ndarray:
        return np.asarray(self.judged(images), dtype=float)


def _bridge(lab: Lab, base: str) -> Any:
    """A packaged base by name, else whatever can be loaded."""
    import showtell

    try:
        return lab.base(base)
    except MissingBase:
        if not any(mark in base for mark in "/\\."):
            raise
    return showtell.load(base)


def said(found: Interval, form: str = "+.3f") -> str:
    """A mean with its interval, for people."""
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
