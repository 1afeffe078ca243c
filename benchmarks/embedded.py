"""Seconds of the embedded bridge: one image, caption, answer and edit with the model loaded; whole cold commands."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import showtell

PROMPT = "a red ring left of a blue star"


def median(call: Callable[[], object], rounds: int = 5) -> float:
    call()  # the first call warms up
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    warnings.simplefilter("ignore")
    bridge = showtell.load()
    image = bridge.generate(PROMPT)[0]
    rows = {
        "generate one image": lambda: bridge.generate(PROMPT),
        "generate one image, no plan": lambda: bridge.generate(PROMPT, plan=False),
        "generate 16 images, each": lambda: bridge.generate([PROMPT] * 16),
        "caption one image": lambda: bridge.caption(image),
        "answer one question": lambda: bridge.answer(image, "what colour is the ring?"),
        "edit one image": lambda: bridge.edit(image, "make the ring green"),
    }
    print(f"{torch.get_num_threads()} threads, median of 5")
    for name, call in rows.items():
        print(f"{name:32} {median(call) / (16 if '16' in name else 1):7.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.png")
        commands = {"showtell --help": ["--help"], "showtell generate, cold": ["generate", PROMPT, "-o", out]}
        for name, arguments in commands.items():
            seconds = median(
                lambda arguments=arguments: subprocess.run(
                    [sys.executable, "-m", "showtell", *arguments], check=True, capture_output=True
                ),
                rounds=3,
            )
            print(f"{name:32} {seconds:7.3f} s")


if __name__ == "__main__":
    main()
