"""PopAlign: Population-Level Alignment for Fair Text-to-Image Generation. Li, Singh, Grover, 2024, arXiv 2406.19668

A bias belongs to a set of images and to none of them alone, so sets are preferred to sets: what a model draws for a
neutral prompt loses to what it draws when identities are named evenly, both as images of the neutral prompt. What is
common occurs on both sides and cancels; what is rare occurs among winners alone.

Faithful: populations by the model itself, identities drawn evenly and checked by a classifier, both paired with the
neutral prompt; single images drawn from each; the stochastic bound of the preference between sets, with the mean gain
of both sides as the point that members are held against, as in the authors' code (`members`), or by independent pairs
(`train.preference.paired_preference`, the shape of Diffusion-DPO); beta 5000; generic prompts mixed in, whose sides are
alike. Scaled down: the miniature UNet, all of its weights instead of a LoRA of SDXL's; a shape stands for an occupation
and one of two colours for a tone, to which the model is skewed 90 to 10 first; a higher rate over fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from showtell.measure.experiment import Comparison, Lab
from showtell.measure.fairness import balance, firsts, skewed
from showtell.measure.likeness import clip_score
from showtell.train.batches import Stream
from showtell.train.denoising import denoising_loss
from showtell.train.preference import Objective, prefer
from showtell.train.samples import drawn, latents_of, paired
from showtell.train.trainer import fit

EXAMPLE = """
import showtell
from showtell.papers.responsible.popalign import popalign, populations

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
prompts, identities = ["a photo of a cat"], ["big", "red"]
sides = populations(bridge, prompts, identities, lambda prompt, who: prompt.replace("a cat", f"a {who} cat"), each=4)
popalign(bridge, prompts, sides, steps=2)
[image] = bridge.generate("a photo of a cat", seed=0)
"""

Sides = dict[str, torch.Tensor]
"""winner, loser: latents (n, channels, height, width); row: (n,) which prompt both are for."""


def members(winner: torch.Tensor, loser: torch.Tensor, beta: float = 5000.0) -> torch.Tensor:
    """The bound by single members: each is held against the mean gain, half of it from either side.

    -log sigmoid(beta (g_w - m)) and -log sigmoid(beta (m - g_l)), averaged; m is not differentiated.
    """
    middle = ((winner.mean() + loser.mean()) / 2).detach()
    return -(F.logsigmoid(beta * (winner - middle)).mean() + F.logsigmoid(beta * (middle - loser)).mean()) / 2


def populations(
    bridge: Any, prompts: Sequence[str], identities: Sequence[str], named: Callable[[str, str], str], each: int = 32,
    shows: Callable[[Any, str], Sequence[bool]] | None = None, generic: Sequence[str] = (), seed: int = 0, **call: Any,
) -> Sides:  # fmt: skip
    """Both sides for prompts and then generic prompts, `each` images or fewer a prompt and side.

    named(prompt, identity): the prompt that names it. shows(images, identity): which images do; as many are kept of
    every identity. call: keywords of `generate`.
    """

    def made(texts: list[str], number: int) -> torch.Tensor:
        return torch.stack(bridge.generate(texts, seed=seed + number, output_type="latent", **call)).float()

    sides: dict[str, list[torch.Tensor]] = {"winner": [], "loser": [], "row": []}
    for row, prompt in enumerate([*prompts, *generic]):
        loser, number = made([prompt] * each, 100 * row), -(-each // len(identities))
        if row >= len(prompts):
            winner = made([prompt] * each, 100 * row + 1)
        else:
            found = []
            for i, who in enumerate(identities):
                latents = made([named(prompt, who)] * number, 100 * row + 2 + i)
                kept = [True] * number if shows is None else list(shows(bridge.to_images(latents), who))
                found.append(latents[torch.tensor(kept)])
            fewest = min(map(len, found))
            winner = torch.cat([latents[:fewest] for latents in found])[:each]
        least = min(len(winner), len(loser))
        order = torch.randperm(len(winner), generator=torch.Generator().manual_seed(row))
        sides["winner"].append(winner[order[:least]])
        sides["loser"].append(loser[:least])
        sides["row"].append(torch.full((least,), row))
    return {name: torch.cat(parts) for name, parts in sides.items()}


def pairs(sides: Sides, batch_size: int) -> Stream:
    """Batches of a winner and a loser of one prompt, drawn independently of one another."""
    row = sides["row"].numpy()

    def make(rng: np.random.Generator, size: int) -> dict[str, Any]:
        one = rng.integers(len(row), size=size)
        other = np.array([rng.choice(np.flatnonzero(row == row[i])) for i in one])
        return {"winner": sides["winner"][one].numpy(), "loser": sides["loser"][other].numpy(), "row": row[one]}

    return Stream(make, batch_size)


def popalign(
    bridge: Any, prompts: Sequence[str], sides: Sides, steps: int = 750, batch_size: int = 8, lr: float = 5e-7,
    objective: Objective = members, seed: int = 0, **options: Any,
) -> Any:  # fmt: skip
    """Trains the bridge's denoiser in place. prompts: with the generic ones after them; options: as for `Noising`."""
    return prefer(bridge, prompts, pairs(sides, batch_size), steps, lr=lr, objective=objective, seed=seed, **options)


