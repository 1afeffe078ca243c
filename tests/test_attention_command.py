"""`showtell attention`: a labelled sheet with a heat map per word, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import families
import showtell
from showtell.bridges.base import Bridge
from showtell.cli import main
from showtell.measure.heatmaps import overlay, word_sheet
from showtell.pictures import load_image


@pytest.fixture
def run(capsys: Any) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run


def test_heat_shows_where_it_is_hot() -> None:
    heat = np.zeros((2, 2))
    heat[0, 1] = 7.0
    drawn = np.asarray(overlay(Image.new("RGB", (64, 64), "grey"), heat)).astype(int).sum(-1)
    assert drawn[8, 56] > 2 * drawn[8, 8] and drawn[8, 56] > 2 * drawn[56, 56]
    flat = np.asarray(overlay(Image.new("RGB", (8, 8), "grey"), np.ones((2, 2))))
    assert (flat == flat[0, 0]).all()


def test_a_sheet_has_a_cell_per_word() -> None:
    heat = np.eye(4)
    sheet = word_sheet(Image.new("RGB", (64, 64), "red"), [("red", heat), ("ring", heat), ("a", heat)])
    assert sheet.width == 2 * 192 + 4  # the image and three words, two by two
    assert sheet.getpixel((96, 96)) == (255, 0, 0)


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "PixArtSigmaPipeline", "AnimateDiffPipeline"]
)
def test_command(run: Any, tmp_path: Any, name: str) -> None:
    """Cross-attention of a UNet, joint attention, cross-attention of a transformer, a clip."""
    families.pipeline(name).save_pretrained(tmp_path / "model")
    out = tmp_path / "maps.png"
    arguments = ("attention", "a red ring", "-o", out, "--model", tmp_path / "model", "--steps", 2)
    code, said, err = run(*arguments)
    assert (code, said.strip()) == (0, f"{out}: 3 words, a, red, ring"), err
    first = out.read_bytes()
    assert load_image(out).width == 2 * 192 + 4
    run(*arguments, "--seed", 1)
    assert out.read_bytes() != first
    run(*arguments)
    assert out.read_bytes() == first


def test_refused(run: Any, tmp_path: Any, monkeypatch: Any) -> None:
    class Blind(Bridge):
        name = "The blind bridge"
        can = frozenset({"generate"})

    monkeypatch.setitem(showtell.__dict__, "load", lambda *given: Blind())
    out = tmp_path / "maps.png"
    code, said, err = run("attention", "a red ring", "-o", out)
    assert (code, said) == (2, "") and err.count("\n") == 1
    assert "The blind bridge cannot attend" in err and not out.exists()
    code, _, err = run("attention", " ", "-o", out)
    assert code == 2 and "the prompt is empty" in err
    code, _, err = run("attention", "a ring", "-o", tmp_path / "maps.txt")
    assert code == 2 and err.count("\n") == 1
