"""Towards Better Text-to-Image Generation Alignment via Attention Modulation.
Wu, Cao, Li, Chen, Wang, Meng, Huang, 2024, arXiv 2404.13899

Attention that is spread too widely lets entities leak into each other and attributes go astray. Three changes inside of
attention, each in its phase of the sampling, gather it: early self-attention is sharpened, so that patches listen to
their like; every patch attends to the words of one entity alone, the one it attends to most; and the weight of the
prompt's words moves from nouns to modifiers while the image forms.

Faithful: a temperature below one in early self-attention; the mask over entity groups (a noun with its modifiers) by
each layer's own cross-attention, summed over a group's tokens, with function words, start, end and padding free;
weights by part of speech and phase; no gradient, no further evaluation of the network.
Ours (the paper's values were not to be had): temperature 0.7 in the first fifth, the mask after the first tenth, nouns
from 1.5 to 1 and modifiers from 0.8 to 1.5, linearly. Weights multiply attention before it is normalised, so rows still
sum to one. Groups are found by `steer.phrases`. In joint attention the temperature is that of image tokens for image
tokens, the mask is for image queries. The temperature is that of every guidance branch, the rest the conditional one's.
Not measured: time, of which no evaluation of the network is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.phrases import at_site, nouns_and_modifiers, things_of

Change = tuple[float, float]
"""A weight at the beginning and at the end of the sampling."""

EXAMPLE = """
import showtell
from showtell.papers.compose.attribution_focusing import AttributionFocusing

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
prompt = "a red ring left of a blue star"
[image] = bridge.generate(prompt, using=[AttributionFocusing()], seed=0)
[image] = bridge.generate(prompt, using=[AttributionFocusing(things={"ring": ["red"], "star": ["blue"]})], seed=0)
"""


class AttributionFocusing(Technique):
    """Sharper early self-attention, one entity per patch, weights that move from nouns to modifiers.

    temperature: of self-attention; early: for this fraction of the sampling. mask_from: fraction of the sampling that
    runs before the mask. nouns, modifiers: weights, first and last. temperature 1, mask_from 1 and weights (1, 1)
    change nothing, each by itself. things: noun -> its modifiers, where a prompt has them; None finds its own.
    """

    def __init__(
        self,
        temperature: float = 0.7,
        early: float = 0.2,
        mask_from: float = 0.1,
        nouns: Change = (1.5, 1.0),
        modifiers: Change = (0.8, 1.5),
        things: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if temperature <= 0 or min(*nouns, *modifiers) <= 0:
            raise ShowtellError("temperature and weights have to be above 0; 1 changes nothing.")
        self.temperature, self.early, self.mask_from = temperature, early, mask_from
        self.nouns, self.modifiers, self.things = nouns, modifiers, things

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state, found = run.state(self), nouns_and_modifiers(things_of(run, self.things), run.text.tokens.shape[1])
        state.nouns, state.modifiers = (one.to(latents.device) for one in found)

    def sharpens(self, run: Run) -> bool:
        return self.temperature != 1 and run.progress < self.early

    def weights(self, run: Run) -> tuple[float, float]:
        """Of nouns and of modifiers at this step."""
        along = run.step / max(run.steps - 1, 1)
        return tuple(first + (last - first) * along for first, last in (self.nouns, self.modifiers))  # type: ignore[return-value]

    def wants(self, run: Run, place: Place) -> bool:
        words = run.progress >= self.mask_from or self.weights(run) != (1, 1)
        words = words and hasattr(run.state(self), "nouns")  # a technique before this one may look ahead
        return place.fold == 1 and (
            (self.sharpens(run) and place.kind != "cross") or (words and place.text is not None)
        )

    def attention(self, run: Run, site: Any) -> None:
        if self.sharpens(run) and site.kind == "self":
            site.query = site.query / self.temperature
        elif self.sharpens(run) and site.kind == "joint":
            sharper = torch.tensor(1 / self.temperature)
            site.rescale(sharper, on="logits", branch=None, queries="image", keys="image")
        if site.text is not None and hasattr(run.state(self), "nouns"):
            self.focus(run, site)

    def focus(self, run: Run, site: Any) -> None:
        """The mask and the weights, at a place that attends to text."""
        state = run.state(self)
        nouns, modifiers = at_site(state.nouns, site), at_site(state.modifiers, site)
        amount = torch.zeros(nouns.shape[0], 1, 1, nouns.shape[-1], device=nouns.device)
        for words, weight in zip((nouns, modifiers), self.weights(run), strict=True):
            amount = amount + words.any(dim=1)[:, None, None] * torch.tensor(weight).log()
        if run.progress >= self.mask_from:
            groups = nouns | modifiers
            scores = torch.einsum("nxt,nkt->nxk", site.maps().detach().float().mean(dim=1), groups.float())
            own = F.one_hot(self.owner(run, site, scores, nouns.any(dim=-1)), groups.shape[1]).bool()
            others = torch.einsum("nxk,nkt->nxt", (~own).float(), groups.float()) > 0
            amount = amount.masked_fill(others[:, None], torch.finfo(site.query.dtype).min)
        site.bias(amount)

    def owner(self, run: Run, site: Any, scores: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """The group each patch serves, (n, image tokens). scores: (n, image tokens, groups); there: (n, groups)."""
        return scores.argmax(dim=-1)


class RandomOwner(AttributionFocusing):
    """The control: each patch serves a group drawn at random, anew at every place and step."""

    def owner(self, run: Run, site: Any, scores: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        draw = torch.rand(scores.shape[1:], generator=torch.Generator().manual_seed(run.step * site.of + site.depth))
        return (draw.to(scores) * there[:, None]).argmax(dim=-1)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("bindings")
    off: dict[str, Any] = {"temperature": 1.0, "mask_from": 1.0, "nouns": (1.0, 1.0), "modifiers": (1.0, 1.0)}

    def arm(*using: Technique) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed)

    arms = {
        "attribution focusing": arm(AttributionFocusing()),
        "plain": arm(),
        "temperature": arm(AttributionFocusing(**off | {"temperature": 0.7})),
        "mask": arm(AttributionFocusing(**off | {"mask_from": 0.1})),
        "weights": arm(AttributionFocusing(**off | {"nouns": (1.5, 1.0), "modifiers": (0.8, 1.5)})),
        "random owner": arm(RandomOwner()),
    }
    return lab.compare_by(
        (prompts.complete, prompts.objects), arms, expect="attribution focusing > plain", control="random owner"
    )
