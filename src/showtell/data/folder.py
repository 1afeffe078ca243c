"""Image-text pairs from a folder: pictures with captions beside them, or listed in a `metadata.jsonl`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from showtell.errors import ShowtellError

METADATA = "metadata.jsonl"
_ENDINGS = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_EXAMPLE = '{"file_name": "a.png", "text": "a caption"}'
_LAYOUT = f"give each picture a .txt of the same name with its caption, or list them in {METADATA}"


@dataclass(frozen=True)
class Pair:
    """One picture of a folder with its captions; the file is read when `image` is called."""

    path: Path
    captions: tuple[str, ...]
    size: int

    def image(self) -> np.ndarray:
        """The whole picture, scaled to fit, in the middle of a white square: uint8 (size, size, 3).

        Nothing is cropped, since a caption may name it.
        Raises ShowtellError when the file is not a picture or is damaged.
        """
        from showtell.pictures import load_image

        picture = load_image(self.path)
        fitted = ImageOps.pad(picture, (self.size, self.size), Image.Resampling.LANCZOS, color="white")
        return np.asarray(fitted, np.uint8)


def load_folder(path: str | os.PathLike[str], size: int = 64) -> list[Pair]:
    """The pictures of a folder with their captions, sorted by path or in the order of `metadata.jsonl`.

    Either the folder has a `metadata.jsonl` as Hugging Face datasets' imagefolder: on each line an object
    with `file_name` (relative to the folder) and `text` (a caption, or a list of them); other keys and
    pictures not listed are ignored, and lines for the same picture add up. Or it has, beside each picture, a
    file of the same name ending in .txt, each line of which is one caption; subfolders are searched too,
    hidden ones not.

    Captions are read now, pictures when wanted. All files must lie inside the folder, links followed.
    size: width and height of the pictures that `Pair.image` gives, at least 1.

    Raises ShowtellError: no such folder, no pictures, a picture without caption, a listed picture that is
    missing or outside of the folder, a line of metadata that is not as above (with its number), captions not
    in UTF-8.
    """
    folder = Path(path)
    if size < 1:
        raise ShowtellError(f"size {size} is too small; give at least 1 pixel")
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else "there is no such folder"
        raise ShowtellError(f"cannot read {folder}: {reason}; give a folder of pictures")
    captions = _listed(folder) if (folder / METADATA).exists() else _beside(folder)
    return [Pair(file, tuple(texts), size) for file, texts in captions.items()]


def _listed(folder: Path) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    for number, line in enumerate(_read(folder, folder / METADATA).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{folder / METADATA}, line {number}"
        name, texts = _entry(line, where)
        file = folder / name
        try:
            inside, exists = _inside(folder, file), file.is_file()
        except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle, a null character
            inside, exists = True, False
        if not inside:
            raise ShowtellError(f"{where}: {name!r} is outside of the folder")
        if not exists:
            raise ShowtellError(f"{where}: there is no file {name!r} in the folder")
        captions.setdefault(file, []).extend(texts)
    if not captions:
        raise ShowtellError(f"{folder / METADATA} lists no pictures")
    return captions


def _entry(line: str, where: str) -> tuple[str, list[str]]:
    """The file name and captions of one line of metadata."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ShowtellError(f"{where} is not JSON: {line.strip()[:60]!r}") from None
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise ShowtellError(f"{where} has no file_name; write {_EXAMPLE}")
    texts = [entry.get("text")] if not isinstance(entry.get("text"), list) else entry["text"]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ShowtellError(f"{where}: text must be a caption or a list of captions, none of them empty")
    return name, [text.strip() for text in texts]


def _beside(folder: Path) -> dict[Path, list[str]]:
    pictures = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _ENDINGS
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not pictures:
        raise ShowtellError(f"there are no pictures in {folder}; {_LAYOUT}")
    bare = [file for file in pictures if not file.with_suffix(".txt").is_file()]
    if bare:
        some = f"{len(bare)} of {len(pictures)} pictures in {folder} have no caption, such as {bare[0].name}"
        raise ShowtellError(f"{some}; {_LAYOUT}")
    captions: dict[Path, list[str]] = {}
    for file in pictures:
        if not _inside(folder, file):
            raise ShowtellError(f"{file} leads outside of the folder")
        lines = _read(folder, file.with_suffix(".txt")).splitlines()
        captions[file] = [line.strip() for line in lines if line.strip()]
        if not captions[file]:
            raise ShowtellError(f"{file.with_suffix('.txt')} is empty; write a caption in it")
    return captions


def _inside(folder: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _read(folder: Path, file: Path) -> str:
    if not _inside(folder, file):
        raise ShowtellError(f"{file} leads outside of the folder")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ShowtellError(f"{file} is not text in UTF-8") from None
    except OSError as error:
        raise ShowtellError(f"cannot read {file}: {error.strerror or error}") from None
