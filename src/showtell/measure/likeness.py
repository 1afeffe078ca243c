"""How well images fit texts in the eyes of a model, not of the judge: by embedding, and by answering questions; and how
far images are from others.

The probability of "Yes" (VQAScore) is in `showtell.measure.vqa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from showtell.bridges.base import as_list, spread
from showtell.errors import ShowtellError
from showtell.pictures import to_pil
from showtell.world.language.english import without_article
from showtell.world.questions import Question


def clip_score(bridge: Any, images: Any, texts: str | Sequence[str], scale: float = 2.5) -> np.ndarray:
    """(n,) CLIPScore (arXiv 2104.08718): scale x the cosine of image and text in the bridge's space, at least 0.

    images: whatever `to_pil` takes; texts: one per image, or one for all. Raises UnsupportedError for bridges that do
    not embed, ShowtellError where the numbers differ.
    """
    pictures = to_pil(images)
    cosine = _vectors(bridge, images=pictures) * _vectors(bridge, texts=spread(texts, len(pictures), "texts"))
    return scale * cosine.sum(axis=1).clip(0)


def image_likeness(bridge: Any, images: Any, others: Any) -> np.ndarray:
    """(n,) cosine, in [-1, 1], of each image and its counterpart in the bridge's space (CLIP-I); or one for all."""
    pictures = to_pil(images)
    counterparts = to_pil(others)
    counterparts = spread(counterparts if len(counterparts) > 1 else counterparts[0], len(pictures), "others")
    return (_vectors(bridge, images=pictures) * _vectors(bridge, images=counterparts)).sum(axis=1)


def pixel_distance(images: Any, others: Any) -> np.ndarray:
    """(n,) root mean square difference of each image and its counterpart of the same size, in [0, 1].

    Raises ShowtellError where numbers or sizes differ.
    """
    ours, theirs = ([np.asarray(picture) / 255.0 for picture in to_pil(one)] for one in (images, others))
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        raise ShowtellError(f"{len(ours)} and {len(theirs)} images, or of other sizes; give pairs of equal size")
    return np.array([np.sqrt(np.square(one - other).mean()) for one, other in zip(ours, theirs, strict=True)])


def directional_likeness(
    bridge: Any, before: Any, after: Any, said: Sequence[str], wanted: Sequence[str]
) -> np.ndarray:
    """(n,) cosine of the change of the image and the change of the caption (arXiv 2108.00946); nan where
    either does not change.

    before, after: images; said, wanted: their captions, one each.
    """
    one, two, old, new = to_pil(before), to_pil(after), as_list(said), as_list(wanted)
    if not len(one) == len(two) == len(old) == len(new):
        raise ShowtellError(f"{len(one)} and {len(two)} images, {len(old)} and {len(new)} captions; give one each")
    seen = _vectors(bridge, images=two) - _vectors(bridge, images=one)
    told = _vectors(bridge, texts=new) - _vectors(bridge, texts=old)
    lengths = np.linalg.norm(seen, axis=1) * np.linalg.norm(told, axis=1)
    return np.divide((seen * told).sum(axis=1), lengths, out=np.full(len(seen), np.nan), where=lengths > 1e-8)


def question_score(bridge: Any, images: Any, asked: Sequence[Sequence[Question]], **more: Any) -> np.ndarray:
    """(n,) share of each image's questions that the bridge answers as wanted (TIFA, arXiv 2303.11897); nan of none.

    asked: questions with answers for each image, such as `PromptSet.questions`. Answers are compared in lower case,
    without articles and full stops. more: keywords of `bridge.answer`.
    """
    pictures = to_pil(images)
    if len(pictures) != len(asked):
        raise ShowtellError(f"{len(pictures)} images but {len(asked)} lists of questions; give one list per image")
    rows = [(i, question) for i, questions in enumerate(asked) for question in questions]
    told = bridge.answer([pictures[i] for i, _ in rows], [q.question for _, q in rows], **more) if rows else []
    right: list[list[bool]] = [[] for _ in pictures]
    for (i, question), text in zip(rows, told, strict=True):
        right[i].append(normal(text) == normal(question.answer))
    return np.array([np.mean(r) if r else np.nan for r in right], dtype=float)


def normal(text: str) -> str:
    """An answer as it is compared: lower case, no article, no full stop."""
    return without_article(" ".join(text.lower().strip().rstrip(".!").split()))


def _vectors(bridge: Any, **what: Any) -> np.ndarray:
    """(n, d) float64 unit vectors."""
    return bridge.embed(**what).detach().cpu().double().numpy()
