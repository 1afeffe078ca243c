"""Time of a bridge beside its library pipeline, same weights and call, alternating in one run.

    python benchmarks/bridges.py [--rounds 15] [--family sd]

Prints, per family, the median CPU seconds (one thread, so that a busy machine disturbs little) of the pipeline, of the
bridge (its kept text encodings forgotten before every call, and kept), and of the bridge with a technique that reads
maps at a quarter of the layers; ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import showtell
import tiny


class Read(showtell.Technique):
    """Reads the maps at a quarter of the layers that attend to text, or more where there are few."""

    def wants(self, run: Any, place: Any) -> bool:
        return place.depth % 4 == 1

    def attention(self, run: Any, site: Any) -> None:
        if site.place.text is not None:
            site.maps()


def larger(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline with a denoiser wide enough that its layers, not Python, take the time."""
    pipeline = tiny.make(name)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    config = dict(getattr(pipeline, part).config)
    if part == "unet":
        config.update(block_out_channels=(64, 128), norm_num_groups=16, sample_size=32)
    else:
        config.update(attention_head_dim=32, num_attention_heads=6, num_layers=6)
        if "sample_size" in config:
            config.update(sample_size=32)
        if "caption_projection_dim" in config:
            config.update(caption_projection_dim=192, pos_embed_max_size=64)
        if "axes_dims_rope" in config:
            config.update(axes_dims_rope=(8, 12, 12))
        if "cross_attention_dim" in config:
            config.update(cross_attention_dim=192)
    kind = type(getattr(pipeline, part))
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    setattr(pipeline, part, kind(**config).eval())
    return pipeline, tiny.keywords(name, num_inference_steps=8, height=128, width=128)


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(name: str, rounds: int) -> None:
    pipeline, keywords = larger(name)
    bridge: Any = showtell.load(pipeline)
    prompt = "a red ring left of a blue star"
    generator = torch.Generator()

    def ours(*using: Any, forget: bool = False) -> Callable[[], Any]:
        def call() -> None:
            if forget:
                bridge.clear_cache()
            bridge.generate(prompt, generator=generator.manual_seed(0), using=using, **keywords)

        return call

    calls: dict[str, Callable[[], Any]] = {
        "pipeline": lambda: pipeline(prompt, generator=generator.manual_seed(0), **keywords),
        "bridge, text encoded": ours(forget=True),
        "bridge": ours(),
        "reading maps": ours(Read()),
    }
    times: dict[str, list[float]] = {label: [] for label in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for label, call in calls.items():
            times[label].append(seconds(call))
    medians = {label: statistics.median(values) for label, values in times.items()}
    parts = [f"{label} {value:.3f} s ({value / medians['pipeline']:.3f})" for label, value in medians.items()]
    print(f"{name:13s} " + "   ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--family", choices=list(tiny.MAKERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in [arguments.family] if arguments.family else tiny.MAKERS:
        compare(name, arguments.rounds)


if __name__ == "__main__":
    main()
