"""What it saves to end a look at the attention early, and to keep within a budget of memory: ratios, side by side.

    python benchmarks/gradients.py [--images 8]

Gradient steps on the latents (`AttentionGradient`) on the packaged UNet, reading the places that papers read. Time: of
whole passes against passes that end at the last place read. Memory: what autograd keeps of one evaluation without a
budget, with half of it, and with none. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

import showtell
from showtell.bridges.loop import DenoisingRun
from showtell.bridges.memory import within
from showtell.steer.gradients import AttentionGradient, inside
from showtell.steer.maps import places

BOXES = {"red ring": (0.0, 0.0, 0.5, 1.0), "blue star": (0.5, 0.0, 1.0, 1.0)}
ROUNDS = 3


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def speed(bridge: Any, prompts: list[str], **where: Any) -> float:
    """Whole passes / passes that end early, the median of rounds that take turns."""
    technique = AttentionGradient(inside(BOXES), where=places(**where), size=0.05, until=0.5, refinements=2)

    def sampled() -> None:
        bridge.generate(prompts, using=[technique], output_type="latent", seed=0)

    look, ratios = DenoisingRun.look, []
    sampled()
    for _ in range(ROUNDS):
        early = seconds(sampled)
        DenoisingRun.look = DenoisingRun.evaluate  # type: ignore[method-assign,assignment]
        ratios.append(seconds(sampled) / early)
        DenoisingRun.look = look  # type: ignore[method-assign]
    return sorted(ratios)[ROUNDS // 2]


def kept(bridge: Any, prompts: list[str], budget: int) -> int:
    """Bytes that autograd keeps of one evaluation."""
    run = bridge.begin(prompts, seed=0)
    with torch.enable_grad(), within(bridge.adapter.denoiser, budget) as saved:
        run.evaluate(run.latents.requires_grad_()).sum().backward()
    return saved.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    prompts = ["a red ring left of a blue star"] * parser.parse_args().images
    bridge = showtell.load("unet")
    whole = kept(bridge, prompts, 2**60)
    found = {
        "whole passes / early end, all places": speed(bridge, prompts),
        "whole passes / early end, places on the way down": speed(bridge, prompts, depths=(0.0, 0.5)),
        "MB kept without a budget": whole / 2**20,
        "kept with half of it / without": kept(bridge, prompts, whole // 2) / whole,
        "kept with none / without": kept(bridge, prompts, 0) / whole,
    }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
