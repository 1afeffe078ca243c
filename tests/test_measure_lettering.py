"""The font reader: exact on renders with and without words, wrong words told from right ones, noise survived; pictures
of several words in boxes."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from showtell.data.degrade import degrade
from showtell.data.lettered import TALL, around, corner, lettered, lines, pages, some_words, wide
from showtell.measure.lettering import read_at, read_words, shown_alone, word_f1
from showtell.measure.scores import read
from showtell.pictures import to_pil
from showtell.world import draw, sample

WORDS = ["SALE", "QZX"]
OVER = np.array([[0.1, 0.2, 0.1 + wide("SALE"), 0.2 + TALL], [0.2, 0.25, 0.2 + wide("QZX"), 0.25 + TALL]])


def test_words_of_exact_pictures_are_read() -> None:
    scenes = sample(40, 5, "validation", (1, 3), word=True)
    read = read_words(draw(scenes))
    assert np.mean([a == s.word for a, s in zip(read, scenes, strict=True)]) >= 0.95
    others = [replace(s, word=word) for s, word in zip(scenes, ("A", "X7", "QZK", "ABCDEFGH", "00O0"), strict=False)]
    assert read_words(draw(others)) == ["A", "X7", "QZK", "ABCDEFGH", "00O0"]


def test_no_word_is_no_word() -> None:
    assert sum(word != "" for word in read_words(draw(sample(40, 6, "validation", (1, 4))))) <= 2


def test_words_survive_noise() -> None:
    scenes = sample(30, 7, "validation", (1, 2), word=True, style="flat")
    spoilt = degrade(draw(scenes), np.random.default_rng(0), kinds=("noise", "jpeg"), strength=0.6)
    assert np.mean([a == s.word for a, s in zip(read_words(spoilt), scenes, strict=True)]) >= 0.85


def test_letters_are_read_back() -> None:
    rng = random.Random(1)
    for _ in range(4):
        words = some_words(rng)
        assert 3 <= len(words) <= 5 and all(3 <= len(word) <= 6 for word in words)
        boxes = lines(words, rng)
        image = lettered(words, boxes, (196, 226, 246))
        places = [corner(box) for box in boxes]
        assert read_at(np.stack([image] * len(words)), places) == words
        assert read_at(np.full((1, 64, 64, 3), 255, np.uint8), places[:1]) == [""]
    # Where one lies over the other, at most one is read.
    found = read_at(np.stack([lettered(WORDS, OVER)] * 2), [corner(box) for box in OVER])
    assert found != WORDS


def test_the_judge_reads_boxes_one_by_one() -> None:
    words = ["STOP", "MOON", "JAZZ"]
    boxes = lines(words, random.Random(2))
    image = to_pil(lettered(words, boxes)[None])[0]
    seen = [one.word for one in read([shown_alone(image, *pair) for pair in zip(words, boxes, strict=True)], fast=True)]
    assert sum(a == b for a, b in zip(seen, words, strict=True)) >= 2
    swapped = [(words[::-1], boxes), (words, boxes)]
    assert word_f1([image, image], swapped).tolist()[0] < word_f1([image, image], swapped).tolist()[1]


def test_around() -> None:
    mask = around(np.array([[0.0, 0.5, 0.25, 1.2]]))
    assert mask.sum() == 16 * 32 and mask[32:, :16].all()


def test_pages_have_the_same_words_on_white_and_on_their_ground() -> None:
    grounds = {"white": (255, 255, 255), "sand": (232, 214, 172)}
    plain, names, written = pages(12, random.Random(0), grounds)
    assert plain.shape == written.shape == (12, 64, 64, 3) and set(names) == set(grounds)
    for before, name, after in zip(plain, names, written):
        assert np.array_equal(before.sum(axis=-1) == 0, after.sum(axis=-1) == 0), "the ink"
        paper = {tuple(pixel) for pixel in after.reshape(-1, 3).tolist()}
        assert paper == {(0, 0, 0), (255, 255, 255), grounds[name]}
