"""LenCom-Eval: energies by hand, boxes that move apart in reading order, painting again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hosts import bridge_of, keywords
from laboratory import Laboratory

import bridge_family
import showtell
import test_bridges_controlnet
import test_bridges_instruct_pix2pix
from showtell.data.lettered import TALL, lines, some_words, wide
from showtell.errors import ShowtellError
from showtell.papers.compose import lencom_glyph
from showtell.papers.compose.lencom_glyph import energy, in_order, repaired, write

WORDS = ["SALE", "QZX"]
OVER = np.array([[0.1, 0.2, 0.1 + wide("SALE"), 0.2 + TALL], [0.2, 0.25, 0.2 + wide("QZX"), 0.25 + TALL]])
MAKERS = {
    "controlnet": test_bridges_controlnet.TestControlNet,
    "controlnet_xl": test_bridges_controlnet.TestControlNetXL,
    "instruct_pix2pix": test_bridges_instruct_pix2pix.TestInstructPix2Pix,
}


def painter(name: str) -> Any:
    return showtell.load(bridge_family.shared(MAKERS[name].maker))


def test_energy_by_hand() -> None:
    apart = np.array([[0.0, 0.0, 0.5, 0.25], [0.0, 0.5, 0.5, 0.75]])
    need = np.array([0.5, 0.5])
    assert energy(apart, apart, need) == 0
    half = np.array([[0.0, 0.0, 0.5, 0.25], [0.25, 0.0, 1.0, 0.25]])
    assert energy(half, half, need) == pytest.approx(0.5), "half of the smaller box"
    out = np.array([[-0.25, 0.0, 0.25, 0.25]])
    assert energy(out, out, need[:1]) == pytest.approx(0.5), "half of it is outside"
    assert energy(apart[:1], apart[:1] + 0.1, need[:1]) == pytest.approx(0.04)
    assert energy(apart[:1], apart[:1], np.array([0.7])) == pytest.approx(0.2), "too narrow for its word"


def test_reading_order() -> None:
    line = np.array([[0.0, 0.0, 0.4, 0.2], [0.5, 0.0, 0.9, 0.2], [0.0, 0.5, 0.4, 0.7]])
    assert in_order(line) and not in_order(line[[1, 0, 2]]) and not in_order(line[[2, 0, 1]])


def test_boxes_move_apart() -> None:
    widths = np.array([wide(word) for word in WORDS])
    assert energy(OVER, OVER, widths) > 0.3
    found = repaired(WORDS, OVER)
    assert energy(found, OVER, widths) < 0.15 and in_order(found) and np.array_equal(found, repaired(WORDS, OVER))
    assert np.array_equal(repaired(WORDS, OVER, moves=0), OVER)
    rng = random.Random(0)
    for _ in range(3):
        words = some_words(rng)
        free = lines(words, rng)
        assert np.array_equal(repaired(words, free, moves=50), free), "nothing to repair"
        tangled = lines(words, rng, careless=1.0)
        need = np.array([wide(word) for word in words])
        assert energy(repaired(words, tangled), tangled, need) < energy(tangled, tangled, need)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.host("lencom_glyph", n)) for n in MAKERS])
def test_only_misread_boxes_are_painted_again(name: str) -> None:
    bridge = painter(name)
    call = {key: value for key, value in MAKERS[name]().call(num_inference_steps=2).items() if key != "output_type"}
    layouts = [
        (WORDS, np.array([[0.0, 0.0, 1.0, 0.25], [0.0, 0.5, 1.0, 0.75]])),
        (["A"], np.array([[0.0, 0.0, 0.5, 0.25]])),
    ]
    asked: list[int] = []

    def reader(images: Any, corners: Any) -> list[str]:
        """Misreads the first word of the first picture when it looks first, and everything afterwards reads right."""
        asked.append(len(images))
        return ["SALT" if len(asked) == 1 else "SALE", "QZX", "A"]

    prompts = ["a red ring", "a dog"]
    once = write(bridge, prompts, layouts, moves=0, rounds=0, seed=3, **call)
    again = write(bridge, prompts, layouts, reader, moves=0, rounds=3, seed=3, **call)
    assert asked == [3, 3, 3], "all at first, with what was painted again, and once more before the next round"
    first, second = (np.asarray(one[0], dtype=float) for one in (once, again))
    rows = len(first) // 4
    assert not np.array_equal(first[:rows], second[:rows]), "the misread box is new"
    assert np.array_equal(first[rows + 1 :], second[rows + 1 :]), "and nothing else"
    assert np.array_equal(np.asarray(once[1]), np.asarray(again[1])), "a picture that is read right stays"
    alone = write(bridge, prompts[:1], layouts[:1], moves=0, rounds=0, seed=3, **call)
    assert np.abs(np.asarray(alone[0], dtype=float) - first).max() <= 1


def test_a_version_that_is_read_worse_is_not_kept() -> None:
    bridge = painter("controlnet")
    call = {
        key: value for key, value in MAKERS["controlnet"]().call(num_inference_steps=1).items() if key != "output_type"
    }
    layouts = [(["SALE"], np.array([[0.0, 0.0, 1.0, 0.25]]))]
    worse = iter([["SALT"], ["XXXX"], ["SALT"], ["XXXX"], ["SALT"]])
    kept = write(bridge, ["a dog"], layouts, lambda *a: next(worse), moves=0, rounds=2, seed=3, **call)
    once = write(bridge, ["a dog"], layouts, moves=0, rounds=0, seed=3, **call)
    assert np.array_equal(np.asarray(kept[0]), np.asarray(once[0]))


NONE = [
    pytest.param(n, marks=pytest.mark.host("lencom_glyph", n, "takes no picture of letters")) for n in ("sd", "sdxl")
]


@pytest.mark.parametrize("name", NONE)
def test_models_that_take_no_picture_of_letters(name: str) -> None:
    call = {key: value for key, value in keywords(name).items() if key not in ("output_type", "seed")}
    with pytest.raises(ShowtellError, match="does not take image"):
        write(bridge_of(name), ["a dog"], [(WORDS, OVER)], **call)


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="0 layouts for 1"):
        write(painter("controlnet"), ["a dog"], [])


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PICTURES": 4, "STEPS": 2, "BATCH": 2, "SAMPLING": 1}.items():
        monkeypatch.setattr(lencom_glyph, name, value)
    words, free = lencom_glyph.experiment(Laboratory(seeds=1))
    assert next(iter(words.scores)) == "lencom_glyph" and np.array_equal(*free.scores.values())
    bridge: Any = painter("controlnet")
    call, small = bridge.generate, MAKERS["controlnet"]().call(num_inference_steps=1, output_type="pil")
    monkeypatch.setattr(bridge, "generate", lambda *a, **more: call(*a, **{**small, **more}))
    monkeypatch.setattr(bridge, "_size", lambda *a: (32, 32))
    monkeypatch.setitem(showtell.__dict__, "load", lambda *a, **more: bridge)
    variables: dict[str, Any] = {"controlnet_pipeline": None}
    exec(lencom_glyph.EXAMPLE, variables)
    assert variables["image"].size == (32, 32) and torch.is_grad_enabled()
