"""What a paper's `experiment(lab)` is given and what it returns: the bases, prompts and seeds that every arm shares,
and the arms themselves. Running them, keeping results and judging them is the business of `showtell.reproduce`.

    def experiment(lab: Lab) -> Comparison:
        bridge, prompts = lab.base("unet"), lab.prompts("pairs")
        return lab.compare(
            {"frap": lambda seed: bridge.generate(prompts.texts, using=[Frap()], seed=seed),
             "plain": lambda seed: bridge.generate(prompts.texts, seed=seed),
             "step size 0": lambda seed: bridge.generate(prompts.texts, using=[Frap(step_size=0)], seed=seed)},
            metric=prompts.binding, expect="frap > plain", control="step size 0")
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from showtell import weights
from showtell.errors import ShowtellError
from showtell.measure import provenance
from showtell.measure.statistics import MARGIN, parse

if TYPE_CHECKING:
    from torch import Tensor

    from showtell.measure.prompts import PromptSet

PROMPTS = 64
SEEDS = 3
STEPS = 20
"""Sampling steps of a base, unless an arm names its own or the base wants fewer: the packaged ones are as right after
20 as after 50 (`pairs` of the validation split), and every experiment is as much quicker."""
Arm = Callable[[int], Any]
Points = list[tuple[float, float]]
T = TypeVar("T")


class MissingBase(ShowtellError):
    """A base that is not among the weights: the paper cannot be run here, which says nothing about its claim."""


@dataclass(frozen=True)
class Comparison:
    """Arms of one experiment and what is expected of them; made by `Lab.compare`.

    arms: name -> what to run for a seed, the method first. metric: what scores an arm's output, (items,) floats, or
    None where the arms return scores themselves. name: what the metric is called. expect, control, margin: see
    `showtell.measure.statistics.verdict`. curve: arm -> points (x, y), which an arm may extend while it runs.
    texts: what the items are, for the picture. trained: the items of a seed share a training run or a search; see
    `statistics.interval`.
    """

    arms: Mapping[str, Arm]
    metric: Callable[..., Any] | None
    expect: str
    control: str | None
    name: str
    margin: float = MARGIN
    curve: Mapping[str, Points] | None = None
    axes: tuple[str, str] = ("", "")
    texts: list[str] = field(default_factory=list)
    trained: bool = False

    @property
    def judged_twice(self) -> bool:
        """Whether the metric can ask the second judge too: it then takes `judge=`."""
        if self.metric is None:
            return False
        try:
            return "judge" in inspect.signature(self.metric).parameters
        except (TypeError, ValueError):
            return False


class Lab:
    """Material for one paper's experiment, the same for every arm.

    seed: draws the prompts and derives the seeds, so that another one is another experiment. n: prompts of a set.
    seeds: the seeds that each arm runs with.
    """

    def __init__(
        self,
        paper: str = "draft",
        file: Path | None = None,
        *,
        n: int = PROMPTS,
        seed: int = 0,
        seeds: int = SEEDS,
        show: Callable[[Iterable[Any], str], Iterator[Any]] | None = None,
        draw: Callable[..., PromptSet] | None = None,
        split: str = "test",
    ) -> None:
        """paper, file: whose experiment this is and where its code lies. show: wraps an iterable in a progress bar.

        draw: takes the place of `showtell.measure.prompts.prompt_set`. split: where `prompts` come from; "validation"
        is for trying an experiment out.
        Raises ShowtellError: no prompts or no seeds.
        """
        if n < 1 or seeds < 1 or seed < 0:
            raise ShowtellError(
                f"cannot experiment with {n} prompts, {seeds} seeds and seed {seed}; give 1, 1, 0 or more"
            )
        self.paper, self.n, self.seed = paper, n, seed
        self.seeds = [1000 * seed + number for number in range(seeds)]
        self.weights: dict[str, str] = {}
        """Name -> hash of every base opened so far."""
        self.drawn: list[str] = []
        """Names of the prompt sets drawn so far."""
        self.opened: dict[str, Any] = {}
        """Name -> the base that all arms share."""
        self.trainings = 0
        """How often `trained` was asked for something."""
        self.split = split
        self._file, self._show, self._draw = file, show, draw
        self._texts: list[str] = []

    # --- what experiments are made of

    def base(self, name: str, fresh: bool = False) -> Any:
        """The base `name` of the packaged weights as a bridge; "bridge" is the embedded one.

        Arms share it, so they must leave its weights as they are (the runner checks); fresh: a copy to train on.
        A folder that holds a bare network (an autoencoder) comes back as that network.
        Raises MissingBase: there are no such weights; the line says how to train them.
        """
        try:
            place = weights.folder(name)
        except ShowtellError as error:
            raise MissingBase(str(error)) from None
        self.weights[name] = provenance.weights_hash(place)
        if fresh:
            return _open(str(place))
        self.opened[name] = _shared(str(place), self.weights[name])
        return self.opened[name]

    def prompts(self, name: str, n: int | None = None, **more: Any) -> PromptSet:
        """n prompts (by default `lab.n`) of a set, from the test split, drawn with `lab.seed`.

        more: keywords of `prompt_set`, such as kinds=["left of", "right of"].
        """
        drawn = self._prompt_set(name, n, self.split, **more)
        self.drawn.append(name)
        self._texts = list(getattr(drawn, "texts", []))
        return drawn

    def validation(self, name: str, n: int | None = None, **more: Any) -> PromptSet:
        """The same from the validation split: for whatever is tuned."""
        return self._prompt_set(name, n, "validation", **more)

    def _prompt_set(self, name: str, n: int | None, split: str, **more: Any) -> PromptSet:
        if self._draw is None:
            from showtell.measure.prompts import prompt_set

            self._draw = prompt_set
        return self._draw(name, n or self.n, self.seed, split=split, **more)

    def progress(self, items: Iterable[T], what: str = "") -> Iterator[T]:
        """The items, one after the other, with a progress bar where one is shown."""
        yield from self._show(items, what) if self._show else items

    def trained(
        self, key: str, make: Callable[..., Any], seed: int = 0, *, shared: bool = False, **sizes: Any
    ) -> dict[str, Tensor]:
        """What make() or make(seed) returns, a state dict or a module, made once and kept.

        It is kept by paper, key, seed, sizes and code, under $SHOWTELL_CACHE, and made again where a base that was
        open then has changed, and for another `lab.seed`, which draws other prompts. shared: it depends on no prompts,
        so that every `lab.seed` has it in common. sizes: what else it depends on, such as n=lab.n.
        A `make` that lives outside the paper's file is shared by all papers that name it.
        """
        import torch

        from showtell.train import checkpoint

        self.trainings += 1
        owner, code = self._owner(make)
        drawn = None if shared else [self.seed, self.split]
        named = json.dumps([key, seed, sizes, drawn], sort_keys=True, default=str)
        folder = provenance.cache_folder() / "trained" / owner / provenance.digest(named, code)
        try:
            kept = checkpoint.load(folder)
        except ShowtellError:  # damaged: made again
            kept = None
        if kept is not None and unchanged(kept[1]["weights"]):
            return kept[0]
        with torch.enable_grad():  # an arm may be drawn without gradients; training needs them
            tensors = _state_dict(make(seed) if _takes_seed(make) else make())
        checkpoint.save(folder, tensors, {"key": named, "weights": self.weights})
        return tensors

    def network(
        self, key: str, blank: Callable[[int], Any], learn: Callable[[Any, int], Any], seed: int = 0, **more: Any
    ) -> Any:
        """The network blank(seed) as learn(network, seed) trains it in place, in eval mode; kept as by `trained`.

        learn: a function of the paper's file, on whose code what is kept depends. more: as for `trained`.
        """

        @wraps(learn)  # whose code decides, not this file's
        def make(seed: int) -> Any:
            model = blank(seed)
            learn(model, seed)
            return model

        made = blank(seed)
        made.load_state_dict(self.trained(key, make, seed, **more))
        return made.eval()

    def _owner(self, make: Callable[..., Any]) -> tuple[str, str]:
        """(whose the result is, hash of the code that makes it)."""
        function = make
        while isinstance(function, partial):
            function = function.func
        module = sys.modules.get(getattr(function, "__module__", ""), None)
        home = getattr(module, "__file__", None)
        if home and self._file and Path(home) != self._file and Path(home).is_relative_to(provenance.PACKAGE):
            bound = repr(make.args) + repr(make.keywords) if isinstance(make, partial) else ""
            name = f"{function.__module__}.{getattr(function, '__qualname__', '')}"
            return name.removeprefix("showtell."), provenance.digest(provenance.code_hash(Path(home)), bound)
        return self.paper, provenance.deep_hash(self._file) if self._file else ""

    # --- what it returns

    def compare(
        self,
        arms: Mapping[str, Arm],
        metric: Callable[..., Any] | None = None,
        *,
        expect: str,
        control: str | None = None,
        margin: float = MARGIN,
        name: str | None = None,
        curve: Mapping[str, Points] | None = None,
        axes: tuple[str, str] = ("", ""),
        trained: bool = False,
        texts: Sequence[str] | None = None,
    ) -> Comparison:
        """An experiment of these arms; nothing runs yet.

        arms: name -> function of a seed; the first is the method. It returns images, clips or anything that `metric`
        takes; without a metric it returns the scores, (items,), or a pair of scores and images to show.
        metric: output -> scores, more is better unless `expect` says otherwise; called again with judge="second" where
        it has that parameter. expect, control, margin: see `showtell.measure.statistics`. name: of the metric.
        trained: an arm trains or searches once per seed, so that its items share luck; known already where arms call
        `lab.trained`.
        texts: what the items are, over the picture; by default the prompts that were drawn last.
        curve: arm -> list of points, read after the arms have run, so that they may add to it; axes: names of x and y.
        Raises ShowtellError: expect or control names no arm, or cannot be read.
        """
        parse(expect, arms)
        if control is not None and control not in arms:
            raise ShowtellError(f"the control {control!r} is none of the arms: {', '.join(arms)}")
        if curve is not None and not set(curve) <= set(arms):
            strange = ", ".join(sorted(set(curve) - set(arms)))
            raise ShowtellError(f"the curve names {strange}, none of the arms: {', '.join(arms)}")
        called = name or _called(metric)
        said = self._texts if texts is None else list(texts)
        return Comparison(dict(arms), metric, expect, control, called, margin, curve, axes, said, trained)

    def compare_by(
        self, metrics: Iterable[Callable[..., Any]], arms: Mapping[str, Arm], **more: Any
    ) -> list[Comparison]:
        """The same arms by several metrics, the first of which is the headline. An arm still runs once per seed."""
        return [self.compare(arms, metric, **more) for metric in metrics]


def as_comparisons(result: Any) -> list[Comparison]:
    """What an experiment returned, as a list. Raises ShowtellError for anything else."""
    found = list(result) if isinstance(result, Sequence) else [result]
    if not found or not all(isinstance(one, Comparison) for one in found):
        raise ShowtellError("an experiment returns what lab.compare(...) made, or a list of that")
    return found


def unchanged(hashes: Mapping[str, str]) -> bool:
    """Whether weights still are what they were."""
    try:
        return all(provenance.weights_hash(weights.folder(name)) == known for name, known in hashes.items())
    except ShowtellError:
        return False


def _called(metric: Callable[..., Any] | None) -> str:
    function = metric.func if isinstance(metric, partial) else metric
    name = getattr(function, "__name__", "score")
    return "score" if name == "<lambda>" else name.strip("_").replace("_", " ")


def _takes_seed(make: Callable[..., Any]) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _state_dict(made: Any) -> dict[str, Tensor]:
    import torch

    mapping = made.state_dict() if hasattr(made, "state_dict") else made
    if not isinstance(mapping, Mapping):
        raise ShowtellError(f"cannot keep {type(made).__name__} as trained; return a module or a state dict")
    return {str(name): torch.as_tensor(value).detach() for name, value in mapping.items()}


_OPEN: dict[tuple[str, str], Any] = {}


def _shared(place: str, known: str) -> Any:
    """The bridge of a folder, opened once for all papers of a process."""
    if (place, known) not in _OPEN:
        _OPEN[place, known] = _open(place)
    return _OPEN[place, known]


def _open(place: str) -> Any:
    """The bridge of a folder; of a bare diffusers network that is no bridge, the network."""
    import showtell

    config = Path(place) / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None
    if kind is not None:
        import diffusers

        from showtell.bridges.families import family_of

        if family_of(kind) is None and hasattr(diffusers, kind):
            return getattr(diffusers, kind).from_pretrained(place, use_safetensors=True).eval()
    bridge = showtell.load(place)
    adapter: Any = getattr(bridge, "adapter", None)
    if getattr(adapter, "steps", 0) > STEPS:
        adapter.steps = STEPS
    return bridge
