"""The command line: what is refused (in one line, with nothing overwritten), what is called and printed."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import showtell
from showtell.cli import app, main
from showtell.errors import ShowtellError
from showtell.pictures import load_image


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "in.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return str(path)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        """Exit code, standard output and standard error of one call."""
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run, monkeypatch):
    """Asserts a refusal before any model is loaded, in one line, and returns that line."""

    def unwanted(*_):
        raise AssertionError("a model was loaded before the input was checked")

    # In the dictionary, since asking for the attribute would import it.
    monkeypatch.setitem(showtell.__dict__, "load", unwanted)
    monkeypatch.setitem(showtell.__dict__, "score", unwanted)

    def refused(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return refused


class FakeBridge:
    """Answers with what it was asked, so that a test can see what the command line passed on."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, **options):
        self.calls.append((prompts, options))
        return [Image.new("RGB", (8, 8), (index, 0, 0)) for index, _ in enumerate(prompts)]

    def caption(self, images, language):
        return [f"{image.getpixel((0, 0))} in {language}" for image in images]

    def answer(self, images, questions):
        return [f"{image.size} {question}" for image, question in zip(images, questions)]

    def edit(self, images, instructions, seed):
        assert len(images) == len(instructions) == 1
        return [Image.new("RGB", (8, 8), (0, 0, seed))]


@pytest.fixture
def bridge(monkeypatch):
    bridge = FakeBridge()

    def load(model=None):
        bridge.model = model
        return bridge

    monkeypatch.setitem(showtell.__dict__, "load", load)
    return bridge


# --- refusals ------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", "   "])
def test_empty_texts(refused, picture, tmp_path, blank):
    assert "prompt is empty" in refused("generate", "a red circle", blank, "-o", tmp_path / "o.png")
    assert "question is empty" in refused("answer", picture, blank)
    assert "instruction is empty" in refused("edit", picture, blank, "-o", tmp_path / "o.png")
    assert "text is empty" in refused("score", picture, blank)


def commands_on(image, out):
    return [
        ("caption", image),
        ("answer", image, "what is it?"),
        ("edit", image, "make it blue", "-o", out),
        ("score", image, "a red circle"),
    ]


@pytest.mark.parametrize("index", range(4))
def test_missing_and_corrupt_images(refused, tmp_path, index):
    out, corrupt = tmp_path / "o.png", tmp_path / "corrupt.png"
    out.write_text("old")
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    for path, reason in [
        (tmp_path / "no.png", "no such file"),
        (corrupt, "not a whole image"),
        (tmp_path, "folder"),
    ]:
        message = refused(*commands_on(path, out)[index])
        assert str(path) in message
        assert reason in message
    assert out.read_text() == "old"


def test_one_bad_image_among_good_ones(refused, picture, tmp_path):
    assert "no.png" in refused("caption", picture, tmp_path / "no.png")


@pytest.mark.parametrize("name", ["missing/o.png", "o.xyz", "folder.png"])
def test_unwritable_output_is_found_before_the_work(refused, picture, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "o.xyz").write_text("old")
    out = tmp_path / name
    assert name in refused("generate", "a red circle", "-o", out)
    assert name in refused("edit", picture, "make it blue", "-o", out)
    assert name in refused("world", "sample", "-o", out)
    assert (tmp_path / "o.xyz").read_text() == "old"
    assert list((tmp_path / "folder.png").iterdir()) == []


@pytest.mark.parametrize("name", ["missing/o", "folder"])
def test_unwritable_pages_and_lists(refused, tmp_path, name):
    (tmp_path / "folder").mkdir()
    assert name in refused("demo", "-o", tmp_path / name)
    assert name in refused("world", "sample", "--json", tmp_path / name)


def test_a_list_that_cannot_be_written_leaves_the_grid_unwritten(refused, tmp_path):
    refused("world", "sample", "-n", 2, "-o", tmp_path / "grid.png", "--json", tmp_path / "missing" / "o.json")
    assert list(tmp_path.iterdir()) == []


def test_unknown_language(refused, picture):
    for arguments in (("caption", picture), ("world", "sample")):
        message = refused(*arguments, "--language", "tlh")
        assert "'tlh'" in message
        assert "en" in message


@pytest.mark.parametrize("objects", ["0", "4-1", "two", "1-2-3", "", "-", "1-", "1.5", "٣"])
def test_bad_objects(refused, objects):
    assert "--objects" in refused("world", "sample", f"--objects={objects}")


def test_too_many_objects(refused):
    assert "7" in refused("world", "sample", "--objects", "7")


def test_unknown_split(refused):
    assert "'tset'" in refused("world", "sample", "--split", "tset")


