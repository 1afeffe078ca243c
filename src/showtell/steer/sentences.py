"""One vector for a text, from whatever text encoder a model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ShowtellError


def sentences(source: Any, texts: Sequence[str]) -> torch.Tensor:
    """The mean over the words of each text's states, (n, channels) float32. source: a run or a diffusion bridge.

    Special tokens and padding do not count. Raises ShowtellError for a text in which the encoder reads no word.
    """
    tokens = source.encode(list(texts)).tokens.float()
    found = [[at for word in source.words(text) for at in word.positions] for text in texts]
    if not all(found):
        raise ShowtellError(f"{texts[found.index([])]!r} has no words to align a picture with; name what it shows.")
    return torch.stack([tokens[row, at].mean(dim=0) for row, at in enumerate(found)])
