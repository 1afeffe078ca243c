"""Reading written words by comparing them with the font, an opinion that owes nothing to the judges; and pictures of
several words in boxes, which the judge is shown one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from showtell.data.lettered import Boxes, corner, wide
from showtell.measure.scores import read
from showtell.pictures import letterbox, to_pil
from showtell.world import draw
from showtell.world.glyphs import BOTTOM, GLYPHS, GRID, HEIGHT, PITCH, WIDTH
from showtell.world.scene import MAX_WORD, Scene

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


def read_at(images: Any, corners: Any, longest: int = MAX_WORD, slack: int = 1) -> list[str]:
    """The word that begins near a corner, (row, column) of the 64 x 64 grid, in each image; "" where none does.

    Letters are read on, one pitch after the other, while they are `SURE`; of the places within `slack` cells the one
    with the most letters is taken, of equals the surest.
    """
    greys = [np.asarray(letterbox(picture, GRID).convert("L"), np.float64) for picture in to_pil(images)]
    return [_from(255 - grey, top, left, longest, slack) for grey, (top, left) in zip(greys, corners, strict=True)]


def _from(ink: np.ndarray, top: int, left: int, longest: int, slack: int) -> str:
    best: tuple[int, float, str] = (0, 0.0, "")
    for row in range(max(0, top - slack), min(GRID - HEIGHT, top + slack) + 1):
        for column in range(max(0, left - slack), left + slack + 1):
            read, sure = "", 0.0
            for x in range(column, min(GRID - WIDTH, column + PITCH * (longest - 1)) + 1, PITCH):
                alike, letter = max((_alike(ink[row : row + HEIGHT, x : x + WIDTH], g), c) for c, g in GLYPHS.items())
                if alike < SURE:
                    break
                read, sure = read + letter, sure + alike
            best = max(best, (len(read), sure, read))
    return best[2]


def shown_alone(image: Any, word: str, box: np.ndarray) -> Image.Image:
    """The line of a word, in a box of `data.lettered`, of a picture: under a circle, centred at the bottom, where the
    world writes the word of a scene; 64x64."""
    canvas = draw([Scene.parse("a red circle")])[0].copy()
    picture, (top, left) = np.asarray(image.resize((GRID, GRID))), corner(box)
    rows = slice(max(0, top - 1), top + HEIGHT + 1)
    columns = slice(max(0, left - 1), left - 1 + round(wide(word) * GRID))
    crop = picture[rows, columns]
    first, start = BOTTOM - HEIGHT - 1, (GRID - crop.shape[1]) // 2
    canvas[first : first + crop.shape[0], start : start + crop.shape[1]] = crop
    return Image.fromarray(canvas)


def word_f1(images: Sequence[Any], layouts: Sequence[tuple[Sequence[str], Boxes]], judge: Any = "first") -> np.ndarray:
    """(n,) F1, in [0, 1], of the words that the judge reads in the boxes of images where others were wanted.

    layouts: (words, boxes) of each image, as `data.lettered` takes them.
    """
    places = [(i, word, box) for i, (words, boxes) in enumerate(layouts) for word, box in zip(words, boxes)]
    scenes = read([shown_alone(images[i], word, box) for i, word, box in places], judge, fast=True)
    scores = []
    for row, (words, _) in enumerate(layouts):
        seen = [(word, scene.word) for (i, word, _), scene in zip(places, scenes, strict=True) if i == row]
        right, told = sum(a == b for a, b in seen), sum(bool(b) for _, b in seen)
        scores.append(2 * right / (told + len(words)))
    return np.array(scores)
