"""The colour-emoji world: nearly 3,800 real drawings from the system's emoji font, named in 14 languages.

The pictures come from the font (Debian's `fonts-noto-color-emoji`), the names from the `emoji` package, which
takes them from Unicode's CLDR. Many emoji are combinations (skin tone x gender x profession or activity,
colour x shape); a tenth of these combinations is held out as the "unseen" split.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, features

from showtell import files
from showtell.data import text
from showtell.errors import ShowtellError

INSTALL = "apt-get install fonts-noto-color-emoji"
FONT_VARIABLE = "SHOWTELL_EMOJI_FONT"
_FONT_FOLDERS = (
    "/usr/share/fonts/truetype/noto",  # Debian, Ubuntu
    "/usr/share/fonts/noto",  # Arch, Alpine
    "/usr/share/fonts/google-noto-emoji",  # Fedora
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
)
_STRIKE = 109  # the one size at which Noto Color Emoji holds bitmaps (136 x 128 pixels)
_LARGEST = 256  # nearly twice the font's own resolution, and a gigabyte of pictures
_CACHE_VERSION = 1  # to be raised when anything below changes what is cached

_TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
_TONE_WORDS = re.compile(r" (?:medium-light|medium-dark|light|medium|dark) skin tone")
_GENDER_WORDS = re.compile(r"\b(?:woman|women|man|men|person|people)\b(?!’) ?")
_GENDERS = {  # the gender words of an English name, in order
    "woman": "woman",
    "man": "man",
    "person": "person",
    "women": "women",
    "men": "men",
    "people": "people",
    "woman woman": "women",
    "man man": "men",
    "person person": "people",
    "woman man": "woman and man",
}
_GENDERED = {  # names that say the gender in another way: gender and base
    "Santa Claus": ("man", "Claus"),
    "Mrs. Claus": ("woman", "Claus"),
    "Mx Claus": ("person", "Claus"),
    "boy": ("man", "child"),
    "girl": ("woman", "child"),
    "child": ("person", "child"),
    "merman": ("man", "merperson"),
    "mermaid": ("woman", "merperson"),
    "merperson": ("person", "merperson"),
    "older person": ("person", "old"),
    "prince": ("man", "with crown"),
    "princess": ("woman", "with crown"),
}
_COLOURS = re.compile(r"\b(light blue|red|orange|yellow|green|blue|purple|brown|black|white|grey|pink) (?=\w)")
_HELD_OUT = 0.1  # of the combinations
_TRAIN_TIMES = 3  # how often each modifier, base, and pair of base and gender occurs in train, at least
_TRAIN_WORDS = 2  # and each word (in Chinese: character) of a held-out emoji's name
_WORD_LANGUAGES = ("en", "zh", "es")  # the inflection of others would leave no coloured thing to hold out

Split = Literal["train", "unseen"]


@dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, names and what it is made of."""

    char: str
    names: Mapping[str, str] = field(hash=False)
    """Language ("en", "es", "zh", "de", "fr", "ja", ...) -> name, unique within the language."""
    skin_tone: str | None = None
    """One of "light", "medium-light", "medium", "medium-dark", "dark"; of two people "light and dark"."""
    gender: str | None = None
    """One of "woman", "man" (girls and boys too), "person"; couples are "women", "men", "people" or
    "woman and man"."""
    base: str | None = None
    """What several emoji have in common: "farmer", "running", "heart"; None if it has no variants."""
    colour: str | None = None
    """The colour in a thing's name ("red" heart); skin and hair are not meant."""
    flag: bool = False
    split: Split = "train"

    @property
    def combination(self) -> tuple[str | None, str | None, str | None, str | None]:
        """(base, gender, skin_tone, colour): no two emoji with a base have the same."""
        return self.base, self.gender, self.skin_tone, self.colour


