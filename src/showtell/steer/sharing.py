"""Attention shared between the samples of a batch, or taken over from a recorded run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..bridges.base import Run, Technique
from ..bridges.layout import Place
from ..errors import ShowtellError
from .maps import Where, places


class ShareAttention(Technique):
    """Samples use the queries, keys or values of other samples.

    source: sample i takes from sample source[i]; [0, 1, 2, ...] changes nothing. parts: letters of "qkv". where: the
    places, by default self- and joint attention. steps: from, to, as fractions of the sampling.
    Mutual self-attention (arXiv 2304.08465) is source=[0, 0], parts "kv", in later steps and depths.
    """

    def __init__(
        self,
        source: Sequence[int],
        parts: str = "kv",
        where: Where | None = None,
        steps: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.source, self.parts, self.steps = list(source), _checked(parts, "qkv"), steps
        self.where = where or places(("self", "joint"))

    def wants(self, run: Run, place: Place) -> bool:
        return self.steps[0] <= run.progress < self.steps[1] and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        _check_source(self.source, len(run.prompts))
        for branch in site.branches:
            site.take(self.source, branch, self.parts)


class ExtendAttention(Technique):
    """Image tokens also attend to the image tokens of another sample, next to their own.

    The shared attention of StyleAligned (arXiv 2312.02133) and ConsiStory (arXiv 2402.03286). source: sample i also
    sees sample source[i]; a sample that is its own source is left as it is. where, steps: as in `ShareAttention`.
    weight: of the other sample's tokens against the own ones, before normalisation; 0 hides them.
    """

    def __init__(
        self,
        source: Sequence[int],
        where: Where | None = None,
        steps: tuple[float, float] = (0.0, 1.0),
        weight: float = 1.0,
    ) -> None:
        if weight < 0:
            raise ShowtellError(f"weight={weight}: use 0 or more.")
        self.source, self.steps, self.weight = list(source), steps, weight
        self.where = where or places(("self", "joint"))

    def wants(self, run: Run, place: Place) -> bool:
        running = self.steps[0] <= run.progress < self.steps[1] and self.weight > 0
        return running and place.image_keys is not None and place.fold == 1 and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        _check_source(self.source, len(run.prompts))
        own_key, own_value, image = site.key, site.value, site.image_keys
        own = site.logits()
        shared_key, shared_value = own_key.clone(), own_value.clone()
        for rows in site.branches.values():
            shared_key[rows], shared_value[rows] = own_key[rows][self.source], own_value[rows][self.source]
        site.key = shared_key
        other = site.logits()[..., image] + torch.tensor(self.weight).log().item()
        site.key = own_key
        weights = torch.cat([own, other], dim=-1).float().softmax(dim=-1).to(own)
        groups = site.query.shape[1] // own_value.shape[1]
        values = torch.cat([own_value, shared_value[:, :, image]], dim=2).repeat_interleave(groups, dim=1)
        output = weights @ values
        extended = site.output.clone()
        for rows in site.branches.values():
            changed = [i for i, other_sample in enumerate(self.source) if i != other_sample]
            at = [rows.start + i for i in changed]
            # Text queries of joint attention keep what they see.
            extended[at, :, site.image] = output[at, :, site.image]
        site.output = extended


@dataclass
class Recording:
    """Queries, keys, values and outputs of the attention of one run, by (step, depth), on the CPU."""

    parts: dict[tuple[int, int], dict[str, torch.Tensor]] = field(default_factory=dict)


class RecordAttention(Technique):
    """Writes a run's attention into a `Recording`, replacing what it held. The run itself does not change.

    parts: letters of "qkvo" (queries, keys, values, outputs). where: the places, by default self- and joint attention.
    """

    def __init__(self, recording: Recording, parts: str = "kv", where: Where | None = None) -> None:
        self.recording, self.parts = recording, _checked(parts, "qkvo")
        self.where = where or places(("self", "joint"))

    def start(self, run: Run, latents: torch.Tensor) -> None:
        self.recording.parts.clear()

    def wants(self, run: Run, place: Place) -> bool:
        return self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        names = {"q": "query", "k": "key", "v": "value", "o": "output"}
        kept = {letter: getattr(site, names[letter]).detach().cpu().clone() for letter in self.parts}
        self.recording.parts[site.step, site.depth] = kept


class InjectAttention(Technique):
    """Replaces attention by a recording of another run of as many samples, steps and guidance branches.

    Plug-and-play features (arXiv 2211.12572) inject "qk" (and "o" early), mutual self-attention "kv". parts, where,
    steps: as in `RecordAttention` and `ShareAttention`; what was not recorded is left alone.
    """

    def __init__(
        self,
        recording: Recording,
        parts: str = "kv",
        where: Where | None = None,
        steps: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.recording, self.parts, self.steps = recording, _checked(parts, "qkvo"), steps
        self.where = where or places(("self", "joint"))

    def wants(self, run: Run, place: Place) -> bool:
        running = self.steps[0] <= run.progress < self.steps[1]
        return running and (place.step, place.depth) in self.recording.parts and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        names = {"q": "query", "k": "key", "v": "value", "o": "output"}
        for letter in self.parts:
            kept = self.recording.parts[site.step, site.depth].get(letter)
            if kept is None:
                raise ShowtellError(f"the recording holds no {letter!r}; record it with parts={self.parts!r}.")
            own = getattr(site, names[letter])
            if kept.shape != own.shape:
                raise ShowtellError(
                    f"recorded attention has the shape {tuple(kept.shape)}, this run {tuple(own.shape)}."
                )
            setattr(site, names[letter], kept.to(own))


def _checked(parts: str, known: str) -> str:
    if not parts or set(parts) - set(known):
        raise ShowtellError(f"parts={parts!r}: use letters of {known!r}.")
    return parts


def _check_source(source: list[int], count: int) -> None:
    if len(source) != count or not all(0 <= one < count for one in source):
        raise ShowtellError(
            f"source={source}: give one sample index from 0 to {count - 1} for each of {count} samples."
        )
