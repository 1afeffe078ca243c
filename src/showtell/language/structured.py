"""Answers in JSON: how a model is asked for a form, how its answer is found in the text, and what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from showtell.errors import ShowtellError

_THOUGHT = re.compile(r"<think>.*?</think>", re.S)


def request(schema: dict[str, Any]) -> str:
    """The sentence that asks for JSON of a schema."""
    text = json.dumps(schema, ensure_ascii=False)
    return f"Answer with JSON that fits this JSON Schema, and with nothing else:\n{text}"


def read(answer: str, form: TypeAdapter[Any]) -> Any:
    """The first JSON value in the answer that fits the form: thoughts, fences and talk around it do not matter.

    ShowtellError, in one line, where there is none.
    """
    problem = "there is no JSON in it"
    for value in _values(_THOUGHT.sub("", answer)):
        try:
            return form.validate_python(value)
        except ValidationError as error:
            problem = _problem(error)
    raise ShowtellError(problem)


def spoken(answer: str) -> str:
    """A plain answer without thoughts, blanks and quotation marks around it."""
    return _THOUGHT.sub("", answer).strip().strip("\"'“”`").strip()


def _values(text: str) -> list[Any]:
    """Every JSON object and array in the text, outermost only."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while match := re.compile(r"[\[{]").search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
            found.append(value)
        except json.JSONDecodeError:
            at = match.end()
    return found


def _problem(error: ValidationError) -> str:
    wrong = [f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in error.errors()[:3]]
    return "; ".join(wrong)
