"""Techniques of papers by name: "frap:step_size=0.5" becomes `Frap(step_size=0.5)`."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

from showtell.bridges.base import Technique
from showtell.bridges.together import check_together
from showtell.errors import ShowtellError
from showtell.papers import Paper, find
from showtell.steer.regions import Box, Region

Layouts = Sequence[Sequence[tuple[str, Box]]]
"""For every prompt, its objects: what is said of one, and its box (left, top, right, bottom) in [0, 1]."""

Kind = Callable[..., Technique]
"""A class of techniques, or a function that makes one."""

PLANNED = ("regions", "boxes", "layout")
"""Parameters that say where things are; where they are required and not given, a plan fills them in."""


def read(spec: str) -> tuple[Paper, dict[str, Any]]:
    """The paper and the options of "SLUG:key=value,key=value"; values are Python literals, anything else is a text.

    Raises ShowtellError: unknown paper, an option without a value.
    """
    name, _, rest = spec.partition(":")
    options = {}
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ShowtellError(f"cannot read {part!r} in --using {spec}; write SLUG:key=value,key=value")
        options[key.strip()] = _value(value.strip())
    return find(name), options


def _parts(text: str) -> list[str]:
    """Pieces between commas that lie in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def technique_of(paper: Paper) -> Kind:
    """What makes the technique that the paper brings: the class or function named like it, else the class that its
    `for_prompts` makes, else the first class that extends no other one of its file.

    Raises ShowtellError: the paper is not written yet, or brings no technique.
    """
    module = paper.module()
    own = [kind for kind in vars(module).values() if getattr(kind, "__module__", None) == module.__name__]
    kinds = [kind for kind in own if _is_technique(kind) and not kind.__name__.startswith("_")]
    named = [kind for kind in kinds if kind.__name__.lower() == paper.slug.replace("_", "")]
    makers = [kind for kind in own if inspect.isfunction(kind) and kind.__name__ == paper.slug]
    first = [kind for kind in kinds if not any(base in kinds for base in kind.__bases__)]
    if (prepared := getattr(module, "for_prompts", None)) is not None and _is_technique(brought := _returned(prepared)):
        first.insert(0, brought)
    if makers and "bridge" in inspect.signature(makers[0]).parameters:
        raise ShowtellError(f"{paper.slug} samples more than once: call {module.__name__}.{paper.slug} from Python")
    if not named + makers + first:
        raise ShowtellError(f"{paper.slug} ({paper.kind}) brings no technique that a bridge could use while it samples")
    return (named + makers + first)[0]


def _is_technique(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Technique) and kind is not Technique


def _returned(function: Callable[..., Any]) -> Any:
    """What a function says that it returns."""
    return get_type_hints(function).get("return")


def _called(kind: Kind) -> str:
    return getattr(kind, "__name__", str(kind))


def needs_plan(kind: Kind, options: Mapping[str, Any]) -> bool:
    """Whether the technique wants to know where things are and was not told."""
    return bool(_missing(kind, options) & set(PLANNED))


def _missing(kind: Kind, options: Mapping[str, Any]) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.default is p.empty and p.kind not in named} - set(options)


def build(kind: Kind, options: Mapping[str, Any], layouts: Layouts | None = None) -> Technique:
    """An instance with these options, and with `layouts` for what it has to know of places.

    Raises ShowtellError: options it does not have, options it lacks, values it refuses.
    """
    given = dict(options)
    _check_options(kind, options)
    for name in sorted(_missing(kind, given)):
        if name not in PLANNED or layouts is None:
            raise ShowtellError(f"{_called(kind)} needs {name}; give it as {name}=...")
        given[name] = _planned(name, _hint(kind, name), layouts)
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ShowtellError(f"{_called(kind)}: {error}") from None


def _check_options(kind: Kind, options: Mapping[str, Any]) -> None:
    """Raises ShowtellError for the first that it does not have."""
    parameters = inspect.signature(kind).parameters
    for name in options:
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ShowtellError(f"{_called(kind)} has no option {name!r}{hint} It takes: {', '.join(parameters)}")


def _hint(kind: Kind, name: str) -> str:
    """The type of a parameter, in words."""
    try:
        return str(get_type_hints(vars(kind).get("__init__", kind))[name])
    except (NameError, KeyError, TypeError):
        return str(inspect.signature(kind).parameters[name].annotation)


def _planned(name: str, annotation: str, layouts: Layouts) -> Any:
    """The layouts in the form that a parameter asks for, one entry per prompt."""
    if "Region" in annotation:
        return [[Region(phrase, box) for phrase, box in one] for one in layouts]
    if "Mapping" in annotation or "dict" in annotation:
        return [dict(one) for one in layouts]
    if name == "layout":
        return [list(one) for one in layouts]
    return [[box for _, box in one] for one in layouts]


def made(
    paper: Paper, options: Mapping[str, Any], prompts: Sequence[str], layouts: Layouts | None = None
) -> list[Technique]:
    """What the paper brings, for these prompts: boxes come from `layouts`, or from the embedded planner; what else is
    to be known of a prompt is read from it by the paper's own `for_prompts(prompts, language_model, **options)`.

    Raises ShowtellError: nothing that a bridge could use, options that it does not have, lacks or refuses.
    """
    kind, prepared = technique_of(paper), getattr(paper.module(), "for_prompts", None)
    if prepared is not None and not set(options) & _missing(kind, {}):
        from showtell import language

        _check_options(kind, options)
        brought = build(partial(prepared, list(prompts), language.load()), options)
        return list(brought) if isinstance(brought, Sequence) else [brought]
    planned = needs_plan(kind, options)
    return [build(kind, options, (layouts or plan(prompts)) if planned else None)]


def techniques(specs: Sequence[str], prompts: Sequence[str]) -> list[Technique]:
    """The techniques of `--using`, in order; where they need boxes, the layout planner places what the prompts name.

    Raises ShowtellError: as `made`; two that cannot be used together.
    """
    chosen = [one for paper, options in map(read, specs) for one in made(paper, options, prompts)]
    check_together(chosen)
    return chosen


def plan(prompts: Sequence[str]) -> list[list[tuple[str, Box]]]:
    """Where the embedded planner of `showtell.language` would put the objects of each prompt."""
    from showtell import language

    model = language.load()
    layouts = {text: model.plan_layout(text) for text in dict.fromkeys(prompts)}
    return [[(one.phrase, one.box) for one in layouts[text].placed] for text in prompts]
