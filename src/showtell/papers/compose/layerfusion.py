"""LayerFusion: Harmonized Multi-Layer Text-to-Image Generation with Generative Priors.
Dalva, Li, Liu, Zhao, Zhang, Lin, Yanardag, 2024, arXiv 2412.04460

A foreground, a background and both together are denoised side by side. The foreground's object is where its
self-attention is compact and its image tokens attend to the end of the text; under this mask the joint image takes over
the foreground's attention and gives back what comes of it, and it attends to the background's tokens besides its own.

Faithful: the structure prior, 1 / sum of the squared self-attention, and the content prior, the attention to the
end-of-text token, both means over heads, with their product as mask; in every self-attention the joint image blended
under the soft mask, then the foreground with the outcome under the hard one; attention shared with the background; no
training.
Ours, where the paper's settings were not to be had: the mask is made on the grid nearest to 16x16 from the step before
(the first step has none), with Otsu's threshold; one starting noise for the three.
Not here: LayerDiffuse's transparent foregrounds, whose weights and decoder diffusers has not. The foreground stands on
the plain ground that its prompt leaves it, and its alpha is the mask on the pixels.
Scaled down: 20 steps, a mask of 8x8 cells. The base draws no empty scenes, so the background shows a thing of its own.
In it the end of the text is where the empty ground attends to, and objects attend to words (an object's cell has more
attention to the end than the ground's in 5 % of all pairs of cells, to words in 99 %; ten validation prompts), so the
content prior of the experiment is the attention to the words (`content`). What is under the alpha counts as much as
what is beside it, as ground agrees by itself.

Does not hold: on six validation prompts composite and blended image agree by 0.84, by 0.89 where layers share nothing
but their noise. The ground here is one colour, on which layers agree by themselves, so that only sharing can part them:
without scenes that fill the picture and without transparent foregrounds the claim is not really put to the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.layers import Layers, agreement, cut_out
from showtell.measure.prompts import PromptSet
from showtell.steer.blend import BlendLatents
from showtell.steer.maps import near
from showtell.steer.phrases import at_site, membership
from showtell.steer.regions import words_of
from showtell.steer.segment import masks_of, normalised
from showtell.steer.sharing import ExtendAttention

Triple = tuple[str, str, str]
"""Prompts of the foreground, the background and both."""

EXAMPLE = """
import showtell
from showtell.papers.compose.layerfusion import layered

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
prompts = ("a red ring on a white background", "a blue star on a table", "a red ring left of a blue star on a table")
[layers] = layered(bridge, [prompts], seed=0)
layers.foreground, layers.background, layers.blended, layers.composite
"""


class LayerFusion(Technique):
    """Samples come in threes: foreground, background, both. strength 0 changes nothing.

    masks: a list to which the last hard mask of each foreground is added, bool (height, width). content: what objects
    attend to, the text's "end" or its "words".
    """

    def __init__(self, masks: list[torch.Tensor] | None = None, strength: float = 1.0, content: str = "end") -> None:
        if content not in ("end", "words"):
            raise ShowtellError(f"content={content!r}: use 'end' or 'words'.")
        self.masks, self.strength, self.content_of = masks, strength, content

    def start(self, run: Run, latents: torch.Tensor) -> None:
        if len(run.prompts) % 3:
            count = len(run.prompts)
            raise ShowtellError(f"{count} prompts: give three for each image (foreground, background, both).")
        state, last = run.state(self), run.text.tokens.shape[1] - 1
        words = [list(words_of(run, prompt).positions) for prompt in run.prompts[0::3]]
        ends = [[min(max(each, default=-1) + 1, last)] for each in words]
        read = words if self.content_of == "words" else ends
        state.read = membership([[each] for each in read], last + 1)[:, 0].to(latents.device)
        state.structure, state.content, state.soft = [], [], None

    def wants(self, run: Run, place: Place) -> bool:
        return place.fold == 1 and (place.kind == "self" or (place.kind == "cross" and near(run, place)))

    def attention(self, run: Run, site: Any) -> None:
        state = run.state(self)
        if site.kind == "cross":
            maps, read = site.maps()[0::3].float().mean(dim=1), at_site(state.read, site).float()
            state.content.append(torch.einsum("nxt,nt->nx", maps, read).unflatten(-1, site.grid))
            return
        if near(run, site.place):
            seen = site.probabilities("text")[0::3].float().mean(dim=1)
            state.structure.append((1 / seen.square().sum(dim=-1)).unflatten(-1, site.grid))
        if state.soft is not None and self.strength:
            soft, hard = (self.strength * _on(mask, site.grid) for mask in (state.soft, state.hard.float()))
            site.output = fused(site.output, site.branches, soft, hard)

    def latents(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        if not state.structure or not state.content:
            raise ShowtellError("this model has no self- and cross-attention to read a mask from; use a UNet's.")
        state.soft = self.mask(torch.stack(state.structure).mean(dim=0), torch.stack(state.content).mean(dim=0))
        state.hard = masks_of(state.soft)
        state.structure, state.content = [], []

    def mask(self, structure: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """Where the object is, (n, height, width) in [0, 1]: what attends to little and is meant by the text."""
        return normalised((1 - normalised(structure)) * normalised(content))

    def finish(self, run: Run, outputs: list[Any]) -> None:
        if self.masks is not None:
            self.masks += run.state(self).hard.cpu()


class Elsewhere(LayerFusion):
    """The control: a mask of the same area half an image away."""

    def mask(self, structure: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        found = super().mask(structure, content)
        return found.roll((found.shape[1] // 2, found.shape[2] // 2), dims=(1, 2))


def _on(mask: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """A mask (n, h, w) on a grid, (n, 1, tokens, 1)."""
    return F.interpolate(mask[:, None], tuple(grid), mode="bilinear").flatten(2)[..., None]


def fused(output: torch.Tensor, branches: Any, soft: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    """The attention outputs (rows, heads, tokens, channels) of three layers a sample, blended in every branch.

    Both takes `soft` of the foreground, then the foreground `hard` of what this gave; the background stays.
    """
    changed = output.clone()
    for rows in branches.values():
        front, both = output[rows][0::3], output[rows][2::3]
        blended = both + soft.to(output) * (front - both)
        changed[rows.start : rows.stop : 3] = front + hard.to(output) * (blended - front)
        changed[rows.start + 2 : rows.stop : 3] = blended
    return changed


def layered(
    bridge: Any, prompts: Sequence[Triple], seed: int = 0, strength: float = 1.0,
    kind: type[LayerFusion] = LayerFusion, content: str = "end", **more: Any,
) -> list[Layers]:  # fmt: skip
    """Layers of each triple of prompts; strength 0: of three images that know nothing of each other.

    content: see `LayerFusion`. more: keywords of `generate`.
    """
    masks: list[torch.Tensor] = []
    texts = [text for triple in prompts for text in triple]
    source = [i - 1 if i % 3 == 2 else i for i in range(len(texts))]
    using = [ExtendAttention(source, weight=strength), kind(masks, strength, content=content)]
    seeds = [1000 * seed + i // 3 for i in range(len(texts))]
    images = bridge.generate(texts, using=using, seed=seeds, **more)
    return [Layers(cut_out(images[3 * i], mask), *images[3 * i + 1 : 3 * i + 3]) for i, mask in enumerate(masks)]


def experiment(lab: Lab) -> list[Comparison]:
    bridge, pairs = lab.base("unet"), lab.prompts("pairs", min(lab.n, 24))
    grounds = [("meadow", "sky", "sand", "dusk", "cream")[i % 5] for i in range(len(pairs))]
    scenes = [replace(scene, background=ground) for scene, ground in zip(pairs.scenes, grounds, strict=True)]
    both = PromptSet.of("layers", scenes, lab.seed, lab.split)
    parts = zip(pairs.phrases, grounds, both.texts, strict=True)
    prompts = [(front, f"{back} on a {ground} background", text) for (front, back), ground, text in parts]

    @cache
    def independent(seed: int) -> list[Layers]:
        return layered(bridge, prompts, seed, strength=0.0, content="words")

    @cache
    def sequential(seed: int) -> list[Layers]:
        """The joint image is painted around the finished foreground."""
        first = independent(seed)
        known = bridge.to_latents([one.foreground.convert("RGB") for one in first])
        free: Any = [1 - one.alpha for one in first]
        seeds = [1000 * seed + i for i in range(len(first))]
        images = bridge.generate(both.texts, using=[BlendLatents(known, free)], seed=seeds)
        return [replace(one, blended=image) for one, image in zip(first, images, strict=True)]

    arms = {
        "layerfusion": cache(lambda seed: layered(bridge, prompts, seed, content="words")),
        "sequential": sequential,
        "independent layers": independent,
        "mask elsewhere": cache(lambda seed: layered(bridge, prompts, seed, kind=Elsewhere, content="words")),
    }

    def scored(score: Any) -> Any:
        def by(make: Any) -> Any:
            return lambda seed: (score(made := make(seed)), [one.blended for one in made])

        return {name: by(make) for name, make in arms.items()}

    fits = scored(lambda layers: np.array([agreement(one) for one in layers]))
    right = scored(lambda layers: both.complete([one.blended for one in layers]))
    told: Any = {"control": "mask elsewhere", "texts": both.texts}
    expect = "layerfusion > sequential, layerfusion > independent layers"
    return [
        lab.compare(fits, name="composite like the blended image", expect=expect, **told),
        lab.compare(right, name="complete", expect="layerfusion ~ independent layers", texts=both.texts),
    ]
