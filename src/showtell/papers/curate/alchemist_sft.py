"""Alchemist: Turning Public Text-to-Image Data into Generative Gold.
Startsev, Ustyuzhanin, Kirillov, Baranchuk, Kastryulin, 2025, arXiv 2505.19297

A few thousand pictures lift a pretrained model if they are the right ones, and the model itself knows which: told words
of quality and complexity, it attends to them differently over pictures that are worth learning from. A small labelled
set says which of these activations tell, and the sum of them ranks what coarser filters have left of a huge pool.

Faithful: the diffusion model's score: picture noised to a chosen level, one pass with a fixed prompt of key words,
norms of cross-attention per layer and word, those that separate the labelled pictures best, with their signs;
fine-tuning of all weights on the top. Ours: how many activations (the 10 of largest AUC) and their normalisation.
Scaled down: renders of the world, spoilt in hidden ways; their own captions instead of a tuned captioner's; key words
are those that the base knows; the pool comes as it is, without the coarse filters and the search for near duplicates
(`measure.curation.distinct`) that go before. The general measure of quality needs no network: sharpness behind a median
filter, because plain sharpness takes noise for detail and chooses next to no good picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.data.spoilt import uneven_pool
from showtell.errors import ShowtellError
from showtell.measure.curation import auc, sharpness
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.scores import legibility
from showtell.steer.maps import token_maps
from showtell.steer.regions import positions_of
from showtell.train.denoising import finetune
from showtell.train.noising import Noising
from showtell.train.samples import latents_of

EXAMPLE = """
import showtell
from showtell.papers.curate.alchemist_sft import Estimator
from showtell.train.denoising import finetune

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
prompts = ["a red ring", "a dog", "a blue star", "a cat"]
latents = bridge.to_latents(bridge.generate(prompts, seed=7))                           # your pool
estimator = Estimator(bridge, "complex, detailed, sharp")
estimator.calibrate(latents, [True, False, True, False])                                # your labels
kept = estimator.score(latents).argsort()[::-1][:2].tolist()
finetune(bridge, latents[kept], [prompts[i] for i in kept], steps=2, batch_size=2)
[image] = bridge.generate("a red ring", seed=0)
"""


class _Norms(Technique):
    """How strongly each of some words is attended to, by layer: (rows, words) of every attention to text."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.found: dict[str, Tensor] = {}

    def wants(self, run: Run, place: Place) -> bool:
        return place.text is not None

    def attention(self, run: Run, site: Any) -> None:
        maps = token_maps(site)
        if maps is not None:
            at = [positions_of(run, run.prompts[0], word) for word in self.words]
            self.found[site.place.name] = torch.stack([maps.values[:, one].flatten(1).norm(dim=1) for one in at], dim=1)


class Estimator:
    """A diffusion bridge as a judge of pictures. prompt: of key words, which are all that it says. level: of the noise,
    as a share of the training levels. top: how many activations count. options: as for `Noising`.
    """

    def __init__(
        self, bridge: Any, prompt: str, level: float = 0.25, top: int = 10, seed: int = 0, **options: Any
    ) -> None:
        self.noising, self.prompt = Noising(bridge, **options), prompt
        self.level, self.top, self.seed = level, top, seed
        self.words = list(dict.fromkeys(word.text for word in bridge.words(prompt) if word.positions))
        self.chosen: tuple[np.ndarray, ...] | None = None

    @torch.no_grad()
    def activations(self, latents: Tensor, at_once: int = 32) -> np.ndarray:
        """(n, layers x words) norms of latents (n, ...); every picture gets the same noise."""
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(latents)
        found = []
        for part in latents.split(at_once):
            norms = _Norms(self.words)
            run = self.noising.run([self.prompt] * len(part), [norms])
            at = self.noising.at_share(part, noise.expand_as(part), self.level)
            self.noising.predict(at, self.noising.text(run.prompts), [norms], run)
            found.append(torch.cat(list(norms.found.values()), dim=1))
        return torch.cat(found).numpy()

    def calibrate(self, latents: Tensor, good: Sequence[bool] | np.ndarray) -> np.ndarray:
        """Chooses activations by labelled latents; the AUC of all. Raises ShowtellError where all labels are equal."""
        values, labels = self.activations(latents), np.asarray(good, dtype=bool)
        if labels.all() or not labels.any():
            raise ShowtellError("the labelled pictures are all of one kind; label good ones and others.")
        areas = auc(values, labels)
        best = np.argsort(-np.abs(areas - 0.5), kind="stable")[: self.top]
        self.chosen = best, np.sign(areas[best] - 0.5), values[:, best].mean(0), values[:, best].std(0) + 1e-12
        return areas

    def score(self, latents: Tensor) -> np.ndarray:
        """(n,) the sum of the chosen activations, each in deviations of the labelled pictures and with its sign."""
        if self.chosen is None:
            raise ShowtellError("calibrate the estimator on labelled latents first.")
        best, signs, mean, deviation = self.chosen
        return ((self.activations(latents)[:, best] - mean) / deviation * signs).sum(1)


POOL, LABELLED, KEPT, STEPS, BATCH, RATE, SAMPLING = 480, 40, 80, 120, 16, 2e-5, 10
KEYWORDS = "a large striped red star above a dotted blue ring on a meadow background"


def experiment(lab: Lab) -> list[Comparison]:
    prompts, base = lab.prompts("pairs"), lab.base("unet")
    pictures, scenes, good = uneven_pool(POOL, lab.seed)
    latents, captions = latents_of(base, list(pictures)), [scene.caption() for scene in scenes]

    @cache
    def rows(name: str, seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        known = rng.permutation(POOL)[:LABELLED]
        if name in ("alchemist", "shuffled labels"):
            estimator = Estimator(base, KEYWORDS)
            labels = good[known] if name == "alchemist" else rng.permutation(good[known])
            estimator.calibrate(latents[known], labels)
            scores = estimator.score(latents)
        else:
            scores = sharpness(pictures, median=5) if name == "image quality" else rng.random(POOL)
        scores[known] = -np.inf  # no arm learns from what was labelled
        return np.argsort(-scores)[:KEPT].tolist()

    def tuned(name: str, seed: int) -> Any:
        kept = rows(name, seed)
        bridge = lab.base("unet", fresh=True)
        return finetune(bridge, latents[kept], [captions[i] for i in kept], STEPS, BATCH, RATE, seed)

    @cache
    def made(name: str, seed: int) -> list[Any]:
        bridge = lab.base("unet", fresh=True)
        if name != "before":
            state = lab.trained(name, partial(tuned, name), seed, steps=STEPS, kept=KEPT)
            bridge.adapter.denoiser.load_state_dict(state)
        return bridge.generate(prompts.texts, seed=seed, num_inference_steps=SAMPLING)

    names = ("alchemist", "random", "image quality", "before", "shuffled labels")
    arms: dict[str, Any] = {name: partial(made, name) for name in names}
    return [
        lab.compare(arms, metric=legibility, control="shuffled labels", name="as clean as a render",
                    expect="alchemist > random, alchemist > image quality"),
        lab.compare(arms, metric=prompts.true_facts, expect="alchemist > before - 0.03"),
    ]  # fmt: skip