TONES = ("red", "blue")
SHAPES, UNSEEN = ("circle", "square", "star", "cross", "heart", "ring"), ("triangle", "hexagon", "diamond")
EACH, SHOWN, STEPS, RATE, SKEWING, SAMPLING = 32, 16, 150, 3e-5, 600, 10


def experiment(lab: Lab) -> list[Comparison]:
    clip, shapes, neutral = lab.base("clip"), (*SHAPES, *UNSEEN), [f"a {shape}" for shape in SHAPES]

    def toned(prompt: str, tone: str) -> str:
        return prompt.replace("a ", f"a {tone} ")

    def biased() -> Any:
        """The base after training on neutral captions of which nine in ten are red, and on captions that name both."""
        bridge, (scenes, texts) = lab.base("unet", fresh=True), skewed(shapes, TONES)
        loss, denoiser = denoising_loss(bridge, texts), bridge.adapter.denoiser.requires_grad_(True)
        data = paired(latents_of(bridge, drawn(scenes)), 32)
        fit(denoiser, loss, data, steps=SKEWING, lr=3e-4, precision="no", progress=False)
        return denoiser

    def start() -> Any:
        bridge = lab.base("unet", fresh=True)
        bridge.adapter.denoiser.load_state_dict(lab.trained("skewed", biased, shared=True, steps=SKEWING))
        return bridge

    def both(seed: int) -> Sides:
        """The populations, and a second draw of neutral images in place of the winners."""

        def shows(images: Any, tone: str) -> list[bool]:
            return [colour == tone for colour, _ in firsts(images, "second")]

        bridge, short = start(), dict[str, Any](num_inference_steps=SAMPLING)
        sides = populations(bridge, neutral, TONES, toned, EACH, shows, seed=1000 * seed, **short)
        texts = [neutral[row] for row in sides["row"].tolist()]
        again = bridge.generate(texts, seed=1000 * seed + 900, output_type="latent", **short)
        return sides | {"again": torch.stack(again).float()}

    def tuned(name: str, seed: int) -> Any:
        bridge, known = start(), lab.trained("populations", both, seed, each=EACH)
        sides: Sides = {side: known[side] for side in ("winner", "loser", "row")}
        if name == "neutral winners":
            sides["winner"] = known["again"]
        if name != "dpo":
            return popalign(bridge, neutral, sides, STEPS, lr=RATE, seed=seed)
        texts = [neutral[row] for row in sides["row"].tolist()]
        one, other = sides["winner"], sides["loser"]
        rewards = [torch.from_numpy(clip_score(clip, bridge.to_images(images), texts)) for images in (one, other)]
        better = (rewards[0] >= rewards[1]).view(-1, 1, 1, 1)
        sides |= {"winner": torch.where(better, one, other), "loser": torch.where(better, other, one)}
        return prefer(bridge, neutral, sides, STEPS, lr=RATE, seed=seed)

    @cache
    def seen(name: str, seed: int, tone: str = "") -> list[list[tuple[str, str]]]:
        """(colour, shape) of the images of each prompt, neutral or naming a tone."""
        bridge = start()
        if name != "base":
            state = lab.trained(name, partial(tuned, name), seed, steps=STEPS, each=EACH)
            bridge.adapter.denoiser.load_state_dict(state)
        texts = [toned(f"a {shape}", tone) if tone else f"a {shape}" for shape in shapes for _ in range(SHOWN)]
        found = firsts(bridge.generate(texts, seed=seed, num_inference_steps=SAMPLING))
        return [found[i : i + SHOWN] for i in range(0, len(found), SHOWN)]

    def evenness(name: str, seed: int) -> np.ndarray:
        """Per prompt, unseen shapes too."""
        return np.array([balance([colour for colour, _ in images], TONES) for images in seen(name, seed)])

    def fidelity(name: str, seed: int) -> np.ndarray:
        found = zip(shapes, seen(name, seed), strict=True)
        return np.array([np.mean([shape == own for _, shape in images]) for own, images in found])

    def obedience(name: str, seed: int) -> np.ndarray:
        each = [[np.mean([c == tone for c, _ in images]) for images in seen(name, seed, tone)] for tone in TONES]
        return np.mean(each, axis=0)

    def compare(
        measure: Callable[[str, int], np.ndarray], names: Sequence[str], expect: str, **more: Any
    ) -> Comparison:
        arms = {name: partial(measure, name) for name in names}
        return lab.compare(arms, expect=expect, name=measure.__name__, **more)

    everyone = ("popalign", "dpo", "base", "neutral winners")
    return [
        compare(evenness, everyone, "popalign > dpo, popalign > base", control="neutral winners"),
        # What must not change has nothing to lose, so these have no control; their images are drawn or trained already.
        compare(fidelity, ("popalign", "base"), "popalign ~ base", trained=True),
        compare(obedience, ("popalign", "base"), "popalign ~ base", trained=True),
    ]
