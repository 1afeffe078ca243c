"""The training mixture: what a batch holds, where its losses begin, and that data is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.data.mix import Mixture, scenes_like
from showtell.errors import ShowtellError
from showtell.train.recipes import NAMES, RECIPES, mixture, packaged_codec, run
from showtell.world import Scene, SceneObject
from showtell.world.sampling import split_of


@pytest.fixture(scope="module")
def made() -> Mixture:
    return Mixture(packaged_codec(), scenes=True)


def test_batches_are_a_function_of_the_generator(made: Mixture) -> None:
    one, two = (made(np.random.default_rng(3), 16) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["show_image"], made(np.random.default_rng(4), 16)["show_image"])


def test_rows_begin_and_end_as_the_models_expect(made: Mixture) -> None:
    batch, special = made(np.random.default_rng(0), 48), made.codec.special
    for kind, first in (("show", "<bos>"), ("edit", "<edit>")):
        for ids, valid, start in zip(batch[f"{kind}_ids"], batch[f"{kind}_valid"], batch[f"{kind}_start"], strict=True):
            row = ids[valid]
            assert row[0] == special[first] and row[-1] == special["<show>"] and row[start] == special["<sep>"]
    openings = [special[name] for name in ("<ask>", "<en>", "<zh>", "<es>")]
    for ids, valid, wanted in zip(batch["tell_ids"], batch["tell_valid"], batch["tell_wanted"], strict=True):
        row, wanted = ids[valid].tolist(), wanted[valid]
        assert row[0] == special["<show>"] and not wanted[0]
        seen = row.index(special["<eos>"])  # the plan ends
        assert wanted[1 : seen + 1].all() and row[seen + 1] in openings and not wanted[seen + 1]
        reply = seen + 2 if row[seen + 1] != special["<ask>"] else row.index(special["<sep>"]) + 1
        assert not wanted[seen + 1 : reply].any() and wanted[reply:].all()
    share = 1 - batch["show_told"].mean()
    assert 0 <= share < 0.35
    empty = made.codec.show(None)
    for ids, valid, told in zip(batch["show_ids"], batch["show_valid"], batch["show_told"], strict=True):
        assert (ids[valid].tolist() == empty) == (not told)


def test_what_is_seen_is_said_from_left_to_right(made: Mixture) -> None:
    """Plans to draw go from far to near; plans of what is seen go as captions do."""
    near = SceneObject("ring", "red", "large", x=0.25, y=0.75, depth=0)
    scene = Scene((near, SceneObject("star", "blue", "small", x=0.75, y=0.5, depth=1)))
    row = made.codec.plan(scene, mentioned=True)
    tokens = made.codec.tokenizer.convert_ids_to_tokens(row)
    assert " ".join(tokens) == "Ġred Ġring Ġlarge <16> <48> Ġblue Ġstar Ġsmall <48> <32>"
    assert made.codec.plan(scene) == row[5:] + row[:5]


def test_training_scenes_are_training_scenes() -> None:
    assert {split_of(scene) for scene in scenes_like(np.random.default_rng(0), 100)} == {"train"}


def test_folder_of_captioned_pictures(tmp_path) -> None:
    from PIL import Image

    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (30, 20), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {colour} card")
    batch = mixture(str(tmp_path))(np.random.default_rng(0), 6)
    assert batch["show_image"].shape == (6, 64, 64, 3) and "edit_ids" not in batch
    said = {
        packaged_codec().text(row[valid]) for row, valid in zip(batch["tell_ids"], batch["tell_valid"], strict=True)
    }
    assert said <= {"a red card", "a blue card"}


def test_recipes_refuse_what_they_cannot_do(tmp_path) -> None:
    with pytest.raises(ShowtellError, match="did you mean: bridge"):
        run("bridg", out=tmp_path / "x")
    with pytest.raises(ShowtellError, match="cannot train on"):
        run("judge", data="emoji", out=tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShowtellError):
        run("bridge", data=str(tmp_path / "empty"), out=tmp_path / "x")
    assert not (tmp_path / "x").exists() and set(RECIPES) < set(NAMES)


def test_recipe_writes_a_checkpoint_that_loads(tmp_path) -> None:
    """A few steps of the second judge, from start to a folder in the Hugging Face layout with its card."""
    import json

    from showtell.nets.scene_parser import SceneParser

    run("judge2", out=tmp_path / "j", steps=2, batch=4, progress=False)
    card = json.loads((tmp_path / "j" / "card.json").read_text())
    assert card["steps"] == 2 and card["samples"] == 8 and card["parameters"] > 1e5
    model = SceneParser.from_pretrained(tmp_path / "j")
    assert str(next(model.parameters()).dtype) == "torch.bfloat16" or model.dtype is not None
    assert sorted(p.name for p in (tmp_path / "j").iterdir()) == ["card.json", "config.json", "model.safetensors"]