@pytest.mark.parametrize("size", ["0", "x", "64x", "64x64x64", "-64", "big"])
def test_bad_size(refused, tmp_path, size):
    assert repr(size) in refused("generate", "a red circle", f"--size={size}", "-o", tmp_path / "o.png")


def test_unknown_recipe(refused, tmp_path):
    from showtell.train import recipes

    nearly = recipes.NAMES[0] + "x"
    message = refused("train", nearly, "--out", tmp_path / "run")
    assert nearly in message
    assert recipes.NAMES[0] in message
    assert recipes.NAMES[0] in refused("train", "????", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_into_a_file(refused, tmp_path):
    from showtell.train import recipes

    (tmp_path / "file").write_text("old")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "not a folder" in refused("train", recipes.NAMES[0], "--out", out)
    assert (tmp_path / "file").read_text() == "old"


def test_unknown_model(run, picture, tmp_path):
    code, _, err = run("caption", picture, "--model", tmp_path / "no-model")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "no-model" in err


def test_what_a_bridge_refuses_is_one_line(run, monkeypatch, picture):
    def load(*_):
        raise ShowtellError("first line\nand a second")

    monkeypatch.setitem(showtell.__dict__, "load", load)
    assert run("caption", picture) == (2, "", "error: first line and a second\n")


def test_files_that_vanish_are_one_line(run, monkeypatch, picture):
    def load(*_):
        raise FileNotFoundError(2, "No such file or directory", "weights.safetensors")

    monkeypatch.setitem(showtell.__dict__, "load", load)
    assert run("caption", picture) == (2, "", "error: weights.safetensors: no such file or directory\n")


def test_mistakes_of_ours_are_not_hidden(monkeypatch, picture):
    def load(*_):
        raise ZeroDivisionError

    monkeypatch.setitem(showtell.__dict__, "load", load)
    with pytest.raises(ZeroDivisionError):
        main(["caption", picture])


def test_interruption(run, monkeypatch, picture):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(showtell.__dict__, "load", load)
    code, _, err = run("caption", picture)
    assert code == 130
    assert err.strip() == "interrupted"


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_while_the_libraries_are_imported(run, bridge, monkeypatch, picture, fails):
    """Or nearly a third of the time of a short command goes into it."""
    during = []

    def load():
        during.append(gc.isenabled())
        if fails:
            raise ShowtellError("no such model")
        return bridge

    monkeypatch.setitem(showtell.__dict__, "load", load)
    gc.unfreeze()
    assert run("caption", picture)[0] == 2 * fails
    assert during == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0  # nor at the exit
    gc.unfreeze()


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("nonsense",),
        ("generate", "a", "-n", "0"),
        ("generate", "a", "--seed", "-1"),
        ("edit", "a", "b"),
    ],
)
def test_usage_errors(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert "Traceback" not in err


# --- what works ------------------------------------------------------------


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in ("generate", "caption", "answer", "edit", "score", "world", "train", "demo"):
        assert name in out
        assert run(name, "--help")[0] == 0


def test_version(run):
    assert run("--version") == (0, f"showtell {showtell.__version__}\n", "")


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "showtell", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"showtell {showtell.__version__}\n")


def test_generate_one(run, bridge, tmp_path):
    out = tmp_path / "o.png"
    code, said, err = run(
        "generate",
        "a red circle",
        "-o",
        out,
        "--seed",
        3,
        "--steps",
        5,
        "--guidance",
        2.5,
        "--size",
        "96x64",
        "-m",
        "m",
    )
    assert (code, err) == (0, "")
    assert str(out) in said
    assert bridge.model == "m"
    options = {"seed": 3, "num_inference_steps": 5, "guidance_scale": 2.5, "height": 64, "width": 96}
    assert bridge.calls == [(["a red circle"], options)]
    assert load_image(out).size == (8, 8)


def test_generate_several_into_one_grid(run, bridge, tmp_path):
    out = tmp_path / "o.png"
    code, said, _ = run("generate", "a", "b", "-n", 3, "-o", out, "--json")
    assert code == 0
    assert bridge.calls[0][0] == ["a", "a", "a", "b", "b", "b"]
    assert bridge.calls[0][1]["height"] is None
    record = json.loads(said)
    assert (record["out"], record["prompts"], record["number"], record["seed"]) == (
        str(out),
        ["a", "b"],
        3,
        0,
    )
    first_of_each_row = np.asarray(load_image(out))[[0, 12], 0, 0]
    assert first_of_each_row.tolist() == [0, 3]  # a row for each prompt


