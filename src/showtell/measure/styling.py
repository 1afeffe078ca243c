"""Styles taken from pictures: the task of methods that are shown one, and whether pictures have it and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.judge import Judge
from showtell.measure.prompts import PromptSet
from showtell.measure.scores import read
from showtell.world import Scene, SceneObject


class StyleTask:
    """References with a style and things of their own, and prompts for another thing each.

    prompts: a set whose scenes have styles, such as "styles". references (n): their pictures. content (n): what is on
    them ("a red ring and a blue star"). texts (n), wanted (n): a thing of another prompt, of a shape that the reference
    lacks, in words and as an object. The metrics take one image per prompt and give (n,).
    Raises ShowtellError where every other prompt shows no shape but those of a reference.
    """

    def __init__(self, prompts: PromptSet) -> None:
        self.scenes: list[Scene] = prompts.scenes
        self.references, self.content = prompts.renders, [" and ".join(one) for one in prompts.phrases]
        self.wanted: list[SceneObject] = []
        self.texts: list[str] = []
        each = [
            list(zip(scene.objects, told, strict=True))
            for scene, told in zip(self.scenes, prompts.phrases, strict=True)
        ]
        for i, scene in enumerate(self.scenes):
            taken = {thing.shape for thing in scene.objects}
            others = [pair for pairs in each[i + 1 :] + each[:i] for pair in pairs if pair[0].shape not in taken]
            if not others:
                raise ShowtellError("the prompts show too few shapes to ask for another one; use more of them")
            thing, phrase = others[0]
            self.wanted.append(thing)
            self.texts.append(phrase)

    def style(self, images: Any, judge: Judge | str = "first") -> np.ndarray:
        """1 where the reference's style is seen."""
        return np.array([float(a.style == b.style) for a, b in zip(self.scenes, read(images, judge), strict=True)])

    def content_leaked(self, images: Any, judge: Judge | str = "first") -> np.ndarray:
        """1 where some shape of the reference is seen."""
        shapes = [{thing.shape for thing in scene.objects} for scene in self.scenes]
        seen = read(images, judge)
        return np.array([float(any(t.shape in own for t in b.objects)) for own, b in zip(shapes, seen, strict=True)])

    def style_without_content(self, images: Any, judge: Judge | str = "first") -> np.ndarray:
        """1 where the style and the wanted thing in its colour are seen, and no shape of the reference."""
        found = zip(self.wanted, read(images, judge), strict=True)
        there = [any((t.shape, t.colour) == (w.shape, w.colour) for t in seen.objects) for w, seen in found]
        return self.style(images, judge) * np.array(there) * (1 - self.content_leaked(images, judge))
