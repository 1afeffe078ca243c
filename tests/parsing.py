"""What a parser network would say, made by hand."""

from __future__ import annotations

import numpy as np

from showtell.data.targets import HEADS, LETTERS, OBJECT_VALUES, SCENE_VALUES, targets
from showtell.world import Scene


def certain(scene: Scene, doubt: float = 0.0) -> dict[str, np.ndarray]:
    """What a parser would say of a scene, with `doubt` spread over all other values."""
    truth, grid = targets([scene]), 16
    slots = 3 * grid * grid
    out = {"present": np.full(slots, 0.001), "place": np.zeros((slots, 2)), "depth": np.zeros(slots)}
    out |= {name: np.full((slots, len(OBJECT_VALUES[name])), doubt) for name in HEADS}
    out |= {name: np.full(len(values), doubt) for name, values in SCENE_VALUES.items()}
    out["word"] = np.zeros((8, len(LETTERS)))
    for i, thing in enumerate(scene.objects):
        column, row = int(thing.x * grid), int(thing.y * grid)
        slot = (OBJECT_VALUES["size"].index(thing.size) * grid + row) * grid + column
        out["present"][slot], out["depth"][slot] = 0.9, thing.depth
        out["place"][slot] = thing.x, thing.y
        for name in HEADS:
            out[name][slot, truth[name][0, i]] = 1 - doubt
    for name in SCENE_VALUES:
        out[name][truth[name][0]] = 1 - doubt
    out["word"][range(8), truth["word"][0]] = 1.0
    return out
