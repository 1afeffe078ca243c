"""The judge: a network that parses any image back into a Scene, and the scores that follow from it.

Two judges of different architecture and training draw are packaged ("judge", dilated convolutions at one resolution,
and "judge2", U-shaped): what one has optimised, the other scores. Their own accuracy is in docs/judge.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.bridges.base import as_list
from showtell.data.drafts import Draft
from showtell.data.signal import signal
from showtell.data.synthesis import improve
from showtell.data.targets import OBJECT_VALUES, SCENE_VALUES
from showtell.errors import ShowtellError
from showtell.nets.scene_parser import SceneParser
from showtell.pictures import letterbox, to_pil
from showtell.weights import folder
from showtell.world.scene import Scene, SceneError, SceneObject, holds

JUDGES = ("judge", "judge2")


@dataclass(frozen=True)
class Parsed:
    """What a judge read in one image, and the probability it gives to having read all of it right, in [0, 1]."""

    scene: Scene
    confidence: float


class Judge:
    """A SceneParser with a mouth: images in, scenes out.

    rendering: the network proposes and the renderer disposes. Values to which the network gives some probability are
    drawn, and those closest to the image are kept (analysis by synthesis, coordinate by coordinate).
    """

    def __init__(self, model: SceneParser, device: Any = None, rendering: bool = True) -> None:
        self.model, self.rendering = model.eval().to(device or "cpu"), rendering

    @classmethod
    def from_pretrained(cls, path: Any, device: Any = None, rendering: bool = True) -> Judge:
        return cls(SceneParser.from_pretrained(path, dtype=torch.float32, use_safetensors=True), device, rendering)

    def read(self, images: Any) -> list[Parsed]:
        """What each image shows. At least one object is always reported: the likeliest one."""
        pictures = as_list(images) if not isinstance(images, np.ndarray | Tensor) else images
        drafts = [Draft.read(out) for out in self.model.probabilities(signal(pictures))]
        if self.rendering:
            improve(drafts, np.stack([np.asarray(letterbox(p, 64)) for p in to_pil(pictures)]))
        return [Parsed(draft.scene().canonical(), draft.confidence()) for draft in drafts]

    def parse(self, images: Any) -> list[Scene]:
        """The scene of each image."""
        return [parsed.scene for parsed in self.read(images)]

    @torch.no_grad()
    def features(self, images: Any, batch: int = 128) -> np.ndarray:
        """(n, 2 * width) descriptors of whole images, for distances between sets of images."""
        parts = [self.model(p.to(self.model.device))["features"].cpu() for p in signal(images).split(batch)]
        return torch.cat(parts).numpy()


@lru_cache(maxsize=4)
def load_judge(name: str = "judge", device: str = "cpu") -> Judge:
    """A packaged judge, one of `JUDGES`."""
    if name not in JUDGES:
        raise ShowtellError(f"unknown judge {name!r}; use one of: {', '.join(JUDGES)}")
    return Judge.from_pretrained(folder(name), device)


@dataclass(frozen=True)
class SceneScores:
    """One row per image, each in [0, 1]: see `scene_accuracy`."""

    objects: np.ndarray
    attributes: np.ndarray
    relations: np.ndarray
    counts: np.ndarray
    whole: np.ndarray

    def to_dict(self) -> dict[str, float]:
        """The mean of each score; relations over the scenes that state one (nan where none does)."""
        return {
            name: float(np.nanmean(value)) if np.isfinite(value).any() else float("nan")
            for name, value in vars(self).items()
        }


def compare(wanted: Scene, seen: Scene) -> tuple[float, float, float, float, float]:
    """(objects, attributes, relations, counts, whole) of one scene: see `scene_accuracy`."""
    pairs = _pair_up(wanted.objects, seen.objects)
    names = ("shape", "colour")
    objects = sum(b is not None and all(getattr(a, n) == getattr(b, n) for n in names) for a, b in pairs) / len(pairs)
    facts = [getattr(a, n) == getattr(b, n) for a, b in pairs for n in OBJECT_VALUES if b is not None]
    facts += [False] * sum(len(OBJECT_VALUES) for _, b in pairs if b is None)
    facts += [getattr(wanted, n) == getattr(seen, n) for n in (*SCENE_VALUES, "word")]
    partner = {id(a): b for a, b in pairs}
    stated = []
    for r in wanted.relations:
        groups = [tuple(partner[id(o)] for o in wanted.groups[i]) for i in (r.subject, *r.objects)]
        there = all(o is not None for group in groups for o in group)
        stated.append(there and holds(r.kind, *groups))  # type: ignore[arg-type]
    relations = float(np.mean(stated)) if stated else float("nan")
    kinds, shown = (Counter((o.shape, o.colour) for o in s.objects) for s in (wanted, seen))
    counts = float(np.mean([shown[kind] == number for kind, number in kinds.items()]))
    return objects, float(np.mean(facts)), relations, counts, float(wanted.matches(seen))


def _pair_up(
    wanted: Sequence[SceneObject], seen: Sequence[SceneObject]
) -> list[tuple[SceneObject, SceneObject | None]]:
    """Each wanted object with the seen object that shares most facts with it, at most one each (greedy, best first)."""
    weight = {"shape": 3, "colour": 3}
    ranked = sorted(
        ((sum(weight.get(n, 1) * (getattr(a, n) == getattr(b, n)) for n in OBJECT_VALUES), -i, -j)
         for i, a in enumerate(wanted) for j, b in enumerate(seen)), reverse=True)  # fmt: skip
    left, right = {}, set()
    for score, i, j in ranked:
        if score >= 3 and -i not in left and -j not in right:
            left[-i] = seen[-j]
            right.add(-j)
    return [(a, left.get(i)) for i, a in enumerate(wanted)]


def scene_accuracy(images: Any, scenes: Scene | Sequence[Scene], judge: Judge | str = "judge") -> SceneScores:
    """How much of each scene its image shows, as the judge reads it.

    objects: share of the wanted objects there with their shape and colour. attributes: share of all facts right
    (shape, colour, size, texture, state, rotation, background, style, light, word). relations: share of the stated
    relations that hold (nan where none is stated). counts: share of the kinds (shape, colour) there in the right
    number. whole: 1 where everything is right (`Scene.matches`) and nothing else is there.
    Raises ShowtellError where the numbers of images and scenes differ.
    """
    judge = load_judge(judge) if isinstance(judge, str) else judge
    seen = judge.parse(images)
    wanted = as_list(scenes)
    if len(seen) != len(wanted):
        raise ShowtellError(f"{len(seen)} images but {len(wanted)} scenes; give one scene per image")
    rows = np.array([compare(a, b) for a, b in zip(wanted, seen, strict=True)])
    return SceneScores(*rows.T)


def score(images: Any, texts: Any) -> list[float]:
    """How well each image shows its text, in [0, 1].

    A text about scenes: the mean of the judge's object, attribute, relation and count scores. Any other text: the
    cosine of image and text in the embedded bridge's space, rescaled from [-1, 1].
    Raises ShowtellError where the numbers differ or a text is empty.
    """
    pictures, sentences = to_pil(images), as_list(texts)
    if len(pictures) != len(sentences):
        raise ShowtellError(f"{len(pictures)} images but {len(sentences)} texts; give one text per image")
    return [_score(picture, text) for picture, text in zip(pictures, sentences, strict=True)]


def _score(picture: Any, text: str) -> float:
    if not isinstance(text, str) or not text.strip():
        raise ShowtellError("empty text; write what the image should show")
    try:
        wanted = Scene.parse(text)
    except SceneError:
        import showtell

        bridge = showtell.load()
        cosine = float((bridge.embed(images=picture) * bridge.embed(texts=text)).sum())
        return (cosine + 1) / 2
    return float(np.nanmean(compare(wanted, load_judge().parse(picture)[0])[:4]))
