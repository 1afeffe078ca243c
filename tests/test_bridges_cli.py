"""Bad models and bad calls through the command line: exit code 2, one line, nothing written; and what works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import showtell
import tiny
from showtell.cli import main

Run = Callable[..., tuple[int, str, str]]
PROMPT = "a red ring"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of model."""
    root = tmp_path_factory.mktemp("models")
    for name in ("sd", "sd3"):
        showtell.load(tiny.shared(name)).save(root / name)
    return {name: root / name for name in ("sd", "sd3")}


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Exit code, standard output and standard error of `showtell generate`; the picture goes to out.png."""

    def run(model: Any, *more: str, prompt: str = PROMPT) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            out = str(tmp_path / "out.png")
            main(["generate", prompt, "--model", str(model), "-o", out, "--steps", "2", "--size", "32", *more])
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run


def without_vae(model: Path) -> None:
    shutil.rmtree(model / "vae")


def without_weights(model: Path) -> None:
    next((model / "unet").glob("*.safetensors")).unlink()


def cut_weights(model: Path) -> None:
    weights = next((model / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])


def broken_weights(model: Path) -> None:
    weights = next((model / "unet").glob("*.safetensors"))
    save_file({name: value * float("nan") for name, value in load_file(weights).items()}, weights)


def no_index(model: Path) -> None:
    (model / "model_index.json").unlink()


def damaged_index(model: Path) -> None:
    (model / "model_index.json").write_text("{")


def unknown_class(model: Path) -> None:
    index = model / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "MusicPipeline"}))


@pytest.mark.parametrize(
    "damage, said",
    [
        (without_vae, "lacks the component vae that its model_index.json names"),
        (without_weights, "unet has no safetensors weights"),
        (cut_weights, "cannot load "),
        (broken_weights, "the latents became NaN or infinite"),
        (no_index, "has neither model_index.json (a diffusers pipeline) nor config.json"),
        (damaged_index, "cannot read "),
        (unknown_class, "is a MusicPipeline, which no bridge is written for; supported: "),
    ],
)
def test_damaged_models(
    generate: Run, saved: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    model = Path(shutil.copytree(saved["sd"], tmp_path / "sd"))
    damage(model)
    refused(generate(model), said, tmp_path)


@pytest.mark.parametrize(
    "model, said",
    [
        ("nobody/nothing", "nobody/nothing is not a local folder, and the hub cannot be reached"),
        ("nothing-here", "there is no folder nothing-here, and a hub id would look like owner/name"),
        ("/nothing/here", "there is no folder /nothing/here"),
    ],
)
def test_no_such_model(generate: Run, tmp_path: Path, model: str, said: str) -> None:
    refused(generate(model), said, tmp_path)


@pytest.mark.parametrize(
    "name, more, said",
    [
        ("sd", ("--size", "30"), "multiples of 4 for this model, got 30x30; the nearest are 32x32"),
        ("sd3", ("--size", "33x32"), "multiples of 8 for this model, got 32x33; the nearest are 32x32"),
        ("sd", ("--guidance", "nan"), "guidance_scale=nan: use a finite number"),
    ],
)
def test_bad_calls(
    generate: Run, saved: dict[str, Path], tmp_path: Path, name: str, more: tuple[str, ...], said: str
) -> None:
    refused(generate(saved[name], *more), said, tmp_path)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_long_prompt_is_cut_and_its_words_are_named(
    generate: Run, saved: dict[str, Path], tmp_path: Path, name: str
) -> None:
    code, out, err = generate(saved[name], prompt=" ".join(["a red ring left of a blue star"] * 4) + " on the table")
    assert code == 0 and "out.png: 1 image" in out
    assert err.startswith("warning: the prompt is longer than the 16 tokens this model reads; cut off: ")
    assert err.endswith(" a blue star on the table'\n") and err.count("\n") == 1
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (32, 32)


def refused(result: tuple[int, str, str], said: str, folder: Path) -> None:
    code, out, err = result
    assert (code, out) == (2, "") and said in err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not (folder / "out.png").exists()
