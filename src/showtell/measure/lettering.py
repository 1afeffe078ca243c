"""Reading a written word by comparing it with the font: an opinion on words that owes nothing to the judges."""

from __future__ import annotations

from typing import Any

import numpy as np

from showtell.pictures import letterbox, to_pil
from showtell.world.glyphs import BOTTOM, GLYPHS, GRID, HEIGHT, PITCH, WIDTH
from showtell.world.scene import MAX_WORD

SURE = 0.7  # least correlation of a place with its letter; edges of objects seldom reach 0.6


def read_words(images: Any) -> list[str]:
    """The word written in each image, "" where none is, by correlation with the font.

    For every length the letters' places are known; in each the glyph is taken that correlates best with the darkness
    there. The longest word is read whose every letter is `SURE`. Only for words where the world writes them, centred
    at the bottom.
    """
    return [_read(np.asarray(letterbox(picture, GRID).convert("L"), np.float64)) for picture in to_pil(images)]


def _read(grey: np.ndarray) -> str:
    ink = 255 - grey[BOTTOM - HEIGHT : BOTTOM]
    for length in range(MAX_WORD, 0, -1):
        left = (GRID - (PITCH * length - (PITCH - WIDTH))) // 2
        cells = [ink[:, x : x + WIDTH] for x in range(left, left + PITCH * length, PITCH)]
        found = [max((_alike(cell, glyph), letter) for letter, glyph in GLYPHS.items()) for cell in cells]
        if min(found)[0] >= SURE:
            return "".join(letter for _, letter in found)
    return ""


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two arrays, 0 where either is constant."""
    one, two = a.ravel() - a.mean(), b.ravel() - b.mean()
    length = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / length if length > 1e-6 else 0.0
