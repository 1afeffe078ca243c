"""Rules in the place of a language model: what an agent asks for in JSON, answered by functions.

So that agents run, and are tested, without a model that chats; the embedded grammar does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from showtell.errors import ShowtellError
from showtell.language.base import LanguageModel, Messages, conversation


def tasked(task: str, words: str, **given: Any) -> str:
    """A request that language models can read and `Rules` can too. given: what the task is about, as JSON."""
    return f"Task: {task}\n{words}\nInput: {json.dumps(given)}"


class Rules(LanguageModel):
    """Answers each request of `tasked` by the function of that task, called with what was given; its answer is JSON."""

    name = "the rules of the embedded world"

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.functions = dict(functions)

    def complete(self, conversations: Sequence[Messages], *, n: int = 1, **options: Any) -> list[list[str]]:
        return [[json.dumps(self._answer(conversation(one)[0]["content"]))] * n for one in conversations]

    def _answer(self, asked: str) -> Any:
        task, given = re.search(r"^Task: (.+)$", asked, re.MULTILINE), re.search(r"^Input: (.+)$", asked, re.MULTILINE)
        if task is None or given is None or task[1] not in self.functions:
            raise ShowtellError(f"{self.name} answer nothing but: {', '.join(self.functions)}")
        return self.functions[task[1]](**json.loads(given[1]))
