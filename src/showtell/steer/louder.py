"""The plainest way to make an image model listen."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..bridges.base import Run, Technique
from ..bridges.layout import Place
from .maps import Where, places
from .regions import words_of


class Louder(Technique):
    """Multiplies the image's attention to all words of the prompt by one number, before it is normalised, everywhere.

    factor: above 0; 1 changes nothing. where: the layers; by default all in which text and image meet.
    """

    def __init__(self, factor: float, where: Where | None = None) -> None:
        self.factor, self.where = factor, where or places()

    def wants(self, run: Run, place: Place) -> bool:
        return place.text is not None and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        amount = torch.zeros(len(run.prompts), 1, 1, site.text.stop - site.text.start, device=site.query.device)
        for row, text in enumerate(run.prompts):
            amount[row, ..., list(words_of(run, text).positions)] = math.log(self.factor)
        site.bias(amount, queries="image", keys="text")