@dataclass(frozen=True, eq=False)
class EmojiSet:
    """All emoji that the font draws, with their pictures in the same order.

    images: uint8 (n, size, size, 3), composited on the background;
    alpha: uint8 (n, size, size), 255 where opaque;
    dropped: the characters of the emoji left out, since the font has no picture of their own for them.
    """

    items: list[Emoji]
    images: np.ndarray
    alpha: np.ndarray
    dropped: list[str]

    def __len__(self) -> int:
        return len(self.items)

    def indices(self, split: Split) -> np.ndarray:
        """Where in `items` and `images` the emoji of a split are: int64 (m,)."""
        return np.flatnonzero([item.split == split for item in self.items])


def load(
    size: int = 64, background: str = "white", font: str | os.PathLike[str] | None = None, cache: bool = True
) -> EmojiSet:
    """All fully-qualified emoji that the font draws as one picture of their own, about 3,780 of 3,963.

    Left out (`EmojiSet.dropped`): what the font does not know (it would draw an empty box or the parts side
    by side) and, flags apart, what it draws exactly like a simpler emoji (a snowboarder's skin tone).
    Flags that are the same by law, such as Norway's and Svalbard's, stay.

    size: of the square pictures in pixels, 8 to 256;
    background: any colour name that Pillow knows, or #rrggbb;
    font: a font file, by default the one that the environment variable SHOWTELL_EMOJI_FONT names, or else
    Noto Color Emoji in the usual places;
    cache: keep the drawings in $XDG_CACHE_HOME/showtell (~/.cache/showtell). Drawing takes some 5 seconds,
    reading the cache a fifth of one.

    Raises ShowtellError: no emoji font, a font that draws no emoji, a size or colour that cannot be.
    """
    if not 8 <= size <= _LARGEST:
        raise ShowtellError(f"size {size} is out of range: emoji are drawn at 8 to {_LARGEST} pixels")
    try:
        colour = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise ShowtellError(f"unknown colour {background!r}: give a name such as white, or #rrggbb") from None
    path = find_font(font)
    file = _cache_file(path, size)
    emoji = _read(file, size) if cache else None
    if emoji is None:
        emoji = _draw_all(path, size)
        if cache:
            _store(file, emoji)
    # The drawings are kept premultiplied by alpha: any background is one addition, which cannot overflow.
    for channel, level in enumerate(colour):
        behind = np.array([round((255 - alpha) * level / 255) for alpha in range(256)], np.uint8)
        emoji.images[..., channel] += 255 - emoji.alpha if level == 255 else behind[emoji.alpha]
    return emoji


def find_font(font: str | os.PathLike[str] | None = None) -> Path:
    """The emoji font file: the one given, else $SHOWTELL_EMOJI_FONT, else an installed Noto Color Emoji.

    Raises ShowtellError, with the command that installs it, when there is none.
    """
    chosen = font or os.environ.get(FONT_VARIABLE)
    if chosen:
        if not Path(chosen).is_file():
            raise ShowtellError(f"no emoji font at {chosen}; give a font file, or install one: {INSTALL}")
        return Path(chosen)
    for folder in _FONT_FOLDERS:
        path = Path(folder).expanduser() / "NotoColorEmoji.ttf"
        if path.is_file():
            return path
    raise ShowtellError(f"no colour emoji font found; install one: {INSTALL}")


