"""Every line of docs/steer.md runs, on a small embedded bridge with random weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import showtell
from showtell import steer
from showtell.bridges.embedded import EmbeddedBridge
from showtell.nets.flow_lm import FlowLM, FlowLMConfig
from showtell.train.recipes import packaged_codec

PAGE = (Path(__file__).parent.parent / "docs" / "steer.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
ROWS = [row.split(" | ") for row in PAGE.splitlines() if row.startswith("| `")]


def test_every_line_runs(monkeypatch: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = packaged_codec()
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        bridge = EmbeddedBridge(FlowLM(FlowLMConfig(vocab_size=len(codec.tokenizer), **small)), codec)
    bridge.adapter.steps = 2
    monkeypatch.setitem(showtell.__dict__, "load", lambda: bridge)
    names: dict[str, Any] = {}
    assert len(ROWS) > 25 and len(BLOCKS) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(BLOCKS[0], names)
        plain = np.asarray(bridge.generate(names["prompt"])[0])
        for row in ROWS:
            exec(row[2].strip("`"), names)
        exec(BLOCKS[1], names)
    # Nothing of all this stays with the bridge.
    assert np.array_equal(np.asarray(bridge.generate(names["prompt"])[0]), plain)
    assert len(names["found"]) == 8 and len(names["recording"].parts) > 0


def test_every_technique_is_in_the_table() -> None:
    listed = {row[0].strip("| `") for row in ROWS}
    for file in Path(steer.__path__[0]).glob("*.py"):
        for name in re.findall(r"^class (\w+)\(Technique\)", file.read_text(), re.M):
            assert f"{file.stem}.{name}" in listed
