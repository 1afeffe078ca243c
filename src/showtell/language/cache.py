"""Answers kept on disk: the same request is paid for once, and a result can be had again without the endpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from showtell.errors import ShowtellError
from showtell.files import write


def default_folder() -> Path:
    """`language` in the folder that SHOWTELL_CACHE names, or in ~/.cache/showtell."""
    return Path(os.environ.get("SHOWTELL_CACHE") or Path.home() / ".cache" / "showtell") / "language"


class Answers:
    """One file per answer, named by a hash of all that decides it. What cannot be read counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ShowtellError(f"cannot keep answers in {folder}: {reason}; give cache=False or a folder") from None

    def _path(self, request: Mapping[str, Any]) -> Path:
        text = json.dumps(request, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def get(self, request: Mapping[str, Any]) -> str | None:
        try:
            return str(json.loads(self._path(request).read_text(encoding="utf-8"))["answer"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, request: Mapping[str, Any], answer: str) -> None:
        write(self._path(request), json.dumps({"request": request, "answer": answer}, ensure_ascii=False, indent=1))
