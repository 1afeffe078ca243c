"""Endpoints: a server in the test replays recorded answers, failures included, and writes down what it was asked."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from showtell import language
from showtell.errors import ShowtellError

pytest.importorskip("openai")


def chat(content: str | None) -> tuple[int, dict[str, Any]]:
    """A chat completion as such endpoints send it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
    return 200, {
        "id": "chatcmpl-8f3a", "object": "chat.completion", "created": 1760000000, "model": "tiny-1",
        "choices": [choice], "usage": usage,
    }  # fmt: skip


def refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "error", "param": None, "code": None}}


BUSY = refusal(429, "Rate limit reached for requests per min. Limit: 3 / min.")
SLOW = (0, {})  # answers after the client's patience
GARBAGE = (200, None)


class Recorded:
    """What the server answers, request by request (the last answer again and again), and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def next(self, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.asked.append(body)
            return self.answers[min(len(self.asked), len(self.answers)) - 1]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    records = Recorded()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = records.next({**body, "key": self.headers["Authorization"]})
            if (status, answer) == SLOW:
                time.sleep(0.6)
            data = b"<html>busy" if answer is None else json.dumps(answer).encode()
            try:
                self.send_response(status or 200)
                self.send_header("Content-Type", "application/json" if answer is not None else "text/html")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After-Ms", "1")  # what keeps these tests quick
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client has hung up
                pass

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    yield records
    server.shutdown()
    server.server_close()


def model(**options: Any) -> Any:
    return language.load("openai:tiny-1", **{"cache": False, "retries": 2, "timeout": 5, **options})


def test_chat(recorded: Recorded) -> None:
    recorded.answers = [chat("A ring.")]
    lm = model()
    said = lm.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
                   temperature=0.5, seed=3, stop=["\n"], max_tokens=9)  # fmt: skip
    assert said == "A ring."
    (asked,) = recorded.asked
    assert asked.pop("key") == "Bearer sk-test"
    assert asked == {
        "model": "tiny-1", "temperature": 0.5, "seed": 3, "stop": ["\n"], "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
    }  # fmt: skip


def test_samples_are_requests_with_their_own_seeds(recorded: Recorded) -> None:
    recorded.answers = [chat("x")]
    assert model().complete(["one", "two"], n=2, seed=5, temperature=1.0) == [["x", "x"], ["x", "x"]]
    asked = sorted((a["messages"][0]["content"], a["seed"]) for a in recorded.asked)
    assert asked == [("one", 5), ("one", 6), ("two", 5), ("two", 6)]


def test_answers_keep_the_order_of_the_questions(recorded: Recorded) -> None:
    recorded.next = lambda body: chat(body["messages"][0]["content"].upper())  # type: ignore[method-assign]
    texts = [f"text {i}" for i in range(9)]
    assert model(workers=3).complete(texts) == [[text.upper()] for text in texts]


@pytest.mark.parametrize("failure", [BUSY, refusal(503, "overloaded"), SLOW], ids=["429", "503", "timeout"])
def test_what_may_pass_is_tried_again(recorded: Recorded, failure: tuple[int, Any]) -> None:
    recorded.answers = [failure, failure, chat("at last")]
    assert model(timeout=0.3).chat("hello") == "at last"
    assert len(recorded.asked) == 3


@pytest.mark.parametrize(
    "failure, tries, told",
    [
        (BUSY, 3, r"over its rate limit after 3 attempts: Rate limit reached.*wait, or raise retries="),
        (SLOW, 3, r"gave no answer within 0\.3 s after 3 attempts; raise timeout= or retries="),
        (refusal(500, "boom"), 3, r"answered with status 500: boom"),
        (refusal(401, "Incorrect API key provided: sk-test"), 1, r"refuses the API key; set OPENAI_API_KEY"),
        (refusal(404, "The model does not exist"), 1, r"no such model or address"),
        (refusal(400, "This model's maximum context length is 16 tokens"), 1, r"status 400: This model's maximum"),
        (chat(None), 1, r"sent no answer"),
        (GARBAGE, 1, r"sent no answer"),
    ],
    ids=["429", "timeout", "500", "401", "404", "400", "empty", "html"],
)
def test_failures_are_one_clear_line(recorded: Recorded, failure: tuple[int, Any], tries: int, told: str) -> None:
    recorded.answers = [failure]
    with pytest.raises(ShowtellError, match=told) as caught:
        model(timeout=0.3).chat("hello")
    assert len(recorded.asked) == tries
    assert "\n" not in str(caught.value) and "sk-test" not in str(caught.value)


def test_an_endpoint_that_is_not_there(recorded: Recorded) -> None:
    with pytest.raises(ShowtellError, match=r"cannot reach tiny-1 at http://127\.0\.0\.1:9/v1/ at the only attempt"):
        model(base_url="http://127.0.0.1:9/v1", retries=0).chat("hello")


def test_refused_parameters_are_left_out_from_then_on(recorded: Recorded) -> None:
    recorded.answers = [
        refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        refusal(400, "Unsupported value: 'temperature' does not support 0.5 with this model."),
        chat("yes"),
    ]
    lm = model()
    assert lm.chat("hello", temperature=0.5, max_tokens=7) == lm.chat("again", max_tokens=8) == "yes"
    assert [set(a) & {"max_tokens", "max_completion_tokens", "temperature"} for a in recorded.asked] == [
        {"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"},
        {"max_completion_tokens"}, {"max_completion_tokens"},
    ]  # fmt: skip
    assert recorded.asked[-1]["max_completion_tokens"] == 8


def test_answers_are_cached_on_disk(recorded: Recorded, tmp_path: Path) -> None:
    recorded.answers = [chat("first"), chat("second"), chat("third")]
    assert model(cache=tmp_path).chat("hello") == "first"
    assert model(cache=tmp_path).chat("hello") == "first" and len(recorded.asked) == 1
    assert model(cache=tmp_path).chat("hello", seed=1) == "second", "another seed is another request"
    assert "sk-test" not in "".join(file.read_text() for file in tmp_path.iterdir())
    for file in tmp_path.iterdir():
        file.write_text("{broken")
    assert model(cache=tmp_path).chat("hello") == "third" == model(cache=tmp_path).chat("hello")
    assert len(recorded.asked) == 3


def test_failures_are_not_cached(recorded: Recorded, tmp_path: Path) -> None:
    recorded.answers = [refusal(400, "no"), chat("yes")]
    with pytest.raises(ShowtellError):
        model(cache=tmp_path).chat("hello")
    assert model(cache=tmp_path).chat("hello") == "yes"


def test_the_usual_cache_folder(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOWTELL_CACHE", str(tmp_path))
    recorded.answers = [chat("hi")]
    model(cache=None).chat("hello")
    assert len(list((tmp_path / "language").iterdir())) == 1


def test_a_malformed_answer_is_repaired_once(recorded: Recorded) -> None:
    good = '```json\n{"texts": ["a crimson ring", "a ring in red"]}\n```'
    recorded.answers = [chat('{"texts": ["a crimson ring", "a ring'), chat(good)]
    assert model().paraphrase("a red ring", 2) == ["a crimson ring", "a ring in red"]
    first, second = recorded.asked
    assert first["response_format"]["json_schema"]["schema"]["required"] == ["texts"]
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    assert "there is no JSON in it" in second["messages"][-1]["content"]
    recorded.answers = [chat("I would rather not.")]
    with pytest.raises(ShowtellError, match="gave no usable answer, also after one repair: there is no JSON in it"):
        model().paraphrase("a red ring")


def test_keys_and_names(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.answers = [chat("hi")]
    model(api_key="sk-other").chat("hello")
    monkeypatch.delenv("OPENAI_API_KEY")
    model().chat("hello")
    assert [a["key"] for a in recorded.asked] == ["Bearer sk-other", "Bearer none"], "an own endpoint needs no key"
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ShowtellError, match="no API key: set OPENAI_API_KEY"):
        model()
    with pytest.raises(ShowtellError, match="name the model"):
        language.load("openai:")
    with pytest.raises(ShowtellError, match="unknown option 'speed'; use some of: base_url, api_key"):
        model(speed=3)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ShowtellError, match=r"pip install 'showtell\[remote\]'"):
        model()


def test_a_cache_that_cannot_be_written(tmp_path: Path, recorded: Recorded) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShowtellError, match="cannot keep answers in"):
        model(cache=tmp_path / "file")
