"""Reading, converting and writing pictures and files."""

import os
import stat

import numpy as np
import pytest
from PIL import Image

from showtell.errors import ShowtellError
from showtell.files import check_writable, write
from showtell.pictures import grid, load_image, rgb, save, to_pil

RED = (255, 0, 0)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_transparency_becomes_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    loaded = load_image(saved(image, tmp_path / "a.png"))
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 1)) == RED


def test_palette_with_a_transparent_colour_becomes_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    loaded = load_image(saved(image, tmp_path / "a.png", transparency=0))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((3, 3)) == RED


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    loaded = load_image(saved(image, tmp_path / "a.png"))
    assert [loaded.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_greyscale_and_cmyk(tmp_path):
    assert load_image(saved(Image.new("L", (2, 2), 77), tmp_path / "a.png")).getpixel((0, 0)) == (77, 77, 77)
    cmyk = load_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95))
    assert cmyk.mode == "RGB"
    assert np.abs(np.subtract(cmyk.getpixel((4, 4)), RED)).max() < 8


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to show it upright
    image = Image.new("RGB", (6, 3), "white")
    image.putpixel((0, 2), RED)
    loaded = load_image(saved(image, tmp_path / "a.png", exif=exif))
    assert loaded.size == (3, 6)
    assert loaded.getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "truncated"])
def test_what_is_no_image_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        saved(Image.fromarray(noise), path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind != "missing":
        path.write_text("not an image" if kind == "text" else "")
    with pytest.raises(ShowtellError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_to_pil_agrees_whatever_holds_the_image():
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    expected = [picture.tobytes() for picture in pixels]
    floats = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).movedim(-1, -3).requires_grad_()
    for images in (
        pixels,
        floats,
        floats.astype(np.float64),
        tensor,
        list(tensor),
        [Image.fromarray(p) for p in pixels],
        [pixels[0], tensor[1]],
    ):
        found = to_pil(images)
        assert [(i.mode, i.size) for i in found] == [("RGB", (7, 5))] * 2
        assert [i.tobytes() for i in found] == expected
    assert len(to_pil(pixels[0])) == len(to_pil(tensor[0])) == len(to_pil(Image.new("L", (3, 3)))) == 1
    assert to_pil([]) == []


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 8, 8)),
        np.zeros((8, 8)),
        np.zeros((8, 8, 3), np.int64),
        np.full((8, 8, 3), -1.0),
        np.full((8, 8, 3), 200.0),
        np.full((8, 8, 3), np.nan),
        "picture.png",
        None,
    ],
)
def test_to_pil_refuses_what_it_would_have_to_guess(images):
    with pytest.raises(ShowtellError, match="cannot take"):
        to_pil(images)


def test_to_pil_clips_what_rounding_left_outside():
    assert to_pil(np.full((1, 1, 3), 1.0005))[0].getpixel((0, 0)) == (255, 255, 255)


def test_grid_places_row_by_row():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sheet = grid([Image.new("RGB", (10, 10), colour) for colour in colours], columns=2, gap=2)
    assert sheet.size == (22, 22)
    centres = [sheet.getpixel(at) for at in [(5, 5), (17, 5), (5, 17), (17, 17)]]
    assert centres == [*colours, (255, 255, 255)]


def test_grid_labels_leave_the_pictures_alone():
    picture = Image.new("RGB", (100, 50), (0, 0, 200))
    sheet = grid([picture], labels=["a very long label " * 20])
    assert sheet.width == 100
    assert sheet.crop((0, 0, 100, 50)).tobytes() == picture.tobytes()
    assert np.asarray(sheet)[50:].min() < 100  # something is written there


def test_grid_says_what_is_wrong():
    picture = Image.new("RGB", (4, 4))
    for arguments in ([[]], [[picture], 0], [[picture], 1, ["a", "b"]]):
        with pytest.raises(ShowtellError):
            grid(*arguments)


def test_rgb_keeps_an_rgb_image_as_it_is():
    image = Image.new("RGB", (3, 3), RED)
    assert rgb(image) is image


def test_save_and_read_back(tmp_path):
    image = to_pil(np.random.default_rng(0).random((9, 8, 3)))[0]
    save(image, tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tobytes() == image.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ShowtellError, match="no space left"):
        save(Image.new("RGB", (4, 4)), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.xyz", "a", "missing/a.png", "file/a.png", "folder.png", "n" * 300 + ".png"])
def test_where_nothing_can_be_written(tmp_path, name):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ShowtellError, match="cannot write"):
        save(Image.new("RGB", (4, 4)), tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_write_follows_links_keeps_permissions_and_spares_devices(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write(link, "new")
    assert real.read_text() == "new"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    write("/dev/null", "nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