def augment(
    images: np.ndarray, rng: np.random.Generator, shift: int = 4, noise: float = 0.05, scale: float = 0.1
) -> np.ndarray:
    """Pictures on white, each zoomed, shifted and made noisy in its own way, uint8 (n, h, w, 3).

    images: uint8 (n, h, w, 3); rng: the same state gives the same pictures;
    shift: the most pixels each way; what comes in from outside is white;
    noise: standard deviation of the Gaussian noise, where 1 is the whole range from black to white;
    scale: zoom factors are drawn from 1 - scale to 1 + scale, uniformly.
    With shift, noise and scale 0 the pictures stay as they are.
    Raises ShowtellError for other shapes and types, and for a shift, noise or scale that cannot be.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ShowtellError(f"images must be uint8 (n, h, w, 3), not {images.dtype} {images.shape}")
    if shift < 0 or noise < 0 or not 0 <= scale < 1:
        raise ShowtellError(f"shift {shift}, noise {noise} must be at least 0 and scale {scale} from 0 to below 1")
    n, height, width, _ = images.shape
    zoom = rng.uniform(1 - scale, 1 + scale, (n, 1))
    down, right = rng.integers(-shift, shift + 1, (2, n, 1))
    moved = 255 - images.astype(np.float32)  # as ink, so that outside, where there is none, is white
    if shift or scale:
        moved = _weights(height, zoom, down) @ moved.reshape(n, height, width * 3)
        moved = moved.reshape(n, height, width, 3).swapaxes(1, 2).reshape(n, width, height * 3)
        moved = _weights(width, zoom, right) @ moved
        moved = moved.reshape(n, width, height, 3).swapaxes(1, 2)
    if noise:
        moved = moved + np.float32(noise * 255) * rng.standard_normal(images.shape, np.float32)
    return np.clip(np.rint(255 - moved), 0, 255).astype(np.uint8)


def _weights(length: int, zoom: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis, zoomed about the middle, then shifted: float32 (n, to, from).

    zoom, offset: (n, 1). Nothing comes from outside.
    """
    middle = (length - 1) / 2
    source = (np.arange(length) - middle - offset) / zoom + middle
    return np.maximum(0, 1 - np.abs(source[:, :, None] - np.arange(length))).astype(np.float32)


# Names and attributes


def _all_names() -> dict[str, dict[str, str]]:
    """Characters -> language -> name, for every fully-qualified emoji."""
    import emoji

    emoji.config.load_language(list(emoji.LANGUAGES))
    qualified = emoji.STATUS["fully_qualified"]
    chars = [char for char, data in emoji.EMOJI_DATA.items() if data["status"] == qualified]
    names: dict[str, dict[str, str]] = {char: {} for char in chars}
    for language in emoji.LANGUAGES:
        known = [char for char in chars if language in emoji.EMOJI_DATA[char]]
        plain = [_natural(emoji.EMOJI_DATA[char][language], language, _is_country(char)) for char in known]
        for char, name in zip(known, _distinct(known, plain), strict=True):
            names[char][language] = name
    return {char: by_language for char, by_language in names.items() if "en" in by_language}


def _natural(code: str, language: str, country: bool) -> str:
    """The code ":red_apple:" as "red apple"; a country's flag as a flag, which not every code says."""
    code = code.strip(":")
    if language == "zh":
        code = re.sub(r"_(?=[#*\d])", " ", code)  # keycaps
        code = re.sub(r"_(\w)$", r"（\1）", code)  # the two Congos
        return code.replace("_", "，") + ("旗" if country else "")
    name = " ".join(code.replace("_", " ").split())
    if country and language == "en":
        return f"flag of {'the ' if _TAKES_ARTICLE.search(name) else ''}{name}"
    if country and language == "es":
        return name.replace("bandera ", "bandera de ", 1)
    return name


_TAKES_ARTICLE = re.compile(
    r"^(?:United|U\.S\.|European Union|Isle of|Turks|Philippines|Bahamas|Maldives|Gambia|Seychelles|Comoros)"
    r"|^[^&]*(?:Islands|Republic|Territory|Territories|Lands|Netherlands)$"
)


def _is_country(char: str) -> bool:
    """A flag named by region: two regional indicators, or a black flag with tags (Scotland)."""
    return "\U0001f1e6" <= char[0] <= "\U0001f1ff" or char.endswith("\U000e007f")


def _distinct(chars: Iterable[str], names: list[str]) -> list[str]:
    """The names, each that another emoji has too followed by its code points."""
    times = Counter(text.normalise(name) for name in names)
    return [
        name if times[text.normalise(name)] == 1 else f"{name} ({' '.join(f'U+{ord(c):X}' for c in char)})"
        for char, name in zip(chars, names, strict=True)
    ]


