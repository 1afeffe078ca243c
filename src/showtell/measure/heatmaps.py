"""Heat maps drawn over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..pictures import grid, to_pil


def overlay(image: Any, heat: Any, strength: float = 0.7, colours: str = "inferno") -> Image.Image:
    """The image darkened by its heat map: where it is hot one sees its colour.

    heat: (height, width) of any size, stretched to its own range. strength: in [0, 1], of the heat over the image.
    colours: a matplotlib colormap.
    """
    from matplotlib import colormaps

    [picture] = to_pil(image)
    values = np.asarray(heat, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    smooth = np.asarray(Image.fromarray(values).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    coloured = Image.fromarray((colormaps[colours](smooth)[..., :3] * 255).round().astype(np.uint8))
    return Image.blend(picture, coloured, strength)


def word_sheet(image: Any, maps: Sequence[tuple[str, Any]], smallest: int = 192) -> Image.Image:
    """One labelled sheet: the image, then the image under each word's heat map.

    maps: (word, heat) pairs. smallest: images smaller than this many pixels are enlarged, so that labels can be read.
    """
    [picture] = to_pil(image)
    times = -(-smallest // max(picture.size))
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    pictures = [picture, *(overlay(picture, heat) for _, heat in maps)]
    return grid(pictures, labels=["image", *(word for word, _ in maps)])
