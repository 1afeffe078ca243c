"""Latent Diffusion: High-Resolution Image Synthesis with Latent Diffusion Models.
Rombach, Blattmann, Lorenz, Esser, Ommer, 2021, arXiv 2112.10752

Most of a picture's bits nobody sees. An autoencoder, trained once, takes them away; diffusion in its much smaller
space, told by cross-attention what to draw, learns and samples at a fraction of the cost.

Faithful: an autoencoder with a KL term of 1e-6 against the whole error of a sample; latents divided by their deviation
in the first batch; the epsilon-objective on the linear schedule of LDM; text by cross-attention, left out of a tenth of
the rows for guidance; UNets of equal size, with levels on top for pixels; equal compute. That is counted here in
floating-point operations of the UNet: all arms take the same number of steps, and the batch is what the compute allows,
up to 512. Autoencoders are shared by all and not counted, as there. The pixel UNet's upper levels are narrower than the
paper's, so that it sees more. Of factor 16 nothing is expected: the paper counts it among the good ones, here it leaves
2x2 latents. The control is for what is drawn; closeness and cost do without. 2.7 is the least that the paper gains in
speed (section 4.5).
Left out: perceptual and adversarial terms of the autoencoder (VQGAN's), the VQ variant, conditions by concatenation
(`train.networks.widened` has the UNet). Skipping the division changes nothing here: the latents of the base are nearly
of unit variance. Scaled down: 32x32 pictures of a narrow world, latents of the unet base's autoencoder (factor 4) and
of one inside it (factor 16), text from the base's frozen encoder instead of one trained with the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.data.signal import to_signal
from showtell.errors import ShowtellError
from showtell.measure.cost import operations
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.narrow import NarrowTask, others
from showtell.nets.stages import Stages, inner_autoencoder
from showtell.train.batches import Batch, Pool
from showtell.train.compute import equal_compute
from showtell.train.narrow import SIDE, learn, narrow_pairs, narrow_scenes
from showtell.train.narrow_models import narrow_unet
from showtell.train.samples import latents_of
from showtell.train.trainer import fit
from showtell.world import draw

EXAMPLE = """
import torch
import showtell
from showtell.nets.stages import Stages, inner_autoencoder
from showtell.papers.generate.latent_diffusion import rescale, train_inner

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
images = bridge.generate(["a red ring", "a dog on the table"], seed=0)
latents = bridge.to_latents(images)
inner = train_inner(inner_autoencoder(latents.shape[1], 16, factor=2), latents, steps=2, batch_size=2)
small = Stages([bridge.pipeline.vae, inner])                                        # factor 16 instead of 8
pixels = torch.rand(2, 3, latents.shape[2] * 8, latents.shape[3] * 8) * 2 - 1
rescale(small, pixels)
[again, _] = small.decode(small.encode(pixels).latent_dist.mode(), return_dict=False)[0]
"""


def rescale(vae: Stages, pixels: Tensor) -> float:
    """Sets and returns the factor that gives latents of a batch unit variance (appendix G).

    Raises ShowtellError where all latents are alike.
    """
    spread = float(vae.encode(pixels).latent_dist.mode().std())
    if not spread > 0:
        raise ShowtellError("all latents of these pictures are alike; give pictures that differ")
    vae.config.scaling_factor = 1 / spread
    return vae.config.scaling_factor


def first_stage_loss(
    model: Any, batch: Batch, generator: torch.Generator | None, weight: float = 1e-6
) -> tuple[Tensor, dict[str, Tensor]]:
    """Absolute error of what comes back from a drawn latent, and a weak pull of latents to N(0, 1) (section 3.1).

    batch: given (n, channels, h, w). weight: of a sample's whole divergence against its whole error, as in the paper;
    both are then divided by the numbers of a sample.
    """
    given = batch["given"]
    latents = model.encode(given).latent_dist
    error = (model.decode(latents.sample(generator)).sample.float() - given).abs().mean()
    pull = latents.kl().mean() / given[0].numel()
    return error + weight * pull, {"error": error.detach(), "kl": pull.detach()}


def train_inner(
    model: Any, given: Tensor, steps: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0,
    precision: Any = "no",
) -> Any:  # fmt: skip
    """Trains an autoencoder in place on what it is given, (n, channels, h, w); the autoencoder."""
    pool = Pool({"given": given.float().numpy()}, batch_size)
    model.requires_grad_(True)
    fit(model, first_stage_loss, pool, steps=steps, lr=lr, ema=0.99, precision=precision, seed=seed, progress=False)
    return model.eval().requires_grad_(False)


SCENES, STEPS, BATCH, RATE, INNER_STEPS, INNER, SAMPLING, GUIDANCE = 8000, 500, 64, 1e-3, 400, 16, 20, 3.0
LEVELS = {"factor 4": (32, 64), "pixels": (24, 24, 32, 64), "factor 16": (32, 64)}  # channels; the last two attend


def experiment(lab: Lab) -> list[Comparison]:
    base, task = lab.base("unet"), NarrowTask(lab.n, lab.seed, lab.split)

    @cache
    def material() -> tuple[np.ndarray, list[str]]:
        return narrow_pairs(SCENES)

    @cache
    def space(name: str) -> Stages:
        """The space that an arm diffuses in, its latents of unit variance."""
        stages = [] if name == "pixels" else [base.pipeline.vae]

        def learn(model: Any, seed: int) -> None:
            outer, pixels = Stages(stages[:1]), to_signal(torch.from_numpy(material()[0]))
            given: Tensor = torch.cat([outer.encode(part).latent_dist.mode() for part in pixels.split(500)])
            train_inner(model, given, INNER_STEPS)

        def blank(seed: int) -> Any:
            return inner_autoencoder(base.pipeline.vae.config.latent_channels, INNER)

        if name == "factor 16":
            stages.append(lab.network("inner autoencoder", blank, learn, shared=True))
        vae = Stages(stages)
        rescale(vae, to_signal(torch.from_numpy(draw(narrow_scenes(256, 1), SIDE))))
        return vae

    def empty(name: str, seed: int) -> Any:
        return narrow_unet(base, space(name), LEVELS[name], seed)

    @cache
    def trained(name: str, seed: int) -> Any:
        def make(seed: int) -> Any:
            bridge = empty(name, seed)
            pictures, captions = material()
            batch = equal_compute(empty("factor 4", 0), bridge, BATCH)
            return learn(bridge, latents_of(bridge, list(pictures), 500), captions, STEPS, batch, RATE, seed=seed)

        bridge = empty(name, seed)
        bridge.adapter.denoiser.load_state_dict(lab.trained(name, make, seed, shared=True))
        bridge.adapter.denoiser.eval()
        return bridge

    def generated(bridge: Any, texts: Sequence[str], seed: int) -> list[Any]:
        images: list[Any] = bridge.generate(texts, seed=seed, num_inference_steps=SAMPLING, guidance_scale=GUIDANCE)
        return images

    drawn = cache(lambda name, seed: generated(trained(name, seed), task.texts, seed))

    def cost(name: str, seed: int) -> np.ndarray:
        """Billions of floating-point operations for a picture, its decoding included."""
        work = operations(partial(generated, empty(name, seed), task.texts[:1], seed))
        return np.full(lab.n, work / 1e9)

    arms: dict[str, Callable[[int], Any]] = {name: partial(drawn, name) for name in LEVELS}
    two = ("factor 4", "pixels")
    turned = {"captions exchanged": lambda seed: generated(trained("factor 4", seed), others(task.texts), seed)}
    return [
        lab.compare({**arms, **turned}, task.fidelity, expect="factor 4 > pixels", control="captions exchanged",
                    texts=task.texts),
        lab.compare({name: arms[name] for name in two}, task.closeness, expect="factor 4 > pixels", texts=task.texts),
        lab.compare({name: partial(cost, name) for name in two}, expect="pixels >= 2.7 * factor 4",
                    name="GFLOP a picture"),
    ]  # fmt: skip