def _describe(char: str, names: Mapping[str, str]) -> Emoji:
    """The emoji with what its characters and its English name tell, before it is compared with the others."""
    english = _TONE_WORDS.sub("", names["en"])
    tones = dict.fromkeys(_TONES[c] for c in char if c in _TONES)
    gender, base = _gender(english)
    colour = _COLOURS.search(base) if gender is None and not tones else None
    return Emoji(
        char=char,
        names=names,
        skin_tone=" and ".join(tones) or None,
        gender=gender,
        base=_COLOURS.sub("", base, count=1) if colour else base,
        colour=colour[1] if colour else None,
        flag=_is_country(char) or char[0] in "\U0001f3f3\U0001f3f4\U0001f3c1\U0001f6a9\U0001f38c",
    )


def _gender(name: str) -> tuple[str | None, str]:
    """Gender and base of an English name: "woman farmer" as ("woman", "farmer")."""
    if name in _GENDERED:
        return _GENDERED[name]
    if name.startswith("family"):  # its members are not variants of one thing
        return None, name
    found = " ".join(_GENDER_WORDS.findall(name)).replace("  ", " ").strip()
    if found not in _GENDERS:
        return None, name
    return _GENDERS[found], _GENDER_WORDS.sub("", name).removeprefix("and ").strip() or "person"


def _relate(items: list[Emoji]) -> list[Emoji]:
    """The emoji with neutral genders named, and without a base where it has only one member."""
    genders: dict[str | None, set[str | None]] = {}
    for item in items:
        genders.setdefault(item.base, set()).add(item.gender)
    sizes = Counter(item.base for item in items)

    def related(item: Emoji) -> Emoji:
        if sizes[item.base] == 1:
            return replace(item, base=None)
        others = genders[item.base] - {None}
        if item.gender is None and others:  # "farmer" beside "woman farmer"
            return replace(item, gender="people" if others & {"women", "men"} else "person")
        return item

    return [related(item) for item in items]


def _split(items: list[Emoji]) -> list[Emoji]:
    """The emoji with a tenth of the combinations held out, the same ones every time.

    One is held out only while every modifier, base, and pair of base and gender occurs in train at least
    three times more, and every word of its names in English, Chinese and Spanish twice more.
    """
    parts = {item.char: _ingredients(item) for item in items}
    in_train = Counter(part for item in items for part in parts[item.char])
    combined = [item for item in items if item.base and (item.skin_tone or item.gender or item.colour)]
    in_order = sorted(combined, key=lambda item: hashlib.sha256(item.char.encode()).digest())
    held_out: set[str] = set()
    # Coloured things are few beside people and hands, so each kind gives its own tenth.
    for kind in ([item for item in in_order if item.colour], [item for item in in_order if not item.colour]):
        left = round(_HELD_OUT * len(kind))
        for item in kind:
            if left and all(in_train[part] > least for part, least in parts[item.char].items()):
                held_out.add(item.char)
                in_train.subtract(parts[item.char].keys())
                left -= 1
    return [replace(item, split="unseen") if item.char in held_out else item for item in items]


def _ingredients(item: Emoji) -> dict[tuple[str | None, ...], int]:
    """What the emoji is made of, and how often each part has to occur in train at least."""
    parts: dict[tuple[str | None, ...], int] = {
        ("base", item.base): _TRAIN_TIMES,
        ("base and gender", item.base, item.gender): _TRAIN_TIMES,
    }
    for kind in ("gender", "skin_tone", "colour"):
        if getattr(item, kind):
            parts[kind, getattr(item, kind)] = _TRAIN_TIMES
    for language in _WORD_LANGUAGES:
        for word in text.words(item.names.get(language, "")):
            for part in word if text.is_cjk(word) else [word]:
                parts[language, part] = _TRAIN_WORDS
    return parts


# Drawing


