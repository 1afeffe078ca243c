"""Pictures in and out: reading any image file, turning arrays and tensors into images, grids, saving."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from showtell.errors import ShowtellError
from showtell.files import write

_TOLERANCE = 1e-3  # how far outside 0..1 rounding may carry a pixel before it is taken for another range
_ACCEPTED = (
    "a PIL image, a numpy array (h, w, 3) or (n, h, w, 3), or a torch tensor (3, h, w) or (n, 3, h, w), "
    "with values in 0..1 or uint8"
)


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image in a file, as RGB: first frame, turned as its EXIF orientation says, transparency on white.

    Greyscale, palette, 16-bit (scaled to 8) and CMYK files are accepted.
    Raises ShowtellError: no such file, or not an image that can be read to its end.
    """
    if not Path(path).exists():
        raise ShowtellError(f"cannot read {path}: there is no such file")
    if Path(path).is_dir():
        raise ShowtellError(f"cannot read {path}: it is a folder, not an image")
    try:
        with Image.open(path) as image:
            image.load()
            return rgb(ImageOps.exif_transpose(image))
    except ShowtellError:
        raise
    except PermissionError:
        raise ShowtellError(f"cannot read {path}: permission denied") from None
    # Decoders meet a damaged file with many kinds of exception; to the reader they all mean the same.
    except Exception as error:
        reason = (
            str(error).splitlines()[0] if isinstance(error, Image.DecompressionBombError) else "not a whole image file"
        )
        raise ShowtellError(f"cannot read {path}: {reason}") from None


def rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB: transparency on white, 16-bit scaled to 8 (PIL's conversion would clip it)."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def to_pil(images: Any) -> list[Image.Image]:
    """One image or many, however they are held, as a list of RGB PIL images.

    images: a PIL image; numpy (h, w, 3) or (n, h, w, 3); torch (3, h, w) or (n, 3, h, w); or a list of these.
    Arrays and tensors hold floats in 0..1 or uint8 in 0..255.
    Raises ShowtellError for any other type, shape or range.
    """
    if isinstance(images, Image.Image):
        return [rgb(images)]
    if isinstance(images, list | tuple):
        return [picture for one in images for picture in to_pil(one)]
    if _is_tensor(images):
        values = images.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
        if values.ndim not in (3, 4) or values.shape[-3] != 3:
            raise ShowtellError(f"cannot take a torch tensor of shape {values.shape} as images; give {_ACCEPTED}")
        values = np.moveaxis(values, -3, -1)
    elif isinstance(images, np.ndarray):
        values = images
        if values.ndim not in (3, 4) or values.shape[-1] != 3:
            raise ShowtellError(f"cannot take a numpy array of shape {values.shape} as images; give {_ACCEPTED}")
    else:
        raise ShowtellError(f"cannot take {type(images).__name__} as images; give {_ACCEPTED}")
    batch = values if values.ndim == 4 else values[None]
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in _bytes(batch)]


def letterbox(image: Image.Image, size: int) -> Image.Image:
    """The picture scaled to fit a white square of `size` pixels; untouched if it has that size already."""
    if image.size == (size, size):
        return image
    inner = ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return canvas


def _is_tensor(value: Any) -> bool:
    """Whether value is a torch tensor, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(value).__mro__)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Pixel values as uint8: uint8 as it is, floats from 0..1."""
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise ShowtellError(f"cannot take images of type {values.dtype}; give uint8 in 0..255 or floats in 0..1")
    if values.size and not np.isfinite(values).all():
        raise ShowtellError("cannot take images with values that are not finite (NaN or infinity)")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ShowtellError(f"cannot take images with values in {low:.3g}..{high:.3g}; floats must lie in 0..1")
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def grid(images: Any, columns: int | None = None, labels: Sequence[str] | None = None, gap: int = 4) -> Image.Image:
    """All images on one white sheet, row by row, each in the middle of a cell as large as the largest.

    images: whatever `to_pil` takes; columns: the square root of their number, rounded up, by default;
    labels: one text for each image, written below it, shortened to three lines; gap: pixels between cells.
    """
    pictures = to_pil(images)
    if not pictures:
        raise ShowtellError("cannot make a grid of no images")
    if columns is not None and columns < 1:
        raise ShowtellError(f"cannot make a grid of {columns} columns; give 1 or more")
    if labels is not None and len(labels) != len(pictures):
        raise ShowtellError(f"{len(labels)} labels for {len(pictures)} images; give one for each")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    font = ImageFont.load_default(size=max(10, width // 20))
    texts = [_wrap(label, font, width) for label in labels or []]
    line = math.ceil(sum(font.getmetrics())) if isinstance(font, ImageFont.FreeTypeFont) else 12
    below = line * max((len(text) for text in texts), default=0)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + below + gap) - gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x, y = (index % columns) * (width + gap), (index // columns) * (height + below + gap)
        sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        for number, text in enumerate(texts[index] if texts else []):
            pen.text((x + width / 2, y + height + number * line), text, fill="black", font=font, anchor="ma")
    return sheet


def _wrap(label: str, font: Any, width: int, lines: int = 3) -> list[str]:
    """The label in at most so many lines of that width, broken at spaces where it has any."""
    rows = [""]
    for word in label.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            rows[-1] = longer
            continue
        if rows[-1]:
            rows.append("")
        for letter in word:
            if rows[-1] and font.getlength(rows[-1] + letter) > width:
                rows.append("")
            rows[-1] += letter
    if len(rows) > lines:
        rows = rows[:lines]
        while rows[-1] and font.getlength(rows[-1] + "…") > width:
            rows[-1] = rows[-1][:-1]
        rows[-1] += "…"
    return rows


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image file of that kind (PIL's name for it)."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def image_kind(path: str | os.PathLike[str]) -> str:
    """PIL's name for the kind of image that the path's ending asks for; ShowtellError for an unknown one."""
    Image.init()
    kind = Image.EXTENSION.get(Path(path).suffix.lower())
    if kind is None or kind not in Image.SAVE:
        ending = f"the ending {Path(path).suffix!r}" if Path(path).suffix else "no ending"
        raise ShowtellError(
            f"cannot write an image to {path}: {ending} is not that of an image; use .png, .jpg or .webp"
        )
    return kind


def save(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write an image file in one step, of the kind that the path's ending names.

    Raises ShowtellError when that cannot be done; what was there before then stays.
    """
    kind = image_kind(path)
    try:
        data = encode(image, kind)
    except (OSError, ValueError) as error:
        raise ShowtellError(f"cannot write {path}: {error}") from None
    return write(path, data)
