"""What a bridge that maps both ways can do, in numbers: the table of docs/embedded-bridge.md.

Prompts and images come from the test split, which no training has seen; scenes are judged by a packaged judge, emoji
by the retrieval model. Every figure is a mean over `n` cases with its 95 % Wilson interval available from the counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from showtell.data.signal import signal
from showtell.measure.judge import Judge, load_judge
from showtell.world import Scene, draw, sample
from showtell.world.edits import edits
from showtell.world.questions import questions

PLAIN: dict[str, Any] = {"texture": "solid", "state": "whole", "rotation": 0, "style": "flat", "light": "even"}
TARGETS = {
    "text to image, 2 objects": 0.85,
    "text to image, 3-4 objects": 0.60,
    "image to text, 1-4 objects": 0.90,
    "text to image to text, 2 objects": 0.80,
    "questions": 0.92,
    "edits": 0.70,
    "emoji shown, top 1": 0.50,
    "emoji shown, top 5": 0.75,
    "emoji told, seen, noise and shift": 0.80,
    "emoji told, unseen combinations": 0.50,
}


def says(text: str, wanted: Scene) -> bool:
    """See `Scene.told_by`."""
    return wanted.told_by(text)


def load_eye() -> Any:
    """The packaged emoji retrieval model, or None where the emoji font is missing."""
    from showtell.data.emoji import find_font
    from showtell.errors import ShowtellError
    from showtell.nets.image_encoder import ImageEncoder
    from showtell.weights import folder

    try:
        find_font()
    except ShowtellError:
        return None
    return ImageEncoder.from_pretrained(folder("emoji-eye"), dtype=torch.float32, use_safetensors=True).eval()


def nearest_emoji(images: Any, eye: Any, gallery: np.ndarray) -> np.ndarray:
    """(n, classes) indices of all emoji by falling cosine to each image, in the retrieval model's space."""
    with torch.no_grad():
        shelf = torch.cat([eye(part.to(eye.device)) for part in signal(gallery).split(256)])
        seen = torch.cat([eye(part.to(eye.device)) for part in signal(images).split(256)])
    return (seen @ shelf.T).argsort(dim=-1, descending=True).cpu().numpy()


def measure(
    bridge: Any, n: int = 200, seed: int = 0, judge: Judge | str = "judge", eye: Any = None, split: str = "test",
    only: Sequence[str] = (), **sampling: Any,
) -> dict[str, float]:  # fmt: skip
    """Each figure of `TARGETS` that applies, over n cases each. sampling goes to `bridge.generate` and `bridge.edit`.

    eye: an ImageEncoder trained on emoji; without it (or the emoji font) the emoji figures are left out.
    """
    judge = load_judge(judge) if isinstance(judge, str) else judge
    figures: dict[str, Callable[[], dict[str, float]]] = {
        "scenes": lambda: _scenes(bridge, n, seed, judge, split, sampling),
        "told": lambda: _told(bridge, n, seed, split),
        "edits": lambda: {"edits": _edits(bridge, n, seed, judge, split, sampling)},
    }
    if eye is not None:
        figures["emoji"] = lambda: _emoji(bridge, n, seed, eye, sampling)
    return {k: v for name, make in figures.items() if not only or name in only for k, v in make().items()}


def _scenes(bridge: Any, n: int, seed: int, judge: Judge, split: str, sampling: dict[str, Any]) -> dict[str, float]:
    out = {}
    for name, objects in (("2 objects", 2), ("3-4 objects", (3, 4))):
        scenes = sample(n, seed, split, objects, **PLAIN)  # type: ignore[arg-type]
        images = bridge.generate([scene.caption() for scene in scenes], seed=seed, **sampling)
        seen = judge.parse(images)
        out[f"text to image, {name}"] = float(np.mean([a.matches(b) for a, b in zip(scenes, seen, strict=True)]))
        if objects == 2:
            told = bridge.caption(images)
            right = [says(text, scene) for text, scene in zip(told, scenes, strict=True)]
            out["text to image to text, 2 objects"] = float(np.mean(right))
    return out


def _told(bridge: Any, n: int, seed: int, split: str) -> dict[str, float]:
    scenes = sample(n, seed + 1, split, (1, 4))
    images = draw(scenes)
    told = bridge.caption(images)
    rng = random.Random(seed)
    asked = [(questions(scene, rng, n=1) or questions(scene, rng, n=1, kinds=("count",)))[0] for scene in scenes]
    answers = bridge.answer(images, [q.question for q in asked])
    return {
        "image to text, 1-4 objects": float(np.mean([says(t, s) for t, s in zip(told, scenes, strict=True)])),
        "questions": float(np.mean([a == q.answer for a, q in zip(answers, asked, strict=True)])),
    }


def _edits(bridge: Any, n: int, seed: int, judge: Judge, split: str, sampling: dict[str, Any]) -> float:
    rng = random.Random(seed)
    made = [edit for scene in sample(n, seed + 2, split, (1, 4), **PLAIN) for edit in edits(scene, rng, n=1)]
    images = bridge.edit(draw([e.before for e in made]), [e.text("en") for e in made], seed=seed, **sampling)
    return float(np.mean([e.after.matches(b) for e, b in zip(made, judge.parse(images), strict=True)]))


def _emoji(bridge: Any, n: int, seed: int, eye: Any, sampling: dict[str, Any]) -> dict[str, float]:
    from showtell.data.emoji import augment, load

    emoji, rng = load(), np.random.default_rng(seed)
    rows = {s: np.array([i for i, item in enumerate(emoji.items) if item.split == s]) for s in ("train", "unseen")}
    seen = rng.choice(rows["train"], n, replace=False)
    unseen = rng.choice(rows["unseen"], min(n, len(rows["unseen"])), replace=False)
    order = nearest_emoji(bridge.generate([emoji.items[i].names["en"] for i in seen], seed=seed, **sampling), eye,
                          emoji.images)  # fmt: skip
    told = {
        "seen, noise and shift": (seen, bridge.caption(augment(emoji.images[seen], rng))),
        "unseen combinations": (unseen, bridge.caption(emoji.images[unseen])),
    }
    return {
        "emoji shown, top 1": float((order[:, 0] == seen).mean()),
        "emoji shown, top 5": float((order[:, :5] == seen[:, None]).any(axis=1).mean()),
    } | {
        f"emoji told, {name}": float(
            np.mean([t == emoji.items[i].names["en"] for t, i in zip(texts, which, strict=True)])
        )
        for name, (which, texts) in told.items()
    }
