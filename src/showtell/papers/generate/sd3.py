"""Stable Diffusion 3: Scaling Rectified Flow Transformers for High-Resolution Image Synthesis.
Esser, Kulal, Blattmann, Entezari, Müller, Saini, Levi, Lorenz, Sauer, Boesel, Podell, Dockhorn, English, Lacey,
Goodwin, Marek, Rombach, 2024, arXiv 2403.03206

Flows along straight paths from pictures to noise, trained most at the times in the middle of the path, where the
velocity is hardest to tell; and a transformer in which text and picture have their own weights and meet in attention.

Faithful: logit-normal, mode and cosmap densities of times; the shift of times between resolutions; the baselines
rectified flow with uniform times and epsilon-prediction on LDM's schedule; guidance 5 at 5 and 25 steps; the validation
loss at 8 times; 64 numbers a head, RMS norm of queries and keys; frozen text encoders, read once. The one-stream
transformer, the paper's DiT, costs as much as the other and has half the weights, as there. In the paper uniform times
come after epsilon-prediction (its table 1), so nothing is expected of these two.
Left out: three encoders with separate dropping, 16 channels, DPO, scale. Scaled down: 3 blocks of width 128 instead of
64 times the depth, 16 image tokens, one text encoder that of the unet base in both CLIP places, no T5, a narrow world,
Muon; pictures by DDIM with trailing steps where epsilon is predicted, which is Euler's step of the same flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.narrow import NarrowTask
from showtell.train.held_out import held_out_loss
from showtell.train.narrow import learn, narrow_pairs
from showtell.train.narrow_models import narrow_mmdit
from showtell.train.noising import Noised, Noising
from showtell.train.one_stream import one_stream
from showtell.train.samples import latents_of

EXAMPLE = """
import showtell
from showtell.papers.generate.sd3 import at_times, logit_normal, resolution_ratio
from showtell.train.held_out import held_out_loss
from showtell.train.narrow import learn
from showtell.train.one_stream import one_stream
from showtell.train.samples import latents_of

bridge = showtell.load("stabilityai/stable-diffusion-3-medium-diffusers")
prompts = ["a red ring left of a blue star", "a dog on the table"]
images = bridge.generate(prompts, seed=0)
times = at_times(logit_normal(), shift=resolution_ratio(512**2, 1024**2))
learn(bridge, latents_of(bridge, images), prompts, steps=2, batch_size=2, lr=1e-5, draw=times, precision="no")
[image] = bridge.generate("a red ring", seed=0)
"""

Density = Callable[[int, torch.Generator | None, Any], Tensor]
"""(n, generator, device) -> times (n,) in [0, 1]: 0 is the picture, 1 is noise."""


def _library(scheme: str, **settings: float) -> Density:
    def draw(n: int, generator: torch.Generator | None, device: Any) -> Tensor:
        from diffusers.training_utils import compute_density_for_timestep_sampling

        return compute_density_for_timestep_sampling(scheme, n, device=device, generator=generator, **settings)

    return draw


def uniform() -> Density:
    return _library("none")


def logit_normal(mean: float = 0.0, spread: float = 1.0) -> Density:
    """Times whose logit is normal (equation 19); a mean above 0 is nearer to noise."""
    if spread <= 0:
        raise ShowtellError(f"spread={spread}; give a standard deviation above 0")
    return _library("logit_normal", logit_mean=mean, logit_std=spread)


def mode(scale: float = 1.29) -> Density:
    """Times with a mode in the middle and weight at both ends (equation 20); 0 is uniform.

    scale: in [-1, 2 / (pi - 2)], outside of which it is no density.
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ShowtellError(f"scale={scale}; give one between -1 and {2 / (math.pi - 2):.2f}")
    return _library("mode", mode_scale=scale)


def cosmap() -> Density:
    """Times with the signal-to-noise ratios of the cosine schedule (equation 21)."""

    def draw(n: int, generator: torch.Generator | None, device: Any) -> Tensor:
        u = torch.rand(n, generator=generator, device=device)
        return 1 - 1 / ((math.pi / 2 * u).tan() + 1)

    return draw


def resolution_ratio(pixels: float, more: float) -> float:
    """By how much times shift from pictures of `pixels` to those of `more` pixels: sqrt(more / pixels)."""
    return math.sqrt(more / pixels)


