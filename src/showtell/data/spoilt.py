"""Pictures with one thing wrong with them, for what finds and repairs it (a spoilt patch, or not what was asked for);
and pools in which most pictures are poor, for what chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from showtell.data.degrade import degrade
from showtell.pictures import to_pil
from showtell.world import Scene, draw, sample
from showtell.world.scene import BACKGROUNDS, COLOURS, TEXTURES


def garbled(image: np.ndarray, rng: np.random.Generator, side: int = 28) -> np.ndarray:
    """A picture one square of which is spoilt: by noise and blur, or by its blocks in another order."""
    made = image.copy()
    top, left = rng.integers(0, image.shape[0] - side + 1, 2)
    patch = made[top : top + side, left : left + side]
    if rng.random() < 0.5:
        for kind in ("noise", "coarse", "noise"):
            patch = degrade(patch[None], rng, kinds=(kind,))[0]
    else:
        blocks = patch.reshape(side // 4, 4, side // 4, 4, 3).swapaxes(1, 2).reshape(-1, 4, 4, 3)
        order = rng.permutation(len(blocks))
        patch = blocks[order].reshape(side // 4, side // 4, 4, 4, 3).swapaxes(1, 2).reshape(side, side, 3)
    made[top : top + side, left : left + side] = patch
    return made


def poor(images: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The pictures (n, 64, 64, 3) uint8 without one kind of quality each, kind -> pictures: degraded all over
    (technical), garbled nearly all over (rationality), negatives (naturalness)."""
    technical, garble = degrade(images, rng), [garbled(image, rng, 56) for image in images]
    return {"technical": technical, "rationality": np.stack(garble), "naturalness": 255 - images}


def wrong(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene without one of its things, or with one in another colour."""
    which = int(rng.integers(len(scene.objects)))
    thing = scene.objects[which]
    if rng.random() < 0.5 and len(scene.objects) > 1:
        return replace(scene, objects=tuple(one for one in scene.objects if one is not thing))
    colour = str(rng.choice([one for one in COLOURS if one not in (thing.colour, "white")]))
    changed = [replace(one, colour=colour) if one is thing else one for one in scene.objects]
    return replace(scene, objects=tuple(changed))


def spoilt(scenes: Sequence[Scene], seed: int) -> list[Any]:
    """Pictures of the scenes: in turn right, with a spoilt patch, with something wrong."""
    rng, made = np.random.default_rng(seed), []
    for i, scene in enumerate(scenes):
        image = draw([wrong(scene, rng) if i % 3 == 2 else scene])[0]
        made.append(garbled(image, rng) if i % 3 == 1 else image)
    return to_pil(np.stack(made))


def uneven_pool(count: int, seed: int = 0) -> tuple[np.ndarray, list[Scene], np.ndarray]:
    """(pictures (count, 64, 64, 3) uint8, their scenes, which are good (count,) bool), of the training split.

    A quarter is good: two or three textured things on a background. The others are an empty composition, blurred,
    noisy or washed out; all but the first show their scene too.
    """
    rng = np.random.default_rng(seed)
    common: dict[str, Any] = {"style": "flat", "light": "even", "distinct": ("shape", "colour")}
    scenes = sample(count, seed, "train", (2, 3), background=BACKGROUNDS[1:], texture=TEXTURES, **common)
    kinds = rng.integers(8, size=count)  # 0 and 1 are good
    empty = sample(count, seed + 1, "train", 1, size="small", background="white", **common)
    scenes = [bare if kind == 2 else scene for scene, bare, kind in zip(scenes, empty, kinds, strict=True)]
    pictures = draw(scenes)
    for kind, how in ((3, "blur"), (4, "blur"), (5, "noise"), (6, "noise")):
        pictures[kinds == kind] = degrade(pictures[kinds == kind], rng, kinds=(how,))
    pictures[kinds == 7] = (0.4 * pictures[kinds == 7] + 0.6 * 128).astype(np.uint8)
    return pictures, scenes, kinds < 2
