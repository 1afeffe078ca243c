"""Distances between sets, diversity, likeness and cost: by hand on small arrays and modules, then on images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from showtell.bridges.base import Bridge
from showtell.data.degrade import degrade
from showtell.errors import ShowtellError, UnsupportedError
from showtell.measure import distribution as sets
from showtell.measure.cost import cost, counted, network_of, operations, parameters, peak_memory
from showtell.measure.likeness import (
    clip_score,
    directional_likeness,
    image_likeness,
    normal,
    pixel_distance,
    question_score,
)
from showtell.world import draw, sample
from showtell.world.questions import Question

RNG = np.random.default_rng(0)


def test_frechet_distance_by_hand() -> None:
    a = np.array([[0.0], [2.0]])  # mean 1, variance 2
    b = np.array([[3.0], [3.0 + 4.0]])  # mean 5, variance 8
    assert sets.frechet_distance(a, b) == pytest.approx(16 + 2 + 8 - 2 * 4)
    assert sets.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    one, two = RNG.standard_normal((40, 5)), RNG.standard_normal((30, 5)) @ RNG.standard_normal((5, 5)) + 1
    covariances = [np.cov(x, rowvar=False) for x in (one, two)]
    known = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert sets.frechet_distance(one, two) == pytest.approx(known)
    few = RNG.standard_normal((3, 8))  # singular covariances
    assert np.isfinite(sets.frechet_distance(few, few + 1)) and sets.frechet_distance(few, few + 1) == pytest.approx(8)


def test_kernel_distance_by_hand_and_unbiased() -> None:
    a, b = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    # among a: (1*2+1)^3 = 27; among b: 1; across: rows 1 and 8, 1 and 27
    assert sets.kernel_distances(a, b).tolist() == [27 - 2 * 4.5 + 1, 27 - 2 * 14 + 1]
    means = []
    for seed in range(200):
        draws = np.random.default_rng(seed).standard_normal((2, 12, 4))
        means.append(sets.kernel_distances(*draws).mean())
    assert abs(np.mean(means)) < 3 * np.std(means) / np.sqrt(200)
    assert sets.kernel_distances(RNG.standard_normal((50, 4)) + 1, RNG.standard_normal((50, 4))).mean() > 1


def test_precision_and_recall_by_hand() -> None:
    b = np.arange(6.0)[:, None]
    a = np.array([[0.0], [0.5], [1.0], [100.0]])
    precision, recall = sets.precision_recall(a, b, k=1)
    assert precision.tolist() == [1, 1, 1, 0]
    assert recall.tolist()[:2] == [1, 1]
    assert sets.precision_recall(np.vstack([a[:3], [[0.2]]]), b, k=1)[1].mean() < 0.5  # the outlier's ball reached all
    with pytest.raises(ShowtellError, match="too small"):
        sets.precision_recall(a, b, k=4)


def test_diversity_by_hand() -> None:
    alike, apart = np.ones((4, 3)), np.eye(4)
    assert sets.vendi(alike) == pytest.approx(1) and sets.vendi(apart) == pytest.approx(4)
    assert sets.vendi(np.array([[1, 0], [1, 0], [0, 1], [0, 1]])) == pytest.approx(2)
    assert sets.pairwise_diversity(alike) == pytest.approx(0) and sets.pairwise_diversity(apart) == pytest.approx(1)
    assert sets.pairwise_diversity(np.array([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx([0.5, 0.5, 1])
    with pytest.raises(ShowtellError, match="at least 2"):
        sets.pairwise_diversity(alike[:1])


@pytest.mark.parametrize("encoder", sets.ENCODERS)
def test_other_and_repeated_images_are_told_apart(encoder: str) -> None:
    images = draw(sample(40, 3, "validation", 2, background="white", style="flat", texture="solid"))
    crowded = draw(sample(20, 3, "validation", 4, background="dusk", style="flat", texture="checked"))
    one, two, other = (sets.features(part, encoder) for part in (images[:20], images[20:], crowded))
    assert one.shape[0] == 20 and one.dtype == np.float64 and np.isfinite(one).all()
    assert sets.frechet_distance(one, two) < sets.frechet_distance(other, two)
    scale = two.std(axis=0) + 1e-6
    assert (
        sets.kernel_distances(one / scale, two / scale).mean()
        < sets.kernel_distances(other / scale, two / scale).mean()
    )
    repeated = one[:4].repeat(5, axis=0)
    centre = two.mean(axis=0)
    assert sets.pairwise_diversity(one - centre).mean() > sets.pairwise_diversity(repeated - centre).mean() + 0.1
    assert sets.vendi(one - centre) > 1.2 * sets.vendi(repeated - centre)


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_texture_tells_spoilt_images(kind: str) -> None:
    images = draw(sample(60, 3, "train", (1, 3)))
    spoilt = degrade(images[:30], np.random.default_rng(0), kinds=(kind,))
    spoilt, clean = (sets.kid(part, images[30:], "texture") for part in (spoilt, images[:30]))
    assert spoilt.mean() > clean.mean() + 1


def test_distances_between_sets_of_images() -> None:
    images = draw(sample(24, 3, "validation", 2))
    one, two, grey = images[:12], images[12:], np.full_like(images[:12], 128)
    assert sets.fid(one, two, "emoji") < sets.fid(grey, two, "emoji")
    assert sets.kid(one, two, "emoji").shape == (12,)
    assert sets.kid(one, two, "emoji").mean() < sets.kid(grey, two, "emoji").mean()
    repeated = np.repeat(one[:2], 6, axis=0)
    assert sets.diversity(one, "emoji", two).mean() > sets.diversity(repeated, "emoji", two).mean()


def test_bad_sets_are_one_clear_line() -> None:
    with pytest.raises(ShowtellError, match="unknown encoder 'inception'"):
        sets.features(draw(sample(1, 0)), "inception")
    with pytest.raises(ShowtellError, match="cannot compare features"):
        sets.frechet_distance(np.ones((3, 2)), np.ones((3, 4)))


class Colours(Bridge):
    """Embeds an image as its mean colour, a text as the colour it names; answers "Red." or "no"."""

    name, can = "Colours", frozenset({"embed", "answer"})
    known = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}

    def embed(self, images=None, texts=None, **more):
        rows = [self.known[t] for t in texts] if images is None else [np.asarray(i).mean((0, 1)) for i in images]
        return nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)

    def answer(self, images, questions, **more):
        return ["The red." if np.asarray(i)[0, 0, 0] else "no" for i in images]


def plane(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((4, 4, 3), (red, green, blue), np.uint8)


def test_pixel_distance_by_hand() -> None:
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    white[1, :2] = 0  # half of the second picture
    assert pixel_distance(black, white) == pytest.approx([1, 0.5**0.5]) and (pixel_distance(black, black) == 0).all()
    with pytest.raises(ShowtellError, match="pairs of equal size"):
        pixel_distance(black, white[:1])


def test_likeness_by_hand() -> None:
    images = np.stack([plane(255, 0, 0), plane(0, 255, 0), plane(255, 255, 0)])
    assert clip_score(Colours(), images, ["red", "red", "red"]) == pytest.approx([2.5, 0, 2.5 / 2**0.5], abs=1e-6)
    assert clip_score(Colours(), images, "green", scale=1) == pytest.approx([0, 1, 0.5**0.5], abs=1e-6)
    assert image_likeness(Colours(), images, images[0]) == pytest.approx([1, 0, 0.5**0.5], abs=1e-6)
    right = directional_likeness(Colours(), images[:1], images[1:2], ["red"], ["green"])
    wrong = directional_likeness(Colours(), images[1:2], images[:1], ["red"], ["green"])
    assert right == pytest.approx([1]) and wrong == pytest.approx([-1])
    assert np.isnan(directional_likeness(Colours(), images[:1], images[:1], ["red"], ["green"])[0])
    with pytest.raises(ShowtellError, match="texts"):
        clip_score(Colours(), images, ["red", "red"])
    with pytest.raises(UnsupportedError, match="cannot embed"):
        clip_score(Bridge(), images, "red")


def test_question_score_by_hand() -> None:
    asked = [[Question("colour", "what colour?", "red"), Question("count", "how many?", "2")], [], [
        Question("existence", "is there a ring?", "no")]]  # fmt: skip
    images = np.stack([plane(255, 0, 0), plane(0, 0, 0), plane(0, 0, 0)])
    assert question_score(Colours(), images, asked) == pytest.approx([0.5, np.nan, 1], nan_ok=True)
    assert [normal(t) for t in ("The Red.", "a", "an oval")] == ["red", "a", "oval"]
    with pytest.raises(ShowtellError, match="one list per image"):
        question_score(Colours(), images, asked[:1])


def test_cost_by_hand() -> None:
    layer = nn.Linear(10, 20, bias=False)

    def call() -> None:
        for rows in (3, 5):
            with torch.no_grad():
                layer(torch.ones(rows, 10))

    found = cost(call, layer)
    assert (found.nfe, found.rows, found.flops) == (2, 8, 2 * 8 * 10 * 20) and found.seconds > 0
    assert operations(call) == found.flops
    assert cost(lambda: None, layer).nfe == 0 and parameters(layer, nn.ModuleList([layer])) == 200
    with counted([layer]) as calls:
        layer(input=torch.ones(7, 10))
    assert calls == [7] and not layer._forward_pre_hooks
    with pytest.raises(ShowtellError, match="at least once"):
        cost(call, repeat=0)


def test_peak_memory_by_hand() -> None:
    """Three tensors of 4 MB, of which two are alive at a time; then all three."""

    def two_at_a_time() -> None:
        x = torch.ones(1000, 1000)
        for _ in range(3):
            y = x + 1
            del y

    def all_three() -> None:
        x = torch.ones(1000, 1000)
        y = x + 1
        z = y + 1
        del x, y, z

    assert peak_memory(two_at_a_time) == 8_000_000 and peak_memory(all_three) == 12_000_000


def test_the_network_of_a_bridge() -> None:
    class Adapted:
        adapter = type("A", (), {"denoiser": nn.Linear(2, 2)})()

    assert network_of(Adapted()) is Adapted.adapter.denoiser
    with pytest.raises(ShowtellError, match="no network"):
        network_of(Colours())
