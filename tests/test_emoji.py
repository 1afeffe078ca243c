"""The colour-emoji world: what is drawn, its names, what is held out, the cache, and what may be missing."""

import hashlib
import warnings
from collections import Counter
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from showtell.data import emoji, text
from showtell.errors import ShowtellError

APPLE, FARMER, FAMILY = "\U0001f34e", "\U0001f469\U0001f3fd\u200d\U0001f33e", "\U0001f46a"
NORWAY, SVALBARD, SCOTLAND = (
    "\U0001f1f3\U0001f1f4",
    "\U0001f1f8\U0001f1ef",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
)


@pytest.fixture(scope="session")
def font():
    try:
        return emoji.find_font()
    except ShowtellError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def everything(font, tmp_path_factory):
    """The one full rendering."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return emoji.load()


@pytest.fixture(scope="session")
def by_char(everything):
    return {item.char: item for item in everything.items}


@pytest.fixture(scope="session")
def all_names():
    return emoji._all_names()


@pytest.fixture
def few(font, all_names, monkeypatch, tmp_path):
    """The folder of an empty cache, and only 40 emoji to draw."""
    names = all_names
    chosen = [APPLE, FARMER, NORWAY, *sorted(names)[::100]]
    monkeypatch.setattr(emoji, "_all_names", lambda: {char: names[char] for char in chosen})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "showtell"


def picture(everything, char):
    return everything.images[[item.char for item in everything.items].index(char)]


def test_nearly_all_emoji_are_drawn(everything, all_names):
    assert len(everything) == len(everything.items) >= 3600
    assert everything.images.shape == (len(everything), 64, 64, 3)
    assert everything.alpha.shape == (len(everything), 64, 64)
    assert everything.images.dtype == everything.alpha.dtype == np.uint8
    assert len({item.char for item in everything.items}) == len(everything)
    assert len(everything) + len(everything.dropped) == len(all_names)


def test_every_picture_shows_something_of_its_own(everything):
    assert everything.alpha.any(axis=(1, 2)).all()
    pictures = Counter(hashlib.sha256(image.tobytes()).digest() for image in everything.images)
    for item, image in zip(everything.items, everything.images, strict=True):
        if not item.flag:
            assert pictures[hashlib.sha256(image.tobytes()).digest()] == 1, item.names["en"]
    assert (picture(everything, NORWAY) == picture(everything, SVALBARD)).all()


def test_sequences_are_one_picture(everything):
    woman, grain, black_flag = "\U0001f469\U0001f3fd", "\U0001f33e", "\U0001f3f4"
    for whole, part in ((FARMER, woman), (FARMER, grain), (SCOTLAND, black_flag), (FAMILY, woman)):
        assert (picture(everything, whole) != picture(everything, part)).any()


def test_what_the_font_has_no_picture_for_is_dropped(font, monkeypatch):
    missing = {
        "\U0001f34a\u200d\U0001f33e": "orange of rice",  # the font would draw the parts side by side
        "\U0010fffe": "no character",  # nor has it this one
        " ": "nothing",
        "\U0001f3c2\U0001f3ff": "snowboarder dark skin tone",  # drawn without the tone
    }
    drawn = {
        APPLE: "red apple",
        "\U0001f3c2": "snowboarder",
        NORWAY: "flag of Norway",
        SVALBARD: "flag of Svalbard",
    }
    monkeypatch.setattr(emoji, "_all_names", lambda: {c: {"en": name} for c, name in (missing | drawn).items()})
    some = emoji.load(cache=False)
    assert [item.char for item in some.items] == list(drawn)
    assert some.dropped == list(missing)


def test_pictures_lie_on_white(everything):
    assert (everything.images[everything.alpha == 0] == 255).all()
    red, green, blue = picture(everything, APPLE)[36, 32]
    assert red > 150 and green < 100 and blue < 100
    assert (picture(everything, APPLE)[0, 0] == 255).all()


def test_background(few):
    white, black, teal = (emoji.load(32, background=colour) for colour in ("white", "black", "#008080"))
    assert (white.images.astype(int) - black.images == 255 - white.alpha[..., None].astype(int)).all()
    assert (teal.images[teal.alpha == 0] == (0, 128, 128)).all()
    assert (teal.images[teal.alpha == 255] == black.images[teal.alpha == 255]).all()


@pytest.mark.parametrize(
    ("char", "english", "chinese", "spanish"),
    [
        (APPLE, "red apple", "红苹果", "manzana roja"),
        (FARMER, "woman farmer medium skin tone", "农妇，中等肤色", None),
        (NORWAY, "flag of Norway", "挪威旗", "bandera de noruega"),
        ("\U0001f1fa\U0001f1f8", "flag of the United States", "美国旗", "bandera de estados unidos"),
        ("\U0001f1e8\U0001f1ec", "flag of Congo-Brazzaville", "刚果（布）旗", "bandera de congo"),
        (SCOTLAND, "flag of Scotland", "苏格兰旗", "bandera de escocia"),
        ("\u0023\ufe0f\u20e3", "keycap #", "按键 #", "teclas #"),
        ("\U0001f3f3\ufe0f", "white flag", "举白旗", "bandera blanca"),
        (FAMILY, "family", "家庭", "familia"),
    ],
)
def test_known_names(by_char, char, english, chinese, spanish):
    names = by_char[char].names
    assert names["en"] == english and names["zh"] == chinese
    assert spanish is None or names["es"] == spanish


def test_names_are_natural_and_unique_in_each_language(everything):
    languages = set(everything.items[0].names)
    assert languages >= {"en", "zh", "es", "de", "fr", "ja"}
    for language in languages:
        names = [item.names[language] for item in everything.items]
        assert not any("_" in name or ":" in name or name != name.strip() for name in names)
        assert len({text.normalise(name) for name in names}) == len(names), language


def test_equal_names_are_told_apart():
    assert emoji._distinct(["a", "bc", "d"], ["one", "One", "two"]) == [
        "one (U+61)",
        "One (U+62 U+63)",
        "two",
    ]


@pytest.mark.parametrize(
    ("name", "base", "gender", "skin_tone", "colour"),
    [
        ("woman farmer medium skin tone", "farmer", "woman", "medium", None),
        ("farmer medium-dark skin tone", "farmer", "person", "medium-dark", None),
        ("man running facing right", "running facing right", "man", None, None),
        ("woman light skin tone white hair", "white hair", "woman", "light", None),
        ("kiss woman man light skin tone dark skin tone", "kiss", "woman and man", "light and dark", None),
        ("couple with heart", "couple with heart", "people", None, None),
        ("men holding hands", "holding hands", "men", None, None),
        ("mermaid dark skin tone", "merperson", "woman", "dark", None),
        ("person", "person", "person", None, None),
        ("thumbs up light skin tone", "thumbs up", None, "light", None),
        ("thumbs up", "thumbs up", None, None, None),
        ("red heart", "heart", None, None, "red"),
        ("light blue heart", "heart", None, None, "light blue"),
        ("green square", "square", None, None, "green"),
        ("leafy green", None, None, None, None),
        ("man’s shoe", None, None, None, None),
        ("snowman", None, None, None, None),
        ("flag of Oman", None, None, None, None),
        ("family man woman girl boy", None, None, None, None),
    ],
)
def test_attributes(everything, name, base, gender, skin_tone, colour):
    item = next(item for item in everything.items if item.names["en"] == name)
    assert item.combination == (base, gender, skin_tone, colour)


def test_flags(everything):
    flags = {item.names["en"] for item in everything.items if item.flag}
    assert flags >= {
        "flag of Norway",
        "flag of Scotland",
        "black flag",
        "pirate flag",
        "rainbow flag",
        "chequered flag",
    }
    assert not flags & {"flag in hole", "open mailbox with raised flag", "red apple"}
    assert sum(name.startswith("flag of") for name in flags) > 250


def test_a_tenth_of_the_combinations_is_unseen(everything):
    combined = [item for item in everything.items if item.base and any(item.combination[1:])]
    unseen = [item for item in everything.items if item.split == "unseen"]
    assert set(unseen) <= set(combined)
    assert 0.08 < len(unseen) / len(combined) <= 0.101
    assert sum(item.colour is not None for item in unseen) >= 3
    train, held_out = everything.indices("train"), everything.indices("unseen")
    assert sorted([*train, *held_out]) == list(range(len(everything)))
    assert [everything.items[index] for index in held_out] == unseen


def test_unseen_combinations_are_new_but_their_parts_are_not(everything):
    train = [item for item in everything.items if item.split == "train"]
    combinations = {item.combination for item in train}
    times = Counter((kind, getattr(item, kind)) for item in train for kind in ("base", "gender", "skin_tone", "colour"))
    with_gender = Counter((item.base, item.gender) for item in train)
    for item in (item for item in everything.items if item.split == "unseen"):
        assert item.combination not in combinations
        assert with_gender[item.base, item.gender] >= 3
        for kind in ("base", "gender", "skin_tone", "colour"):
            assert times[kind, getattr(item, kind)] >= 3, item


@pytest.mark.parametrize("language", ["en", "zh", "es"])
def test_unseen_names_have_only_words_of_train(everything, language):
    train = [item.names[language] for item in everything.items if item.split == "train"]
    known = frozenset(word.lower() for word in text.known_words(train))
    unseen = [item.names[language] for item in everything.items if item.split == "unseen"]
    assert [word for name in unseen for word in text.unknown_words(name, known)] == []


def test_the_split_does_not_depend_on_the_order(everything):
    again = {item.char: item.split for item in emoji._split(everything.items[::-1])}
    assert again == {item.char: item.split for item in everything.items}


def test_nothing_is_held_out_whose_words_are_not_in_train(everything):
    own_words = [replace(item, names={"en": f"word{index}"}) for index, item in enumerate(everything.items)]
    assert {item.split for item in emoji._split([replace(item, split="train") for item in own_words])} == {"train"}


def same(one, other):
    return (
        one.items == other.items
        and one.dropped == other.dropped
        and (one.images == other.images).all()
        and (one.alpha == other.alpha).all()
    )


def test_the_cache_is_used_and_gives_the_same(few, monkeypatch):
    uncached = emoji.load(24, cache=False)
    assert not few.exists()
    first = emoji.load(24)
    (file,) = few.iterdir()
    assert same(first, uncached)
    drawing = emoji._draw_all
    monkeypatch.setattr(emoji, "_draw_all", lambda *args: pytest.fail("drawn again"))
    assert same(emoji.load(24), first)
    monkeypatch.setattr(emoji, "_draw_all", drawing)
    assert emoji.load(16).images.shape[1:] == (16, 16, 3)
    assert len(list(few.iterdir())) == 2 and file.exists()


@pytest.mark.parametrize("damage", ["empty", "garbage", "short", "flipped", "pickle", "other"])
def test_a_damaged_cache_is_rebuilt(few, damage, monkeypatch):
    first = emoji.load(24)
    (file,) = few.iterdir()
    whole = file.read_bytes()
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(b"not an archive" * 100)
        case "short":
            file.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            file.write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
        case "pickle":
            np.savez(file, images=np.array([{"a": 1}], dtype=object), alpha=1, about=1)
        case "other":
            np.savez(file, images=first.images[:2], alpha=first.alpha[:2], about=np.frombuffer(b"[]", np.uint8))
    assert same(emoji.load(24), first)
    monkeypatch.setattr(emoji, "_draw_all", lambda *args: pytest.fail("drawn again"))
    assert same(emoji.load(24), first)


def test_without_a_place_for_the_cache(few, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="drawn anew"):
        drawn = emoji.load(24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(drawn, emoji.load(24, cache=False))


def test_missing_font(monkeypatch, tmp_path):
    monkeypatch.delenv("SHOWTELL_EMOJI_FONT", raising=False)
    monkeypatch.setattr(emoji, "_FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(ShowtellError, match="apt-get install fonts-noto-color-emoji") as error:
        emoji.load()
    assert "\n" not in str(error.value)
    monkeypatch.setenv("SHOWTELL_EMOJI_FONT", str(tmp_path / "no.ttf"))
    with pytest.raises(ShowtellError, match=r"no emoji font at .*no\.ttf.*apt-get install"):
        emoji.load()


def test_the_variable_names_the_font(monkeypatch, tmp_path):
    file = tmp_path / "own.ttf"
    file.touch()
    monkeypatch.setenv("SHOWTELL_EMOJI_FONT", str(file))
    assert emoji.find_font() == file


def test_fonts_without_emoji(few, tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"nothing")
    with pytest.raises(ShowtellError, match=r"broken\.ttf.*apt-get install"):
        emoji.load(font=broken)
    plain = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    with pytest.raises(ShowtellError, match="draws no colour emoji"):
        emoji.load(font=plain)


@pytest.mark.parametrize("wrong", [{"size": 4}, {"size": 1000}, {"background": "reddish"}])
def test_wrong_arguments(wrong):
    with pytest.raises(ShowtellError, match=str(next(iter(wrong.values())))):
        emoji.load(**wrong)


@pytest.fixture
def squares():
    """Eight white pictures with one black square each, in the middle."""
    images = np.full((8, 20, 24, 3), 255, np.uint8)
    images[:, 8:12, 10:14] = 0
    return images


def test_augment_with_nothing_changes_nothing(squares):
    assert (emoji.augment(squares, np.random.default_rng(0), shift=0, noise=0, scale=0) == squares).all()


def test_augment_is_seeded(squares):
    before = squares.copy()
    one, same_seed, other = (emoji.augment(squares, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (one == same_seed).all() and (one != other).any() and (squares == before).all()
    assert one.shape == squares.shape and one.dtype == np.uint8


def test_augment_shifts_each_picture_in_its_own_way(squares):
    moved = emoji.augment(squares, np.random.default_rng(0), shift=3, noise=0, scale=0)
    corners = [tuple(np.argwhere(image[..., 0] == 0).min(axis=0)) for image in moved]
    assert len(set(corners)) > 3
    assert all(abs(y - 8) <= 3 and abs(x - 10) <= 3 for y, x in corners)
    assert ((moved == 0).sum(axis=(1, 2, 3)) == 4 * 4 * 3).all() and set(np.unique(moved)) == {0, 255}


def test_augment_brings_in_white():
    dark = np.zeros((64, 9, 9, 3), np.uint8)
    moved = emoji.augment(dark, np.random.default_rng(0), shift=2, noise=0, scale=0)
    assert set(np.unique(moved)) == {0, 255}
    assert (moved[:, 2:-2, 2:-2] == 0).all()


def test_augment_scales_about_the_middle(squares):
    rng = np.random.default_rng(0)
    ink = (255 - emoji.augment(squares, rng, shift=0, noise=0, scale=0.5).astype(float)).sum(axis=(1, 2, 3))
    assert ink.min() < 0.8 * 48 * 255 and ink.max() > 1.2 * 48 * 255
    zoomed = emoji.augment(squares, rng, shift=0, noise=0, scale=0.5)
    assert (zoomed == zoomed[:, ::-1, ::-1]).all()


def test_augment_adds_noise_of_the_size_asked_for():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    noisy = emoji.augment(grey, np.random.default_rng(0), shift=0, noise=0.05, scale=0).astype(float)
    assert abs(noisy.std() - 0.05 * 255) < 0.2 and abs(noisy.mean() - 128) < 0.3
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("images", "settings"),
    [
        (np.zeros((2, 8, 8, 3)), {}),
        (np.zeros((8, 8, 3), np.uint8), {}),
        (np.zeros((2, 8, 8, 4), np.uint8), {}),
        (np.zeros((2, 8, 8, 3), np.uint8), {"shift": -1}),
        (np.zeros((2, 8, 8, 3), np.uint8), {"noise": -0.1}),
        (np.zeros((2, 8, 8, 3), np.uint8), {"scale": 1.0}),
    ],
)
def test_augment_refuses(images, settings):
    with pytest.raises(ShowtellError):
        emoji.augment(images, np.random.default_rng(0), **settings)
