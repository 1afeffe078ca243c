"""Show, Attend and Tell: Neural Image Caption Generation with Visual Attention.
Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio, 2015, arXiv 1502.03044

An LSTM writes a caption word by word and looks, before each word, at the places of a feature map that matter for it:
at all of them, weighed ("soft"), or at one, drawn ("hard"). Where it looked explains why it said what it said.

Faithful: the attention, gate and deep output of section 3.1 (`nets.attentive_lstm`), the first state from the mean of
all places, the doubly stochastic term, the bound's gradient for "hard" with a moving baseline, an entropy term and the
mean instead of a draw half of the time, beam search, maps enlarged and smoothed (`train.tellers`). Any encoder with a
grid of features will do.
Ours: one draw a caption, the likeliest place when "hard" tells; weights of the terms of "hard"; no dropout or early
stopping, as no picture is seen twice.
Scaled down: two things and how they lie, 8x8 places of the judge's frozen convolutions in the place of VGG's 14x14;
what is measured are captions and maps, which the judge never reads. A caption of nine words cannot cover 64 places:
at the paper's weight of 1 the doubly stochastic term keeps attention off the things named (validation), so the arm
"soft" has 0.01, and 1 and 0 are shown beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.data.signal import signal
from showtell.measure.captions import caption_f1
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.judge import load_judge
from showtell.measure.pointing import pointing
from showtell.measure.prompts import PLAIN, SIDES
from showtell.nets.attentive_lstm import AttentiveLSTM
from showtell.train.batches import Batch
from showtell.train.tellers import Teller
from showtell.world import Scene, draw, sample
from showtell.world.draw import masks

EXAMPLE = """
import showtell
from showtell.measure.heatmaps import word_sheet
from showtell.papers.represent.show_attend_tell import captioning_loss
from showtell.train.tellers import Teller, place_features

bridge = showtell.load("openai/clip-vit-base-patch32")
[image] = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5").generate("a red ring", seed=0)
teller = Teller(lambda images: place_features(bridge, images), ["a red ring", "a blue star"])
teller.learn([image] * 2, ["a red ring", "a blue star"], captioning_loss, steps=2, batch_size=2)
[caption] = teller.tell([image], beams=3)
[maps] = teller.maps([image], [caption], size=64)                 # a map for every word, and for the end
sheet = word_sheet(image, list(zip(caption.split(), maps)))
"""


def coverage(weights: Tensor, said: Tensor) -> Tensor:
    """The doubly stochastic term, (n,): over a caption every place should be looked at once in all (equation 14).

    weights (n, length, places); said (n, length): True where a word is.
    """
    return (1 - (weights * said[..., None]).sum(dim=1)).square().sum(dim=-1)


def captioning_loss(
    model: AttentiveLSTM, batch: Batch, generator: torch.Generator | None, regularity: float = 1.0,
    reward: float = 0.05, entropy: float = 0.01,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Minus the log-likelihood of captions; for "hard" with the gradient of equation 11. batch: places, ids, said.

    regularity: weight of `coverage`. reward, entropy: lambda_r and lambda_e of equation 11.
    """
    places, ids, said = batch["places"], batch["ids"], batch["said"]
    drawn: list[Tensor] = []
    mean = torch.rand(len(ids), 1, generator=generator, device=ids.device) < 0.5

    def pick(weights: Tensor) -> Tensor:
        drawn.append(torch.multinomial(weights.detach(), 1, generator=generator))
        one = F.one_hot(drawn[-1][:, 0], weights.shape[-1]).to(weights)
        return torch.where(mean, weights, one)

    logits, looked = model(places, ids, pick if model.how == "hard" else None)
    each = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(said.shape)
    likelihood = (each * said).sum(dim=1)
    loss = -likelihood.mean()
    if model.how == "hard":
        chances = looked.gather(2, torch.stack(drawn, dim=1))[..., 0].clamp(min=1e-9).log()
        path = (chances * said * ~mean).sum(dim=1)
        spread = (torch.special.entr(looked).sum(dim=-1) * said).sum(dim=1)
        advantage = likelihood.detach() - model.baseline
        loss = loss - (reward * advantage * path + entropy * spread).mean()
        if model.training:
            model.baseline.mul_(0.9).add_(0.1 * likelihood.detach().mean())
    elif model.how == "soft":
        loss = loss + regularity * coverage(looked, said).mean()
    return loss, {"nll": -likelihood.detach().mean()}


SCENES, STEPS, REGULARITY = 4000, 500, 0.01


def experiment(lab: Lab) -> list[Comparison]:
    @torch.no_grad()
    def annotate(scenes: Sequence[Scene]) -> Tensor:
        """Of the judge's last convolution, 8x8 places."""
        parts = [load_judge().model.trunk(signal(list(draw(scenes[i : i + 100])))) for i in range(0, len(scenes), 100)]
        return F.avg_pool2d(torch.cat(parts), 2).flatten(2).mT.contiguous()

    @cache
    def seen() -> tuple[Tensor, list[str]]:
        scenes = sample(SCENES, 0, "train", objects=2, distinct=("shape", "colour"), relation=SIDES, **PLAIN)
        return annotate(scenes), [scene.canonical().caption() for scene in scenes]

    @cache
    def teller(how: str, regularity: float, seed: int) -> Teller:
        made = Teller(annotate, seen()[1], how, seed)

        def make(seed: int) -> Any:
            made.learn(*seen(), partial(captioning_loss, regularity=regularity), STEPS)
            return made.model

        state = lab.trained(f"{how} {regularity}", make, seed, shared=True)
        made.made(seen()[0].shape[-1]).load_state_dict(state)
        return made

    def blind(seed: int) -> Teller:
        """The one with soft attention, made to look at all places alike."""
        full = teller("soft", REGULARITY, seed)
        made = Teller(annotate, seen()[1], "mean")
        made.made(seen()[0].shape[-1]).load_state_dict(full.made(0).state_dict())
        return made

    pairs = lab.prompts("pairs").scenes

    def told(arm: Callable[[int], Teller], seed: int) -> np.ndarray:
        return caption_f1(arm(seed).tell(pairs), pairs)

    def pointed(arm: Callable[[int], Teller], seed: int) -> np.ndarray:
        """Attention for the nouns of two things within their masks, the mean of both."""
        texts = [scene.canonical().caption() for scene in pairs]
        found = arm(seed).nouns(pairs, texts, [[thing.shape for thing in scene.objects] for scene in pairs])
        return np.array([pointing(maps, masks(scene)) for maps, scene in zip(found, pairs, strict=True)])

    def area(seed: int) -> np.ndarray:
        return np.array([masks(scene).mean() for scene in pairs])

    arms: dict[str, Callable[[int], Teller]] = {
        "soft": partial(teller, "soft", REGULARITY),
        "hard": partial(teller, "hard", 0.0),
        "mean": partial(teller, "mean", 0.0),
        "even at test": blind,
        "no coverage": partial(teller, "soft", 0.0),
        "coverage of 1": partial(teller, "soft", 1.0),
    }
    points: dict[str, Callable[[int], np.ndarray]] = {"soft": partial(pointed, arms["soft"]), "area": area}
    points |= {name: partial(pointed, arms[name]) for name in ("hard", "even at test", "coverage of 1")}
    return [
        lab.compare({name: partial(told, arm) for name, arm in arms.items()}, expect="soft > mean, hard > mean",
                    control="even at test", name="caption F1"),
        lab.compare(points, expect="soft >= 3 * area", control="even at test", name="pointing"),
    ]  # fmt: skip
