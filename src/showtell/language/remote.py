"""Language models behind OpenAI-compatible endpoints: OpenAI itself, vLLM, llama.cpp, Ollama and many others.

Needs the extra `remote`. Retries with backoff (also on 429, as long as the endpoint's Retry-After asks), timeouts and
connection pools are the `openai` client's own.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from showtell.errors import ShowtellError
from showtell.language.base import LanguageModel, Messages, conversation, positive
from showtell.language.cache import Answers, default_folder

# Parameters that some models or servers refuse; all of them can be done without.
_OPTIONAL = ("response_format", "seed", "stop", "temperature", "max_tokens")
_REFUSAL = re.compile(r"support|unknown|unrecogni[sz]ed|unexpected|extra|not (permitted|allowed)", re.I)


class RemoteModel(LanguageModel):
    """A chat model behind an OpenAI-compatible endpoint.

    model: its name there. base_url, api_key: default OPENAI_BASE_URL and OPENAI_API_KEY; an own base_url may do without
    a key. timeout: seconds for one attempt. retries: further attempts after a failure that may pass (timeout, no
    connection, 408, 409, 429, 5xx). cache: a folder for answers, None for the usual one (see `default_folder`), False
    for none. workers: requests at the same time.
    Raises ShowtellError: the extra is missing, no key, the endpoint cannot be reached or refuses.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        cache: str | Path | bool | None = None,
        workers: int = 4,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise ShowtellError("endpoints need the openai package: pip install 'showtell[remote]'") from None
        if not model:
            raise ShowtellError("name the model, as in 'openai:gpt-4o-mini'")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        if api_key is None:
            raise ShowtellError("no API key: set OPENAI_API_KEY, or give api_key=, or base_url= of your own endpoint")
        self.model, self.retries, self.timeout, self.workers = model, retries, timeout, positive(workers)
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=retries)
        self.base_url = str(self._client.base_url)
        self.name = f"{model} at {self.base_url}"
        self._answers = _answers(cache)
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def complete(
        self,
        conversations: Sequence[Messages],
        *,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        max_tokens: int = 1024,
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        """One request per answer, since many servers ignore `n`: answer i is asked for with the seed `seed + i`."""
        requests = []
        for messages in conversations:
            for i in range(positive(n)):
                request: dict[str, Any] = {
                    "base_url": self.base_url, "model": self.model, "messages": conversation(messages),
                    "temperature": temperature, "seed": seed + i, "max_tokens": positive(max_tokens),
                }  # fmt: skip
                request |= {"stop": [stop] if isinstance(stop, str) else list(stop)} if stop else {}
                if schema is not None and schema.get("type") == "object":
                    form = {"name": "answer", "schema": dict(schema)}
                    request["response_format"] = {"type": "json_schema", "json_schema": form}
                requests.append(request)
        with ThreadPoolExecutor(self.workers) as pool:
            answers = list(pool.map(self._answer, requests))
        return [answers[i : i + n] for i in range(0, len(answers), n)]

    def _answer(self, request: dict[str, Any]) -> str:
        known = self._answers.get(request) if self._answers else None
        if known is not None:
            return known
        answer = self._request(request)
        if self._answers:
            self._answers.put(request, answer)
        return answer

    def _request(self, request: dict[str, Any]) -> str:
        import openai

        call = {name: value for name, value in request.items() if name != "base_url"}
        while True:
            sent = self._allowed(call)
            try:
                reply = self._client.chat.completions.create(**sent)
                break
            except openai.BadRequestError as error:
                said = _said(error)
                refused = next((name for name in _OPTIONAL if name in sent and name in said), None)
                if refused is None or not _REFUSAL.search(said):
                    raise ShowtellError(self._reason(error)) from error
                with self._lock:
                    self._refused.add(refused)
            except openai.OpenAIError as error:
                raise ShowtellError(self._reason(error)) from error
        choices = getattr(reply, "choices", None)
        content = choices[0].message.content if choices else None
        if not content:
            raise ShowtellError(f"{self.name} sent no answer; is it a chat completions endpoint?")
        return str(content)

    def _allowed(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call without what the model has refused before; newer models call max_tokens otherwise."""
        sent = {name: value for name, value in call.items() if name not in self._refused}
        if "max_tokens" in self._refused:
            sent["max_completion_tokens"] = call["max_tokens"]
        return sent

    def _reason(self, error: Exception) -> str:
        """One line on what went wrong and what to do."""
        import openai

        tries = f"after {self.retries + 1} attempts" if self.retries else "at the only attempt"
        match error:
            case openai.APITimeoutError():
                return f"{self.name} gave no answer within {self.timeout:g} s {tries}; raise timeout= or retries="
            case openai.APIConnectionError():
                return f"cannot reach {self.name} {tries}; check base_url= or OPENAI_BASE_URL, and the network"
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return f"{self.name} refuses the API key; set OPENAI_API_KEY or give api_key="
            case openai.NotFoundError():
                return f"{self.name}: no such model or address; check the model's name and base_url="
            case openai.RateLimitError():
                return f"{self.name} is over its rate limit {tries}: {_said(error)}; wait, or raise retries="
            case openai.APIStatusError():
                return f"{self.name} answered with status {error.status_code}: {_said(error)}"
            case _:
                return f"{self.name}: {_line(str(error))}"


def _answers(cache: str | Path | bool | None) -> Answers | None:
    if cache is False:
        return None
    return Answers(default_folder() if cache is None or cache is True else Path(cache))


def _said(error: Any) -> str:
    """What the endpoint says of an error, in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error", body)
    message = inner.get("message") if isinstance(inner, dict) else None
    return _line(str(message or error))


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
