"""How many scenes per second the world gives, on 1 and 2 processes: `python benchmarks/world.py [seconds]`.

Every cell works for the given time (2 seconds by default) in each process, on scenes that no other has seen;
the number is the sum over the processes. A process uses one core.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial

from showtell.world import draw, sample
from showtell.world.draw import masks
from showtell.world.motion import draw_clip

BATCH = 128
FLAT = {"style": "flat", "light": "even"}


def _sample(seed: int) -> int:
    return len(sample(BATCH, seed=seed))


def _captioned(seed: int) -> int:
    return len([scene.caption() for scene in sample(BATCH, seed=seed)])


def _training(seed: int) -> int:
    """What training needs: sampled scenes, their captions and pictures."""
    scenes = sample(BATCH, seed=seed)
    return len([scene.caption() for scene in scenes]) * len(draw(scenes)) // BATCH


def _prepared(work: Callable[..., object], seed: int, **constraints: object) -> Callable[[int], int]:
    """`work` on the same sampled scenes again and again, so that sampling is not counted."""
    scenes = sample(BATCH, seed=seed, **constraints)

    def repeat(_: int) -> int:
        work(scenes)
        return len(scenes)

    return repeat


def _clip_scenes(seed: int) -> Callable[[int], int]:
    scenes = sample(8, seed=seed, motion=True)

    def repeat(_: int) -> int:
        return len(draw_clip(scenes))

    return repeat


ROWS: dict[str, Callable[[int], Callable[[int], int]]] = {
    "sample": lambda seed: _sample,
    "sample and caption": lambda seed: _captioned,
    "draw 64 x 64, flat and evenly lit": lambda seed: _prepared(draw, seed, **FLAT),
    "draw 64 x 64, as sampled": partial(_prepared, draw),
    "draw 256 x 256, as sampled": partial(_prepared, lambda scenes: draw(scenes, 256)),
    "masks 64 x 64": partial(_prepared, lambda scenes: [masks(s) for s in scenes]),
    "clips of 16 frames of 64 x 64": _clip_scenes,
    "sample, caption and draw 64 x 64": lambda seed: _training,
}


def rate(row: str, seconds: float, seed: int) -> float:
    """Scenes (clips) per second of one process."""
    work = ROWS[row](seed)
    work(seed)  # fill the caches
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        seed += 1
        done += work(seed)
    return done / passed


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    print(f"{'scenes (or clips) per second':36}{'1 process':>12}{'2 processes':>14}")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(rate, [("draw 64 x 64, as sampled", 0.1, seed) for seed in (0, 1)])  # start both
        for row in ROWS:
            alone = rate(row, seconds, 10**6)
            both = sum(pool.starmap(rate, [(row, seconds, 10**7 * (i + 1)) for i in range(2)], chunksize=1))
            print(f"{row:36}{alone:12,.0f}{both:14,.0f}", flush=True)


if __name__ == "__main__":
    main()
