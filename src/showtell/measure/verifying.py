"""A judge as the verifier inside a method, and metrics that leave it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from showtell.measure.judge import Judge
from showtell.measure.scores import read
from showtell.world.questions import answer
from showtell.world.scene import Scene, SceneError


def says_yes(images: Any, questions: Sequence[Sequence[str]], judge: Judge | str = "second") -> list[list[bool]]:
    """Whether each image's questions are answered by yes, of what the judge reads in it.

    questions: such as `showtell.world.questions` writes, a list for each image. What cannot be answered, as it is about
    something that is not there or not there alone, is no.
    """
    scenes = read(images, judge)
    return [[_yes(scene, one) for one in asked] for scene, asked in zip(scenes, questions, strict=True)]


def _yes(scene: Scene, question: str) -> bool:
    try:
        return answer(scene, question) == "yes"
    except SceneError:
        return False


def shown(pictures: Sequence[Any], things: Sequence[str], judge: Judge | str = "second") -> list[float]:
    """1 where the judge sees such a thing in the picture, else 0. pictures: PIL, up to 64x64, such as crops.

    things: "a red ring", one for each; shape and colour count. A picture is read at its own size on white: one that
    filled the page would show a thing larger than any that the judge knows.
    """
    pages = []
    for picture in pictures:
        pages.append(Image.new("RGB", (64, 64), "white"))
        pages[-1].paste(picture, ((64 - picture.width) // 2, (64 - picture.height) // 2))
    seen = [[(one.shape, one.colour) for one in scene.objects] for scene in read(pages, judge)]
    wanted = [Scene.parse(thing).objects[0] for thing in things]
    return [float((one.shape, one.colour) in found) for one, found in zip(wanted, seen, strict=True)]


def first_judge_only(metric: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """A metric of a prompt set that the second judge does not repeat, since it took part in what is measured."""

    def score(images: Any) -> np.ndarray:
        return metric(images)

    score.__name__ = getattr(metric, "__name__", "score")
    return score
