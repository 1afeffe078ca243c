"""What the library knows of its papers, for people and as records: the catalogue, the code, the newest results."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from showtell.papers import Paper, search
from showtell.reproduce import ledger

UNWRITTEN = "not written yet"
UNTRIED = "no result yet"


def results() -> dict[str, ledger.Row]:
    """slug -> the newest row that is here: published, or the user's own."""
    return ledger.latest((ledger.published(), ledger.own()))


def records(query: str = "", shelf: str | None = None) -> list[dict[str, Any]]:
    """One record per paper that fits: what it is, whether it is implemented, and its newest result."""
    rows = results()
    return [_record(paper, rows.get(paper.slug)) for paper in search(query, shelf)]


def _record(paper: Paper, row: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = row or {}
    return {
        "arxiv": paper.arxiv,
        "title": paper.title,
        "slug": paper.slug,
        "shelf": paper.shelf,
        "kind": paper.kind,
        "hosts": list(paper.hosts),
        "implemented": paper.implemented,
        "verdict": kept.get("verdict"),
        "metric": kept.get("metric"),
        "effect": kept.get("effect"),
        "ci": kept.get("ci"),
    }


def described(paper: Paper) -> dict[str, Any]:
    """Everything about one paper: idea, example, experiment, newest result and the files of its pictures."""
    idea, example = _read(paper)
    row = results().get(paper.slug)
    return {
        **_record(paper, row),
        "idea": idea or " ".join(str(paper.row.get("mechanism", "")).split()),
        "example": example,
        "experiment": dict(paper.row.get("experiment", {})),
        "paper_result": paper.row.get("paper_result"),
        "real_use": paper.row.get("real_use"),
        "result": row,
        "pictures": [str(path) for path in ledger.picture_of(row)] if row else [],
    }


def _read(paper: Paper) -> tuple[str, str]:
    """(docstring, EXAMPLE) of a paper's module, without importing it; empty where it is not written."""
    if not paper.implemented:
        return "", ""
    tree = ast.parse(paper.file.read_text(encoding="utf-8"))
    for part in tree.body:
        if isinstance(part, ast.Assign) and [getattr(target, "id", None) for target in part.targets] == ["EXAMPLE"]:
            return ast.get_docstring(tree) or "", str(ast.literal_eval(part.value)).strip("\n")
    return ast.get_docstring(tree) or "", ""


def effect(row: Mapping[str, Any] | None) -> str:
    """ "+0.120 [+0.061, +0.180]" of a row; empty without one."""
    if not row or row.get("effect") is None:
        return ""
    low, high = (("?" if end is None else f"{end:+.3f}") for end in row.get("ci") or (None, None))
    return f"{row['effect']:+.3f} [{low}, {high}]"


def standing(record: Mapping[str, Any]) -> str:
    """The verdict of a record, or why it has none."""
    return record.get("verdict") or (UNTRIED if record["implemented"] else UNWRITTEN)


def text(about: Mapping[str, Any]) -> str:
    """What `described` found, to be read."""
    experiment = about["experiment"]
    parts = [
        f"{about['title']}\narXiv {about['arxiv']}, {about['slug']}, {about['shelf']}, {about['kind']} for "
        f"{', '.join(about['hosts'])}",
        _section("Idea", about["idea"]),
        _section(
            "On a real model", textwrap.indent(about["example"], "    ") or f"    {about['real_use'] or ''}", False
        ),
        _section("Experiment", "\n".join(_experiment(experiment))),
        _section("Result", _result(about), False),
    ]
    if about["pictures"]:
        parts.append("\n".join(about["pictures"]))
    return "\n\n".join(parts)


def _section(title: str, body: str, wrap: bool = True) -> str:
    lines = [textwrap.fill(line, 100) if wrap else line for line in body.splitlines()]
    return "\n".join([title, *lines])


def _experiment(experiment: Mapping[str, Any]) -> Iterator[str]:
    for name in ("task", "metric", "expect", "control"):
        if experiment.get(name):
            yield f"{name}: {' '.join(str(experiment[name]).split())}"
    if experiment.get("arms"):
        yield "arms: " + "; ".join(str(arm) for arm in experiment["arms"])


def _result(about: Mapping[str, Any]) -> str:
    row = about["result"]
    if not row:
        again = f"; `showtell reproduce {about['slug']}` makes one" if about["implemented"] else ""
        return f"{standing(about)}{again}"
    lines = [
        f"{row['verdict']}: {row['metric']}, {row['expect']}, control {row['control'] or 'none'}",
        f"effect {effect(row)}, {row['n']} items, {row['seeds']} seeds, {row['seconds']:.0f} s, base {row['base']}",
        *(f"    {name}: {mean:.3f}" for name, mean in row["arms"].items()),
        f"decided by {row['reason']}",
    ]
    for also in row.get("also", ()):
        lines.append(f"also {also['verdict']}: {also['metric']}, {also['expect']}, effect {effect(also)}")
    return "\n".join(lines)
