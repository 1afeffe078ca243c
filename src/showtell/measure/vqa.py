"""What a model that answers questions says of an image and a text: the probability of "Yes"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..bridges.base import Bridge, as_list, spread
from ..errors import ShowtellError

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


def vqa_score(
    bridge: Any,
    images: Any,
    texts: str | Sequence[str],
    question: str = QUESTION,
    answer: str = "Yes",
    batch_size: int = 16,
) -> torch.Tensor:
    """P(answer | image, question about the text), (n,) in [0, 1] (arXiv 2404.01291, equation 1).

    images, texts: one of either for all of the other, or equally many. A clip (list of frames) or an object seen from
    several sides (list of views) counts as one image: the mean over its pictures.
    It is the probability among all that the model could say, not among yes and no; an answer of several tokens has the
    product of their probabilities. Raises UnsupportedError for bridges that answer no questions in words of their own.
    """
    teller = getattr(bridge, "teller", None)
    if teller is None:
        raise (
            bridge.unsupported("answer") if isinstance(bridge, Bridge) else ShowtellError("give a bridge that answers")
        )
    if "{}" not in question:
        raise ShowtellError(f"question={question!r}: put {{}} where the text goes.")
    shown = list(images) if isinstance(images, (list, tuple)) else as_list(images)
    if not shown or not as_list(texts):
        raise ShowtellError("give at least one image and one text.")
    asked = as_list(texts)
    count = max(len(shown), len(asked))
    shown = spread(shown if len(shown) > 1 else shown * count, count, "images")
    asked = spread(asked if len(asked) > 1 else asked[0], count, "texts")
    sizes = [len(one) if isinstance(one, (list, tuple)) else 1 for one in shown]
    frames = [frame for one in shown for frame in (one if isinstance(one, (list, tuple)) else [one])]
    questions = [question.replace("{}", text) for text, size in zip(asked, sizes, strict=True) for _ in range(size)]
    chances = teller.log_probability(frames, questions, [answer] * len(questions), batch_size).exp()
    return torch.stack([part.mean() for part in chances.split(sizes)])


def vqa_table(bridge: Any, images: Sequence[Any], texts: Sequence[str], question: str = QUESTION) -> np.ndarray:
    """`vqa_score` of every image with every text, (images, texts) in [0, 1]; it raises what that raises."""
    shown = [image for image in images for _ in texts]
    return vqa_score(bridge, shown, list(texts) * len(images), question).numpy().reshape(len(images), len(texts))
