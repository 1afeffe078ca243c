"""The training mixture: what a batch holds, where its losses begin, and that data is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.data.mix import Mixture, scenes_like
from showtell.errors import ShowtellError
from showtell.train.recipes import NAMES, RECIPES, mixture, packaged_codec, run
from showtell.world import Scene, SceneObject
from showtell.world.sampling import split_of


@pytest.fixture(scope="module", params=["words", "pictures"])
def made(request: pytest.FixtureRequest) -> Mixture:
    return Mixture(packaged_codec(), scenes=True, pictures=request.param == "pictures")


def rows(batch: dict[str, np.ndarray], name: str) -> list[list[int]]:
    return [ids[valid].tolist() for ids, valid in zip(batch[f"{name}_ids"], batch[f"{name}_valid"], strict=True)]


def test_batches_are_a_function_of_the_generator(made: Mixture) -> None:
    one, two = (made(np.random.default_rng(3), 16) for _ in range(2))
    assert all(np.array_equal(one[name], two[name], equal_nan=name.endswith("places")) for name in one)
    assert not np.array_equal(one["show_ids"], made(np.random.default_rng(4), 16)["show_ids"])


def test_rows_begin_and_end_as_the_models_expect(made: Mixture) -> None:
    batch, special = made(np.random.default_rng(0), 48), made.codec.special
    empty = (made.codec.show(None), made.codec.edit(None))
    for kind, first in (("show", "<bos>"), ("edit" if made.pictures else "change", "<edit>")):
        found = rows(batch, kind)
        assert all(row[0] == special[first] and row[-1] == special["<show>"] for row in found)
        assert all(row.count(special["<sep>"]) == 1 for row in found)
        if kind == "edit":  # what is there stands between the instruction and the plan
            assert all(row.index(special["<show>"]) < row.index(special["<sep>"]) for row in found if row not in empty)
    if not made.pictures:
        assert not any(row in empty for row in rows(batch, "show"))
        return
    assert [row != empty[0] for row in rows(batch, "show")] == batch["show_told"].tolist()
    assert 0 <= 1 - batch["show_told"].mean() < 0.35
    assert len(batch["show_image"]) == 48 and len(batch["edit_source"]) == len(batch["edit_ids"])


def test_what_is_told_and_what_is_learned_of_it() -> None:
    """Replies are learned, and what an instruction changes; what is seen only where a picture is looked at; prompts
    never."""
    made = Mixture(packaged_codec(), scenes=True)
    batch, special = made(np.random.default_rng(0), 48), made.codec.special
    openings = [special[name] for name in ("<ask>", "<en>", "<zh>", "<es>", "<bos>")]
    asked: list[int] = []
    for row, valid, wanted in zip(rows(batch, "tell"), batch["tell_valid"], batch["tell_wanted"], strict=True):
        wanted, seen = wanted[valid], row.index(special["<eos>"])  # what is there ends
        assert row[0] == special["<show>"] and not wanted[: seen + 2].any() and row[seen + 1] in openings
        if row[seen + 1] != special["<ask>"]:
            assert wanted[seen + 2 :].all()
            continue
        answering = False
        asked.append(row.count(special["<ask>"]))
        for token, counts in zip(row[seen + 1 :], wanted[seen + 1 :], strict=True):
            answering &= token != special["<ask>"]
            assert counts == answering
            answering |= token == special["<sep>"]
    assert max(asked) > 4
    for row, valid, wanted in zip(rows(batch, "look"), batch["look_valid"], batch["look_wanted"], strict=True):
        assert row[0] == special["<show>"] and not wanted[0] and wanted[valid][1:].all()
    for row, valid, wanted in zip(rows(batch, "change"), batch["change_valid"], batch["change_wanted"], strict=True):
        assert wanted[valid].tolist() == [i > row.index(special["<sep>"]) for i in range(len(row))]


def test_things_lie_beside_what_is_told_of_them() -> None:
    """Rows that are read back from plans see none; of the others every object's words stand in what is told."""
    made = Mixture(packaged_codec(), scenes=True)
    batch = made(np.random.default_rng(0), 48)
    there = ~np.isnan(batch["tell_places"]).any(axis=-1)
    assert there[:48].any(axis=1).all() and not there[48:].any() and len(there) > 48
    assert ((batch["tell_places"][there] >= 0) & (batch["tell_places"][there] < 1)).all()
    english = 0
    for row, words, seen in zip(rows(batch, "tell"), batch["tell_words"], there, strict=True):
        if made.codec.special["<en>"] in row:
            english += 1
            said = made.codec.text(row)
            colours = {made.codec.text(one[:1].tolist()) for one in words[seen]}
            assert all(colour in said for colour in colours)
    assert english > 5


def test_prompts_are_read_back_from_their_plans() -> None:
    codec = packaged_codec()
    row = codec.show("a red ring", [70, 71])
    back, wanted = codec.back(row)
    words = codec.words("a red ring")
    special = codec.special
    assert back == [special["<show>"], 70, 71, special["<eos>"], special["<bos>"], *words, special["<eos>"]]
    assert wanted == [0] * 5 + [1] * (len(words) + 1)


def test_pictures_are_paired_with_the_last_prompts(tmp_path) -> None:
    """With one picture per caption, prompt and picture must be of one pair; and there is nothing to plan."""
    from PIL import Image

    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (30, 20), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {colour} card")
    made = mixture(str(tmp_path))
    batch = made(np.random.default_rng(0), 6)
    assert set(batch) == {
        *(f"show_{n}" for n in ("ids", "valid", "start")), *(f"look_{n}" for n in ("ids", "valid", "wanted")),
        "look_image", "look_clean",
    }  # fmt: skip
    for prompt, start, told, image in zip(
        rows(batch, "show"), batch["show_start"], rows(batch, "look"), batch["look_clean"], strict=True
    ):
        said = made.codec.text(prompt)
        assert said == made.codec.text(told) == ("a red card" if image[32, 32, 0] > 200 else "a blue card")
        assert prompt[start] == made.codec.special["<sep>"]


def test_what_is_seen_is_said_from_left_to_right() -> None:
    """Plans to draw go from far to near; plans of what is seen go as captions do, and say what is nearer."""
    made = Mixture(packaged_codec())
    near = SceneObject("ring", "red", "large", x=0.25, y=0.75, depth=0)
    scene = Scene((near, SceneObject("star", "blue", "small", x=0.75, y=0.5, depth=1)))
    row = made.codec.plan(scene, mentioned=True)
    tokens = made.codec.tokenizer.convert_ids_to_tokens(row)
    assert " ".join(tokens) == "Ġred Ġring Ġlarge <16> <48> <0> Ġblue Ġstar Ġsmall <48> <32> <1>"
    assert made.codec.plan(scene) == row[6:11] + row[:5]


def test_training_scenes_are_training_scenes() -> None:
    assert {split_of(scene) for scene in scenes_like(np.random.default_rng(0), 100)} == {"train"}


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
