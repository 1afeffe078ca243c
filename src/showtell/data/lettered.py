"""Pictures of several words in boxes of their own, written in the world's font on a plain ground."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence

import numpy as np

from showtell.world.glyphs import GLYPHS, GRID, HEIGHT, PITCH
from showtell.world.sampling import WORDS

Boxes = np.ndarray
"""(words, 4) float: left, top, right, bottom of every word's box, in [0, 1]."""
TALL = (HEIGHT + 2) / GRID
"""The height of a line with a cell around it."""


def wide(word: str) -> float:
    """The width that a word needs, with a cell around it."""
    return (PITCH * len(word) + 1) / GRID


def corner(box: np.ndarray) -> tuple[int, int]:
    """(row, column) of the 64 x 64 grid where the letters of a box begin."""
    return round(float(box[1]) * GRID) + 1, round(float(box[0]) * GRID) + 1


def around(boxes: Boxes) -> np.ndarray:
    """(64, 64) float32: 1 in the boxes, to whole cells; what leaves the picture is cut off."""
    mask = np.zeros((GRID, GRID), np.float32)
    for left, top, right, bottom in (np.asarray(boxes).clip(0, 1) * GRID).round().astype(int):
        mask[top:bottom, left:right] = 1
    return mask


def lettered(words: Sequence[str], boxes: Boxes, ground: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """A picture (64, 64, 3) uint8 of the words in black on white lines, on a ground of that colour; what leaves the
    picture is cut off, and later words lie over earlier ones."""
    ink, line = np.zeros((GRID, GRID), bool), np.zeros((GRID, GRID), bool)
    for word, box in zip(words, boxes, strict=True):
        top, left = corner(box)
        bottom, right = min(GRID, top + HEIGHT + 1), min(GRID, left + PITCH * len(word))
        line[max(0, top - 1) : bottom, max(0, left - 1) : right] = True
        for i, letter in enumerate(word):
            for row, column in np.argwhere(GLYPHS[letter] > 0) + np.array([top, left + PITCH * i]):
                if 0 <= row < GRID and 0 <= column < GRID:
                    ink[row, column] = True
    picture = np.empty((GRID, GRID, 3), np.uint8)
    picture[:] = ground
    picture[line], picture[ink] = 255, 0
    return picture


def some_words(rng: random.Random) -> list[str]:
    """Three to five words of three to six letters, each of the world's words or drawn letter by letter."""
    known = [word for word in WORDS if 3 <= len(word) <= 6]
    made = []
    for _ in range(rng.randint(3, 5)):
        drawn = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(3, 6)))
        made.append(rng.choice(known) if rng.random() < 0.5 else drawn)
    return made


def lines(words: Sequence[str], rng: random.Random, careless: float = 0.0) -> Boxes:
    """A line for every word, one under the other; with the chance `careless` a word slips halfway into the line above.

    They need 64 / 11 lines at most. Boxes are as large as their words need.
    """
    step = 1 / max(len(words), 5)
    made: list[list[float]] = []
    for i, word in enumerate(words):
        left, top = rng.uniform(0, 1 - wide(word)), i * step
        if i and rng.random() < careless:
            top -= rng.uniform(0.5, 0.9) * step
            left = float(np.clip(made[-1][0] + rng.uniform(-0.1, 0.1), 0, 1 - wide(word)))
        made.append([left, top, left + wide(word), top + TALL])
    return np.array(made)


def pages(
    count: int, rng: random.Random, grounds: Mapping[str, tuple[int, int, int]]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Pictures (count, 64, 64, 3) uint8 of `some_words` in `lines` on white, a ground's name for each, and the same
    words on that ground. grounds: name -> colour."""
    plain, names, written = [], [], []
    for _ in range(count):
        words, name = some_words(rng), rng.choice(list(grounds))
        boxes = lines(words, rng)
        plain.append(lettered(words, boxes))
        names.append(name)
        written.append(lettered(words, boxes, grounds[name]))
    return np.stack(plain), names, np.stack(written)