def test_caption(run, bridge, picture):
    assert run("caption", picture) == (0, "(255, 0, 0) in en\n", "")
    said = run("caption", picture, picture, "-l", "es")[1]
    assert said.splitlines() == [f"{picture}: (255, 0, 0) in es"] * 2
    assert json.loads(run("caption", picture, "--json")[1]) == [{"image": picture, "caption": "(255, 0, 0) in en"}]


def test_answer(run, bridge, picture):
    assert run("answer", picture, "¿qué?") == (0, "(8, 8) ¿qué?\n", "")
    record = json.loads(run("answer", picture, "¿qué?", "--json")[1])
    assert record == {"image": picture, "question": "¿qué?", "answer": "(8, 8) ¿qué?"}


def test_edit(run, bridge, picture, tmp_path):
    out = tmp_path / "o.png"
    assert run("edit", picture, "make it blue", "-o", out, "--seed", 200) == (0, f"{out}\n", "")
    assert load_image(out).getpixel((0, 0)) == (0, 0, 200)


def test_score(run, monkeypatch, picture):
    judge = SimpleNamespace(scene_accuracy=lambda images, scenes: SimpleNamespace(to_dict=lambda: parts))
    parts = {"scene": 0.0, "attribute": {"colour": 1.0, "shape": 0.25}}
    monkeypatch.setitem(sys.modules, "showtell.measure.judge", judge)
    monkeypatch.setitem(showtell.__dict__, "score", lambda images, texts: [0.5] * len(texts))
    record = json.loads(run("score", picture, "a red circle", "--json")[1])
    assert record == {"image": picture, "text": "a red circle", "score": 0.5, "scene": parts}
    said = run("score", picture, "a red circle")[1]
    for word in ("0.500", "attribute colour", "1.000", "0.250"):
        assert word in said
    record = json.loads(run("score", picture, "no caption of the world at all", "--json")[1])
    assert (record["score"], record["scene"]) == (0.5, None)


def test_world_sample(run, tmp_path):
    from showtell.world import Scene

    grid, scenes = tmp_path / "grid.png", tmp_path / "scenes.json"
    sample = ("world", "sample", "-n", 3, "--seed", 1, "--objects", "2-3")
    assert run(*sample, "-o", grid, "--json", scenes)[0] == 0
    records = json.loads(scenes.read_text())
    assert len(records) == 3
    for record in records:
        scene = Scene.from_json(record["scene"])
        assert 2 <= len(scene.objects) <= 3
        assert record["caption"] == scene.caption("en")
    assert load_image(grid).width == load_image(grid).height  # two rows of two, the last place empty
    said = run(*sample)[1]
    assert said.splitlines() == [record["caption"] for record in records]
    assert run(*sample, "-l", "zh")[1] == "".join(
        Scene.from_json(record["scene"]).caption("zh") + "\n" for record in records
    )


def test_train(run, monkeypatch, tmp_path):
    from showtell.train import recipes

    calls = []
    monkeypatch.setattr(recipes, "run", lambda *names, **options: calls.append((names, options)))
    out = tmp_path / "deep" / "run"
    name = recipes.NAMES[0]
    assert run("train", name, "--out", out)[0] == 0
    assert (
        run(
            "train",
            name,
            "--out",
            out,
            "--data",
            "emoji",
            "--steps",
            5,
            "--batch",
            8,
            "--seed",
            2,
            "--resume",
        )[0]
        == 0
    )
    names = (name,)
    assert calls == [
        (names, {"data": None, "out": out, "resume": False, "steps": None, "batch": None, "init": None, "seed": 0}),
        (names, {"data": "emoji", "out": out, "resume": True, "steps": 5, "batch": 8, "init": None, "seed": 2}),
    ]


def test_the_same_command_line_without_main():
    """The app itself raises, so that other programs can embed it."""
    with pytest.raises(ShowtellError):
        app(["generate", ""])


def test_warnings_of_a_bridge_are_one_line(run, bridge, monkeypatch, picture):
    def caption(images, language):
        warnings.warn("unknown word:\n'blorp'", stacklevel=2)
        warnings.warn("old name", FutureWarning, stacklevel=2)
        return ["a red square"]

    monkeypatch.setattr(bridge, "caption", caption)
    assert run("caption", picture) == (0, "a red square\n", "warning: unknown word: 'blorp'\n")


def test_training_that_was_interrupted_says_how_to_go_on(run, monkeypatch, tmp_path):
    from showtell.train import recipes

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "run", stopped)
    code, out, err = run("train", recipes.NAMES[0], "--out", tmp_path / "run")
    assert (code, out) == (130, "")
    assert "--resume" in err
