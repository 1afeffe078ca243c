"""Folders of pictures with captions: both layouts, and one clear line for everything that can be wrong."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from showtell.data import Pair, load_folder
from showtell.errors import ShowtellError


def paint(file, colour="red", size=(20, 10), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)
    return file


def listing(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def captioned(tmp_path):
    for name, colour, caption in (
        ("b.png", "red", "a red card"),
        ("sub/a.jpg", "blue", "一张蓝色的卡片\n\na blue card\n"),
    ):
        paint(tmp_path / name, colour).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return tmp_path


def test_captions_beside(captioned):
    paint(captioned / ".hidden" / "c.png")
    (captioned / "notes.md").write_text("not a picture")
    pairs = load_folder(captioned, size=16)
    assert [pair.path.name for pair in pairs] == ["b.png", "a.jpg"]
    assert [pair.captions for pair in pairs] == [("a red card",), ("一张蓝色的卡片", "a blue card")]


def test_the_whole_picture_is_kept_on_white(tmp_path):
    """A picture twice as wide as high fills the width; above and below is white."""
    file = paint(tmp_path / "wide.png", "red", (40, 20))
    file.with_suffix(".txt").write_text("red")
    (pair,) = load_folder(tmp_path, size=16)
    image = pair.image()
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert (image[4:12] == (255, 0, 0)).all()
    assert (image[:4] == 255).all() and (image[12:] == 255).all()


def test_small_pictures_are_enlarged_and_transparency_is_white(tmp_path):
    paint(tmp_path / "glass.png", (0, 0, 0, 0), (2, 2), "RGBA").with_suffix(".txt").write_text("nothing")
    image = load_folder(tmp_path, size=16)[0].image()
    assert image.shape == (16, 16, 3) and (image == 255).all()


def test_metadata(tmp_path):
    paint(tmp_path / "one.png")
    paint(tmp_path / "deep" / "two.webp")
    paint(tmp_path / "unlisted.png")
    (tmp_path / "one.txt").write_text("not this caption")
    listing(
        tmp_path,
        {"file_name": "deep/two.webp", "text": ["dos", "二"], "width": 20},
        "",
        {"file_name": "one.png", "text": " one "},
        {"file_name": "one.png", "text": "one more"},
    )
    assert load_folder(str(tmp_path)) == [
        Pair(tmp_path / "deep/two.webp", ("dos", "二"), 64),
        Pair(tmp_path / "one.png", ("one", "one more"), 64),
    ]


def test_metadata_with_a_byte_order_mark_and_windows_lines(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "a"}\r\n\r\n')
    assert load_folder(tmp_path)[0].captions == ("a",)


def test_pictures_are_read_only_when_wanted(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "broken.txt").write_text("a broken picture")
    (pair,) = load_folder(tmp_path)
    with pytest.raises(ShowtellError, match=r"broken\.png") as error:
        pair.image()
    assert "\n" not in str(error.value)


def test_a_picture_cut_short(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.txt").write_text("noise")
    with pytest.raises(ShowtellError, match=r"cut\.png"):
        load_folder(tmp_path)[0].image()


def refused(folder, *words, **settings):
    with pytest.raises(ShowtellError) as error:
        load_folder(folder, **settings)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_no_such_folder(tmp_path):
    refused(tmp_path / "none", "none", "no such folder")
    refused(paint(tmp_path / "a.png"), "a.png", "it is a file")


def test_no_pictures(tmp_path):
    (tmp_path / "a.txt").write_text("a caption")
    refused(tmp_path, "no pictures", "metadata.jsonl")


def test_no_captions(captioned):
    paint(captioned / "c.png")
    refused(captioned, "1 of 3", "c.png", ".txt", "metadata.jsonl")
    (captioned / "c.txt").write_text(" \n")
    refused(captioned, "c.txt", "empty")


def test_captions_that_are_not_text(captioned):
    (captioned / "b.txt").write_bytes(b"\xff\xfe\x00")
    refused(captioned, "b.txt", "UTF-8")


def test_a_size_that_cannot_be(captioned):
    refused(captioned, "size 0", size=0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", ["line 2", "JSON", "{broken"]),
        ("[" * 100000, ["line 2", "JSON"]),
        ("[1, 2]", ["line 2", "file_name"]),
        ({"text": "a"}, ["line 2", "file_name"]),
        ({"file_name": 3, "text": "a"}, ["line 2", "file_name"]),
        ({"file_name": "a.png"}, ["line 2", "text"]),
        ({"file_name": "a.png", "text": []}, ["line 2", "text"]),
        ({"file_name": "a.png", "text": ["a", 3]}, ["line 2", "text"]),
        ({"file_name": "a.png", "text": "  "}, ["line 2", "text"]),
        ({"file_name": "gone.png", "text": "a"}, ["line 2", "gone.png", "no file"]),
        ({"file_name": "x" * 5000, "text": "a"}, ["line 2", "no file"]),
        ({"file_name": "a\0.png", "text": "a"}, ["line 2", "no file"]),
        ({"file_name": "../outside.png", "text": "a"}, ["line 2", "../outside.png", "outside of the folder"]),
        ({"file_name": "/etc/hostname", "text": "a"}, ["line 2", "/etc/hostname", "outside of the folder"]),
        ({"file_name": "link.png", "text": "a"}, ["line 2", "link.png", "outside of the folder"]),
        ({"file_name": "circle.png", "text": "a"}, ["line 2", "no file"]),
    ],
)
def test_wrong_metadata(tmp_path, line, words):
    folder = tmp_path / "folder"
    paint(folder / "a.png")
    paint(tmp_path / "outside.png")
    os.symlink(tmp_path / "outside.png", folder / "link.png")
    os.symlink(folder / "circle.png", folder / "circle.png")
    listing(folder, {"file_name": "a.png", "text": "a"}, line)
    refused(folder, "metadata.jsonl", *words)


def test_empty_metadata(tmp_path):
    paint(tmp_path / "a.png")
    listing(tmp_path, "")
    refused(tmp_path, "lists no pictures")


@pytest.mark.parametrize("name", ["a.png", "a.txt", "metadata.jsonl"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "folder"
    paint(folder / "a.png").with_suffix(".txt").write_text("inside")
    paint(tmp_path / "a.png").with_suffix(".txt").write_text("secret")
    listing(tmp_path, {"file_name": "a.png", "text": "secret"})
    (folder / name).unlink(missing_ok=True)
    os.symlink(tmp_path / name, folder / name)
    refused(folder, name, "outside of the folder")


def test_links_inside_the_folder_are_fine(captioned):
    os.symlink(captioned / "b.png", captioned / "c.png")
    os.symlink(captioned / "b.txt", captioned / "c.txt")
    assert [pair.path.name for pair in load_folder(captioned)] == ["b.png", "c.png", "a.jpg"]