def _draw_all(path: Path, size: int) -> EmojiSet:
    """Every emoji that the font has a picture of; `images` premultiplied by alpha, on nothing."""
    font = _open(path)
    names = _all_names()
    # All pictures are as wide as this face. A sequence that the font lacks is drawn as its parts, and wider.
    width = font.getlength("\U0001f600")
    nothing = {_draw(font, char).tobytes() for char in ("\U0010ffff", " ")}  # a missing character, a blank
    canvases: dict[str, Image.Image] = {}
    seen = set(nothing)
    for char in sorted(names, key=len):  # of emoji that look the same the simplest stays
        if font.getlength(char) != width:
            continue
        canvas = _draw(font, char)
        pixels = canvas.tobytes()
        if pixels not in seen or (_is_country(char) and pixels not in nothing):
            canvases[char] = canvas
            seen.add(pixels)
    if not any(_coloured(canvas) for canvas in canvases.values()):
        raise ShowtellError(f"{path} draws no colour emoji; give a font that does, or install one: {INSTALL}")
    chars = [char for char in names if char in canvases]
    # The filter has no negative weights, so that no colour comes out greater than its alpha.
    layers = np.stack([np.asarray(canvases[c].resize((size, size), Image.Resampling.HAMMING)) for c in chars])
    return EmojiSet(
        items=_split(_relate([_describe(char, names[char]) for char in chars])),
        images=np.ascontiguousarray(layers[..., :3]),
        alpha=np.ascontiguousarray(layers[..., 3]),
        dropped=[char for char in names if char not in canvases],
    )


def _open(path: Path) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):
        # Without it a family would be drawn as its members side by side. Pillow's wheels find it at run time.
        raise ShowtellError("Pillow lacks the raqm text layout that emoji need: apt-get install libfribidi0")
    try:
        return ImageFont.truetype(str(path), _STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ShowtellError(f"cannot draw with the font {path} ({error}); use Noto Color Emoji: {INSTALL}") from None


def _draw(font: ImageFont.FreeTypeFont, char: str) -> Image.Image:
    """The picture in the middle of a square, in Pillow's mode RGBa (premultiplied by alpha)."""
    left, top, right, bottom = _frame(font)
    side = max(right - left, bottom - top)
    canvas = Image.new("RGBA", (side, side))
    corner = (side - right - left) // 2, (side - bottom - top) // 2
    ImageDraw.Draw(canvas).text(corner, char, font=font, embedded_color=True)
    # What Pillow paints on a transparent canvas is premultiplied already, only not called so.
    return Image.frombytes("RGBa", canvas.size, canvas.tobytes())


def _coloured(picture: Image.Image) -> bool:
    values = np.asarray(picture)
    return bool((values[..., 0] != values[..., 2]).any())


@functools.lru_cache(maxsize=8)
def _frame(font: ImageFont.FreeTypeFont) -> tuple[int, int, int, int]:
    left, top, right, bottom = font.getbbox("\U0001f600")
    return int(left), int(top), int(right), int(bottom)


# The cache


def _cache_file(font: Path, size: int) -> Path:
    import emoji

    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(font.read_bytes())
    key.update(f"{emoji.__version__} {_CACHE_VERSION}".encode())
    return Path(root) / "showtell" / f"emoji-{key.hexdigest()[:16]}-{size}.npz"


def _store(file: Path, emoji: EmojiSet) -> None:
    about = {"items": [asdict(item) for item in emoji.items], "dropped": emoji.dropped}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=emoji.images,
        alpha=emoji.alpha,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, buffer.getvalue())
    except (OSError, ShowtellError) as error:
        warnings.warn(f"emoji are drawn anew every time, since {file} cannot be kept: {error}", stacklevel=3)


def _read(file: Path, size: int) -> EmojiSet | None:
    """The cached drawings, or None when there are none or the file is damaged."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            images, alpha = stored["images"], stored["alpha"]
            about: dict[str, Any] = json.loads(stored["about"].tobytes())
        items = [Emoji(**item) for item in about["items"]]
        n = len(items)
        whole = images.shape == (n, size, size, 3) and alpha.shape == (n, size, size)
        return EmojiSet(items, images, alpha, about["dropped"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
