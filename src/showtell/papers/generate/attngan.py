"""AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks.
Xu, Zhang, Huang, Zhang, Gan, Huang, He, 2017, arXiv 1711.10485

A generator draws small and then larger, and at each enlargement every place looks at the words that matter for it.
What teaches it beside the discriminators is DAMSM, a score of how well every word is found among the picture's regions.

Faithful: bi-LSTM words and sentence, conditioning augmentation, word attention before each enlargement, a discriminator
with an unconditional and a conditional head for each size, DAMSM on words and sentences in both directions with gammas
5, 5 and 10, pretrained and then frozen, weight 5 (the paper's for birds); R-precision among 99 wrong captions.
Ours: discriminators see mismatched captions too (as in the authors' code), group instead of batch normalisation,
generator and discriminators step at once and faster (5e-4). R-precision is measured by another matcher: the same two
encoders with other weights, from other pictures, by a contrast of whole pictures and whole captions.
Scaled down: 16 and 32 pixels instead of 64, 128 and 256, a convolutional encoder of 8x8 regions from nothing in place
of Inception's 17x17, few channels and updates; two large things on white. Accuracy is read by the judge's network.
The baseline is the same generator with the sentence at every enlargement and without DAMSM, for as many updates; the
control's attention gets the words of another caption, its sentence stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.data.signal import to_pixels, to_signal
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import SIDES, PromptSet
from showtell.measure.scores import score_images
from showtell.nets.attention_gan import Discriminator, Generator
from showtell.train.bases.pool import BARE
from showtell.train.batches import Batch, Pool
from showtell.train.distillation import generator_loss
from showtell.train.networks import frozen
from showtell.train.policy import tokens, word_tokenizer
from showtell.train.trainer import fit
from showtell.train.word_matching import Matcher, damsm_loss, matching_loss, r_precision
from showtell.world import Scene, draw, sample
from showtell.world.scene import COLOURS, SHAPES

EXAMPLE = """
import showtell
from showtell.train.word_matching import clip_parts, damsm_loss, r_precision, relevance

clip = showtell.load("openai/clip-vit-base-patch32")
images = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5").generate(["a red ring", "a blue star"], seed=0)
words, said, sentences, regions, wholes = clip_parts(clip, images, ["a red ring", "a blue star"])
fits = relevance(words, said, regions)                                     # (2 images, 2 captions)
loss = damsm_loss(words, said, sentences, regions, wholes)                 # for training any generator
found = r_precision(wholes, sentences[:, None])                            # 1: no wrong captions to choose from
"""


def discriminator_loss(real: Tensor, fake: Tensor, wrong: Tensor) -> Tensor:
    """Equation 5 of logits (n, 2); wrong: of real pictures with other captions, of which the second head knows."""
    true, false = F.softplus(-real).mean(dim=0), F.softplus(fake).mean(dim=0)
    mismatched = (false[1] + F.softplus(wrong[:, 1]).mean()) / 2
    return (true.sum() + false[0] + mismatched) / 2


def gan_loss(
    model: Any, batch: Batch, generator: torch.Generator | None, matcher: Matcher, weight: float = 5.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Equations 3 to 5, of generator and discriminators together, {"generator", "discriminators"}.

    batch: {pixels (n, 3, h, w) in [-1, 1], ids (n, length)}. weight: lambda, of DAMSM on the largest pictures.
    """
    with torch.no_grad():
        words, said, sentences = matcher.words(batch["ids"])
    made, pull = model["generator"](words, said, sentences, generator)
    real = [F.adaptive_avg_pool2d(batch["pixels"], one.shape[-1]) for one in made]
    fooled = told = made[0].new_zeros(())
    for judge, one, other in zip(model["discriminators"], made, real, strict=True):
        with frozen(judge):
            fooled = fooled + generator_loss(judge(one, sentences))
        seen = [judge(other, sentences), judge(one.detach(), sentences), judge(other, sentences.roll(1, dims=0))]
        told = told + discriminator_loss(*seen)
    loss = fooled + told + pull
    if weight:
        match = damsm_loss(words, said, sentences, *matcher.regions(made[-1]))
        loss = loss + weight * match
    return loss, {"generator": fooled.detach(), "discriminators": told.detach()}


def likeness(wanted: Scene, seen: Scene) -> float:
    """Half for the shape and half for the colour of each thing, of the partners that fit best."""
    count = len(wanted.objects)
    ways = itertools.permutations([*seen.objects, *[None] * count], count)
    pairs = [[(a, b) for a, b in zip(wanted.objects, way, strict=True) if b is not None] for way in ways]
    return max(sum((a.shape == b.shape) + (a.colour == b.colour) for a, b in way) for way in pairs) / (2 * count)


