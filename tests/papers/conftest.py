"""Gathers which paper is tested on which family, from the marks of the tests: what docs/matrix.md is made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matrix

SEEN: set[Path] = set()
CELLS: matrix.Cells = {}


def pytest_itemcollected(item: Any) -> None:
    SEEN.add(item.path)
    for mark in item.iter_markers("host"):
        slug, family, *reason = mark.args
        CELLS[slug, family.replace("-", "_")] = reason[0] if reason else ""


def pytest_collection_finish(session: Any) -> None:
    session.config.stash[matrix.CELLS] = CELLS if matrix.TESTS <= SEEN else None
    if os.environ.get(matrix.WRITE):
        matrix.PAGE.write_text(matrix.page(CELLS))
