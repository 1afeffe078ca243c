"""The built-in font: A-Z and 0-9 as 5 x 7 bitmaps, on a grid of 64 cells across the canvas."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32

GRID = 64  # the canvas is this many font cells wide; at 64 x 64 a cell is a pixel
WIDTH, HEIGHT, PITCH, BOTTOM = 5, 7, 7, 62  # of a letter, from letter to letter, and the row under the word

_ROWS = {
    "A": "01110 10001 10001 11111 10001 10001 10001", "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111", "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111", "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111", "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "11111 00100 00100 00100 00100 00100 11111", "J": "00111 00001 00001 00001 00001 10001 01110",
    "K": "10001 10010 10100 11000 10100 10010 10001", "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001", "N": "10001 11001 10101 10101 10101 10011 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110", "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101", "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110", "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110", "V": "10001 10001 10001 10001 10001 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001", "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100", "Z": "11111 00001 00010 00100 01000 10000 11111",
    "0": "01110 10011 10011 10101 11001 11001 01110", "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111", "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010", "5": "11111 10000 11110 00001 00001 00001 11110",
    "6": "00110 01000 10000 11110 10001 10001 01110", "7": "11111 00001 00010 00100 00100 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110", "9": "01110 10001 10001 01111 00001 00010 01100",
}  # fmt: skip
GLYPHS = {
    letter: np.array([[int(cell) for cell in row] for row in rows.split()], np.float32)
    for letter, rows in _ROWS.items()
}
"""Letter -> (7, 5) float32, 1 where there is ink."""


@lru_cache(maxsize=16)
def area_weights(cells: int, size: int) -> Floats:
    """(size, cells) float32: the share of each of `size` pixels in each of `cells` across the canvas."""
    pixel = np.arange(size)[:, None] * (cells / size)
    cell = np.arange(cells)[None]
    overlap = np.minimum(pixel + cells / size, cell + 1) - np.maximum(pixel, cell)
    return np.ascontiguousarray(overlap.clip(0) * (size / cells), np.float32)


@lru_cache(maxsize=4096)
def written(word: str, size: int) -> tuple[int, Floats, Floats]:
    """The word centred along the bottom edge of a size x size canvas.

    Returns (top, halo, ink): the first pixel row, the coverage by the halo (letters and one cell around) and
    by the ink, each (rows, size) float32 in [0, 1].
    """
    ink = np.zeros((HEIGHT + 2, GRID), np.float32)
    left = (GRID - (PITCH * len(word) - (PITCH - WIDTH))) // 2
    for i, letter in enumerate(word):
        ink[1 : HEIGHT + 1, left + PITCH * i : left + PITCH * i + WIDTH] = GLYPHS[letter]
    halo = ink.copy()
    halo[:, 1:] = np.maximum(halo[:, 1:], ink[:, :-1])
    halo[:, :-1] = np.maximum(halo[:, :-1], ink[:, 1:])
    tall = halo.copy()
    tall[1:] = np.maximum(tall[1:], halo[:-1])
    tall[:-1] = np.maximum(tall[:-1], halo[1:])
    weights = area_weights(GRID, size)
    first = BOTTOM - HEIGHT - 1
    rows = weights[:, first : first + HEIGHT + 2]
    top = int(first * size / GRID)
    rows = rows[top : -(-(first + HEIGHT + 2) * size // GRID)]
    return top, rows @ tall @ weights.T, rows @ ink @ weights.T