SIDE, SCENES, STEPS, BATCH, MATCH_STEPS, SIZE, RATE, WEIGHT, WRONG = 32, 8000, 600, 32, 300, 64, 5e-4, 5.0, 99
LENGTH = 12  # words of a caption at most
WORLD = BARE | {"objects": 2, "size": "large", "background": "white", "relation": SIDES, "shape": SHAPES[:6],
                "colour": COLOURS[:8], "distinct": ("shape", "colour")}  # fmt: skip
ARMS = {"attngan": True, "sentence alone": False}  # whether words are attended to, and DAMSM teaches


def experiment(lab: Lab) -> list[Comparison]:
    scenes = sample(lab.n, lab.seed, lab.split, **WORLD)
    prompts = PromptSet.of("two large things", scenes, lab.seed, lab.split)
    texts = prompts.texts
    wrong = [scene.caption() for scene in sample(WRONG + 1, lab.seed + 1, lab.split, **WORLD)]

    @cache
    def material(first: int) -> tuple[np.ndarray, list[str]]:
        seen = sample(SCENES, first, "train", **WORLD)
        return draw(seen, SIDE), [scene.caption() for scene in seen]

    @cache
    def tokenizer() -> Any:
        return word_tokenizer([scene.caption() for scene in sample(2000, 0, "train", **WORLD)])

    def ids_of(said: Sequence[str]) -> Tensor:
        rows = [torch.tensor(tokens(tokenizer(), text)) for text in said]
        found = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return F.pad(found, (0, LENGTH - found.shape[1]))

    @cache
    def pool(first: int, size: int) -> Pool:
        pictures, captions = material(first)
        return Pool({"pixels": to_signal(torch.from_numpy(pictures)).numpy(), "ids": ids_of(captions).numpy()}, size)

    def seeded(make: Callable[[], Any], seed: int) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    @cache
    def matcher(whole: bool) -> Matcher:
        """What teaches; whole: what measures, from other pictures."""

        def learn(model: Matcher, seed: int) -> None:
            fit(model, partial(matching_loss, whole=whole), pool(seed, 50), steps=MATCH_STEPS, lr=2e-3, ema=None,
                precision="no", seed=seed, progress=False)  # fmt: skip

        blank = partial(seeded, lambda: Matcher(len(tokenizer()), SIZE))
        made = lab.network("measure" if whole else "damsm", blank, learn, int(whole), shared=True)
        return made.requires_grad_(False)

    @cache
    def trained(name: str, seed: int) -> Generator:
        def learn(model: Generator, seed: int) -> None:
            judges = seeded(lambda: nn.ModuleList(Discriminator(side, SIZE) for side in (SIDE // 2, SIDE)), seed)
            both = nn.ModuleDict({"generator": model, "discriminators": judges})
            fit(both, partial(gan_loss, matcher=matcher(False), weight=WEIGHT * ARMS[name]), pool(0, BATCH),
                steps=STEPS, lr=RATE, schedule="constant", betas=(0.5, 0.999), ema=0.99, clip=None, precision="no",
                seed=seed, progress=False)  # fmt: skip

        blank = partial(seeded, lambda: Generator(SIZE, attentive=ARMS[name]))
        return lab.network(name, blank, learn, seed, shared=True)

    @cache
    def drawn(name: str, seed: int) -> np.ndarray:
        """Pictures (n, 32, 32, 3); "other words": sentences of the captions, words of the next ones."""
        own, reader = trained("attngan" if name == "other words" else name, seed), matcher(False).words
        with torch.no_grad():
            words, said, sentences = reader(ids_of(texts))
            if name == "other words":
                words, said = words.roll(1, dims=0), said.roll(1, dims=0)
            made, _ = own(words, said, sentences, torch.Generator().manual_seed(seed))
        return to_pixels(made[-1])

    def accuracy(images: Any, judge: str = "first") -> np.ndarray:
        """Shapes and colours of both things as the judge's network reads them."""
        return score_images(likeness, images, prompts.scenes, judge, fast=True)

    def precision(images: Any) -> np.ndarray:
        """Whether the own caption is nearest, by the matcher that taught nobody."""
        other_judge = matcher(True)
        with torch.no_grad():
            wholes = other_judge.regions(to_signal(torch.from_numpy(images)))[1]
            own, other = (other_judge.words(ids_of(said))[2] for said in (texts, wrong))
        rows = [[j for j, text in enumerate(wrong) if text != mine][:WRONG] for mine in texts]
        fewest = min(map(len, rows))
        candidates = torch.cat([own[:, None], torch.stack([other[row[:fewest]] for row in rows])], dim=1)
        return r_precision(wholes, candidates).numpy().astype(float)

    arms: dict[str, Callable[[int], Any]] = {name: partial(drawn, name) for name in (*ARMS, "other words")}
    return lab.compare_by((accuracy, precision), arms, expect="attngan > sentence alone", control="other words",
                          texts=texts)  # fmt: skip
