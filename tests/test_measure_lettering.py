"""The font reader: exact on renders with and without words, wrong words told from right ones, noise survived."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from showtell.data.degrade import degrade
from showtell.measure.lettering import read_words
from showtell.world import draw, sample


def test_words_of_exact_pictures_are_read() -> None:
    scenes = sample(40, 5, "validation", (1, 3), word=True)
    read = read_words(draw(scenes))
    assert np.mean([a == s.word for a, s in zip(read, scenes, strict=True)]) >= 0.95
    random = [replace(s, word=word) for s, word in zip(scenes, ("A", "X7", "QZK", "ABCDEFGH", "00O0"), strict=False)]
    assert read_words(draw(random)) == ["A", "X7", "QZK", "ABCDEFGH", "00O0"]


def test_no_word_is_no_word() -> None:
    assert sum(word != "" for word in read_words(draw(sample(40, 6, "validation", (1, 4))))) <= 2


def test_words_survive_noise() -> None:
    scenes = sample(30, 7, "validation", (1, 2), word=True, style="flat")
    spoilt = degrade(draw(scenes), np.random.default_rng(0), kinds=("noise", "jpeg"), strength=0.6)
    assert np.mean([a == s.word for a, s in zip(read_words(spoilt), scenes, strict=True)]) >= 0.85
