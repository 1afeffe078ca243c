"""Arms side by side on the same prompts and seed: a sheet of pictures, of clips, or of curves."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 6
LARGEST = 128  # pixels of a cell's longer side
SMALLEST = 96
FRAMES_PER_SECOND = 6


def shown(output: Any, columns: int = COLUMNS) -> np.ndarray | None:
    """The first outputs of an arm as uint8 (columns, frames, height, width, 3); None where they are no pictures.

    Stills have one frame. Larger pictures are scaled down, so that what is kept stays small.
    """
    if not isinstance(output, Sequence) or isinstance(output, str) or not len(output):
        return None
    clips = [list(one) if isinstance(one, list | tuple) else [one] for one in output[:columns]]
    if not all(clip and all(isinstance(frame, Image.Image) for frame in clip) for clip in clips):
        return None
    frames = min(len(clip) for clip in clips)
    size = _fit(clips[0][0].size)
    return np.stack([np.stack([_pixels(frame, size) for frame in clip[:frames]]) for clip in clips])


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, LARGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    picture = image.convert("RGB")
    return np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS))


def sheet(arms: Mapping[str, np.ndarray], texts: Sequence[str] = ()) -> list[Image.Image]:
    """One row per arm, one column per item, names on the left and texts on top; as many sheets as there are frames.

    arms: name -> what `shown` returned. Clips of fewer frames stand still on their last.
    """
    columns = min(len(pixels) for pixels in arms.values())
    frames = max(pixels.shape[1] for pixels in arms.values())
    cell_w = max(SMALLEST, max(pixels.shape[3] for pixels in arms.values()))
    cell_h = max(SMALLEST, max(pixels.shape[2] for pixels in arms.values()))
    font = ImageFont.load_default(size=11)
    heads = ["\n".join(textwrap.wrap(text, cell_w // 6)[:5]) for text in texts[:columns]]
    top = 14 * max((head.count("\n") + 1 for head in heads), default=0) + 4 * bool(heads)
    left, gap = 100, 4
    blank = Image.new("RGB", (left + columns * (cell_w + gap), top + len(arms) * (cell_h + gap)), "white")
    pen = ImageDraw.Draw(blank)
    for column, head in enumerate(heads):
        pen.multiline_text((left + column * (cell_w + gap), 0), head, fill="black", font=font)
    for row, name in enumerate(arms):
        wrapped = "\n".join(textwrap.wrap(name, left // 6)[:5])
        pen.multiline_text((0, top + row * (cell_h + gap) + cell_h // 2 - 7), wrapped, fill="black", font=font)
    sheets = []
    for frame in range(frames):
        page = blank.copy()
        for row, pixels in enumerate(arms.values()):
            for column in range(columns):
                image = Image.fromarray(pixels[column, min(frame, pixels.shape[1] - 1)])
                if image.width < SMALLEST and image.height < SMALLEST:  # whole pixels, not a blur
                    scale = SMALLEST / max(image.size)
                    image = image.resize(
                        (round(image.width * scale), round(image.height * scale)), Image.Resampling.NEAREST
                    )
                page.paste(image, (left + column * (cell_w + gap), top + row * (cell_h + gap)))
        sheets.append(page)
    return sheets


def encoded(sheets: Sequence[Image.Image]) -> tuple[str, bytes]:
    """(file ending, bytes): PNG of one sheet, an endless animated WebP of several."""
    buffer = io.BytesIO()
    if len(sheets) == 1:
        sheets[0].save(buffer, format="PNG", optimize=True)
        return ".png", buffer.getvalue()
    sheets[0].save(
        buffer, format="WEBP", save_all=True, append_images=sheets[1:], loop=0, duration=1000 // FRAMES_PER_SECOND
    )
    return ".webp", buffer.getvalue()


def small(data: bytes, quality: int = 60) -> bytes:
    """The same picture as a small WebP, for the repository."""
    with Image.open(io.BytesIO(data)) as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(image.convert("RGB"))
    buffer = io.BytesIO()
    more: dict[str, Any] = (
        {"save_all": True, "append_images": frames[1:], "loop": 0, "duration": 1000 // FRAMES_PER_SECOND}
        if len(frames) > 1
        else {}
    )
    frames[0].save(buffer, format="WEBP", quality=quality, method=6, **more)
    return buffer.getvalue()


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], axes: tuple[str, str] = ("", ""), title: str = ""
) -> bytes:
    """A plot of every arm's points, with the mean over points of the same x, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    plot = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        if not points:
            continue
        x, y = np.array(sorted(points), dtype=float).T
        places = np.unique(x)
        means = [y[x == place].mean() for place in places]
        colour = f"C{number % 10}"
        plot.plot(places, means, color=colour, label=name)
        if len(x) > len(places):
            plot.scatter(x, y, s=6, color=colour, alpha=0.4)
    plot.set(xlabel=axes[0], ylabel=axes[1], title=title)
    plot.grid(alpha=0.3)
    plot.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
