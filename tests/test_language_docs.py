"""Every line of docs/language.md runs, on the embedded grammar and on a scripted endpoint; the table is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from showtell import language
from showtell.errors import UnsupportedError

PAGE = (Path(__file__).parent.parent / "docs" / "language.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS[:2]:
        exec(block, names)
    said = capsys.readouterr().out
    for shown in re.findall(r"print\(.*# (\[.*\])", BLOCKS[0]):
        assert shown in said
    assert names["lm"].answer(names["prompt"], "is the ring left of the star?") == "yes"
    assert "['the red ring is not left of the blue star']" in said and len(names["layout"].placed) == 4


def test_the_endpoint_block_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    remote = pytest.importorskip("openai") and language.RemoteModel
    asked: list[dict[str, Any]] = []

    def request(self: Any, call: dict[str, Any]) -> str:
        asked.append(call)
        return '["red", "blue"]' if "JSON" in call["messages"][-1]["content"] else "red"

    monkeypatch.setattr(remote, "_request", request)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("SHOWTELL_CACHE", "/nonexistent/cannot")
    monkeypatch.setattr("showtell.language.remote._answers", lambda cache: None)
    exec(BLOCKS[2], {"language": language})
    assert capsys.readouterr().out.splitlines() == ["red", "['red', 'red', 'red']", "['red', 'blue']"]
    assert {call["model"] for call in asked} == {"gpt-4o-mini"} and len(asked) == 5


def test_the_table_names_every_task_and_is_true() -> None:
    rows = [row.split("|")[1:4] for row in PAGE.splitlines() if row.startswith("| `")]
    arguments = {"answer": ["is there a cat?"], "critique": ["a cat"], "translate": ["zh"], "edit": ["make it red"]}
    arguments["structured"], arguments["sample"] = [list], [1]
    lm, seen = language.load(), set()
    for tasks, _, other in rows:
        for task in re.findall(r"`(\w+)`", tasks):
            seen.add(task)
            call: Any = getattr(lm, task)
            if other.strip().startswith(("yes", "`swap`")):
                assert call("a white cat on a red mat", *arguments.get(task, []))
            else:
                with pytest.raises(UnsupportedError):
                    call("a white cat on a red mat", *arguments.get(task, []))
    public = {name for name in dir(language.LanguageModel) if not name.startswith("_")} - {"complete", "name"}
    assert seen == public