def shifted(times: Tensor, ratio: float) -> Tensor:
    """Times at which a picture with ratio^2 as many pixels is as uncertain (equation 23); 1 changes nothing."""
    return ratio * times / (1 + (ratio - 1) * times)


def at_times(density: Density, shift: float = 1.0) -> Callable[[Noising, Tensor, torch.Generator | None], Noised]:
    """For `showtell.train.narrow.learn`: latents noised at times of a density. Raises ShowtellError unless a flow."""

    def noised(noising: Noising, clean: Tensor, generator: torch.Generator | None) -> Noised:
        if not noising.flow:
            raise ShowtellError("times of a density are for rectified flows; this bridge's scheduler is none")
        times = shifted(density(len(clean), generator, clean.device), shift)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        sigma = times.view(-1, *[1] * (clean.ndim - 1))
        return Noised((1 - sigma) * clean + sigma * noise, clean, noise, 1 - sigma, sigma, 1000 * times)

    return noised


WIDTH, DEPTH, SCENES, STEPS, BATCH, RATE, GUIDANCE = 128, 3, 8000, 450, 64, 1.5e-3, 5.0
SHORT: dict[str, Any] = {"max_sequence_length": 1}  # one row of zeros in the place of T5's tokens
ARMS: dict[str, Density | None] = {  # and one stream, which is logit-normal
    "logit-normal": logit_normal(),
    "uniform": uniform(),
    "epsilon": None,
    "mean of 3": logit_normal(3.0),
}


def experiment(lab: Lab) -> list[Comparison]:
    base, task = lab.base("unet"), NarrowTask(lab.n, lab.seed, lab.split)
    texts = task.texts

    @cache
    def material() -> tuple[Tensor, list[str]]:
        pictures, captions = narrow_pairs(SCENES)
        return latents_of(narrow_mmdit(base, 0, WIDTH, DEPTH), list(pictures), 500), captions

    def empty(name: str, seed: int) -> Any:
        bridge = narrow_mmdit(base, seed, WIDTH, DEPTH, flow=name != "epsilon")
        if name == "one stream":
            one_stream(bridge.adapter.denoiser)
        return bridge

    @cache
    def trained(name: str, seed: int) -> Any:
        def make(seed: int) -> Any:
            density = ARMS.get(name, ARMS["logit-normal"])
            more: dict[str, Any] = SHORT if density is None else {"draw": at_times(density), **SHORT}
            return learn(empty(name, seed), *material(), STEPS, BATCH, RATE, seed=seed, optimizer="muon", **more)

        bridge = empty(name, seed)
        bridge.adapter.denoiser.load_state_dict(lab.trained(name, make, seed, shared=True))
        bridge.adapter.denoiser.eval()
        return bridge

    @cache
    def made(name: str, steps: int, seed: int) -> list[Any]:
        call = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, **SHORT}
        return trained(name, seed).generate(texts, seed=seed, **call)

    def predicted(name: str, told: bool, seed: int) -> np.ndarray:
        latents = latents_of(trained(name, seed), list(task.real))
        return -held_out_loss(trained(name, seed), latents, texts if told else [""] * len(texts), **SHORT)

    def arms(steps: int) -> dict[str, Callable[[int], list[Any]]]:
        return {name: partial(made, name, steps) for name in ARMS}

    best = "logit-normal > uniform, logit-normal > epsilon"
    shared: dict[str, Any] = {"control": "mean of 3", "texts": texts}
    streams = {
        "two streams": partial(predicted, "logit-normal", True),
        "one stream": partial(predicted, "one stream", True),
        "nothing told": partial(predicted, "logit-normal", False),
    }
    return [
        lab.compare(arms(5), task.fidelity, expect=best, name="fidelity in 5 steps", **shared),
        lab.compare(arms(5), task.closeness, expect=best, name="closeness in 5 steps", **shared),
        lab.compare(arms(25), task.fidelity, expect="logit-normal > epsilon - 0.05", name="fidelity in 25 steps",
                    **shared),
        lab.compare(streams, expect="two streams > one stream", control="nothing told", name="minus held-out loss"),
    ]  # fmt: skip
