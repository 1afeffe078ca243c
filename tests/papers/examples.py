"""Running a paper's EXAMPLE that loads several checkpoints, with tiny bridges in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hosts

import showtell


class Small:
    """A tiny bridge whose calls take short keywords where the caller gives none."""

    def __init__(self, name: str, **more: Any) -> None:
        kept = {"output_type", "seed", "guidance_scale"}
        self._bridge = hosts.bridge_of(name)
        self._call = {key: value for key, value in hosts.keywords(name).items() if key not in kept} | more

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bridge, name)

    def generate(self, prompts: Any, **more: Any) -> list[Any]:
        return self._bridge.generate(prompts, **{**self._call, **more})


def run_example(source: str, monkeypatch: Any, bridges: Mapping[str, Any]) -> dict[str, Any]:
    """Executes EXAMPLE with `showtell.load(id)` giving the bridge whose key occurs in the id; its variables."""
    monkeypatch.setitem(
        showtell.__dict__, "load", lambda name, **more: next(b for part, b in bridges.items() if part in name)
    )
    variables: dict[str, Any] = {}
    exec(source, variables)
    return variables
