"""AnyControl: Create Your Artwork with Versatile Control on Text-to-Image Generation.
Sun, Liu, Tang, Wang, Ma, Wu, Zhang, Zhao, Chen, 2024, arXiv 2406.18958

Any number of spatial conditions, of any kinds, is read by one set of queries: fusion blocks take from all of them what
agrees, alignment blocks make it agree with the prompt. The result steers a copy of the UNet's encoder, as a ControlNet,
and since training also shows conditions that do not belong together, occlusion and gaps are learnt as well.

Faithful: fusion and alignment in turn, over tokens from several depths of a frozen visual encoder with one position
embedding for all conditions; a trained copy of the encoder with zero convolutions; random subsets of conditions,
aligned and unaligned ones mixed. Ours: numbers of queries and blocks. Scaled down: 64 queries, 3 depths of the
miniature CLIP; unaligned conditions are drawn object by object, whole even where another one hides them; both kinds
from the first step on; subsets that training never shows are not tried. The baseline has twice the weights, and each of
its two controls half of the steps. Controls, by what each part is for: places without conditions, order at overlaps
without unaligned data, words without alignment.
It cannot be combined with techniques that watch attention, as the copy's is not told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell.bridges.base import Run, Technique
from showtell.errors import ShowtellError
from showtell.measure.conditions import edges_and_masks
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, PromptSet
from showtell.nets.multi_control import MultiControlEncoder
from showtell.pictures import to_pil
from showtell.steer.controls import Summed
from showtell.train.noising import Noising
from showtell.train.samples import drawn, latents_of, paired
from showtell.train.trainer import fit
from showtell.world import Scene, sample

EXAMPLE = """
import showtell
from showtell.papers.control.anycontrol import AnyControl, Control, train

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
clip = showtell.load("openai/clip-vit-large-patch14")
prompts = ["a red ring left of a blue star", "a dog on the table"]
pictures = bridge.generate(prompts, seed=7)                              # yours, and what is known of them:
edges, depth = bridge.generate(prompts, seed=8), bridge.generate(prompts, seed=9)
control = Control(bridge, clip)
train(control, bridge, clip, pictures, prompts, [[[edges[i], depth[i]] for i in range(2)]], steps=2, batch_size=2)
[image] = bridge.generate(prompts[0], using=[AnyControl(control, clip, [edges[0], depth[0]])], seed=0)
"""


class Control(nn.Module):
    """The encoder and the copy of a Stable Diffusion or SDXL bridge's UNet that it steers; it changes nothing yet.

    levels: how many depths of the CLIP's vision are read. alignment: see `MultiControlEncoder`.
    """

    def __init__(self, bridge: Any, clip: Any, side: int = 8, width: int = 256, levels: int = 4, heads: int = 4,
                 alignment: bool = True) -> None:  # fmt: skip
        from diffusers import ControlNetModel

        super().__init__()
        unet, vision = bridge.adapter.denoiser, clip.model.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        self.encoder = MultiControlEncoder(
            side, width, levels, heads, (tokens, vision.hidden_size), unet.config.cross_attention_dim,
            unet.config.block_out_channels[0], alignment,
        )  # fmt: skip
        self.copy = ControlNetModel.from_unet(unet)
        self.copy.controlnet_cond_embedding = nn.Identity()  # the encoder's embedding is in its place

    def forward(self, visual: Sequence[Tensor], there: Tensor, text: Any) -> Callable[..., dict[str, Any]]:
        """What the bridge's UNet is to be given further, for `run.own["residuals"]`; arguments as of the encoder."""
        embedding = self.encoder(visual, there, text.tokens)

        def residuals(run: Any, latents: Tensor, timestep: Any, words: Any, added: Any) -> dict[str, Any]:
            control = nn.functional.interpolate(embedding, latents.shape[-2:], mode="bilinear")
            down, middle = self.copy(
                latents, timestep, encoder_hidden_states=words.tokens, added_cond_kwargs=added, return_dict=False,
                controlnet_cond=control.repeat(len(latents) // len(control), 1, 1, 1),
            )  # fmt: skip
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

        return residuals


def seen_by(clip: Any, conditions: Sequence[Sequence[Any]], levels: int) -> tuple[list[Tensor], Tensor]:
    """Tokens of each level (n, conditions, tokens, width), and which are given (n, conditions): n lists of pictures."""
    most, count = max(1, *map(len, conditions)), len(conditions)
    there = torch.tensor([[i < len(row) for i in range(most)] for row in conditions])
    blank = np.zeros((8, 8, 3), np.uint8)
    pictures = to_pil([one for row in conditions for one in (*row, *[blank] * (most - len(row)))])
    return [states.unflatten(0, (count, most)) for states in clip.depths(pictures, levels)], there


class AnyControl(Technique):
    """conditions: pictures (edges, depth, masks, ...) for every sample, or a list of them for each; [] gives none."""

    def __init__(self, control: Control, clip: Any, conditions: Sequence[Any]) -> None:
        self.control, self.clip, self.conditions = control, clip, list(conditions)

    def start(self, run: Run, latents: Tensor) -> None:
        several = bool(self.conditions) and isinstance(self.conditions[0], (list, tuple))
        each = self.conditions if several else [self.conditions] * len(run.prompts)
        if len(each) != len(run.prompts):
            raise ShowtellError(f"conditions of {len(each)} samples for {len(run.prompts)} prompts; give a list each.")
        if not hasattr(run.adapter.denoiser, "mid_block"):  # type: ignore[attr-defined]
            raise ShowtellError(f"AnyControl steers UNets, not {run.bridge.name}.")
        seen = seen_by(self.clip, each, self.control.encoder.config.levels)
        run.own["residuals"] = self.control(*seen, run.text)  # type: ignore[attr-defined]


def train(
    control: Control, bridge: Any, clip: Any, pictures: Sequence[Any], prompts: Sequence[str],
    sets: Sequence[Sequence[Sequence[Any]]], steps: int, batch_size: int = 16, lr: float = 1e-3, seed: int = 0,
    **options: Any,
) -> None:  # fmt: skip
    """Trains the control to draw pictures (n) for prompts (n) under a random subset of their conditions.

    sets: one or several of n lists of as many conditions each (aligned ones, unaligned ones), of which one is drawn for
    every row. options: as for `Noising`.
    """
    noising, levels = Noising(bridge, **options), control.encoder.config.levels
    with torch.no_grad():
        texts = noising.text(prompts)
    known = [seen_by(clip, one, levels)[0] for one in sets]
    # Of each level (n, sets, conditions, tokens, width).
    tokens = [torch.stack([one[level] for one in known], dim=1) for level in range(levels)]
    bridge.adapter.denoiser.requires_grad_(False)

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        rows = batch["row"].long()
        chosen = torch.randint(len(sets), (len(rows),), generator=generator)
        there = torch.rand(len(rows), tokens[0].shape[2], generator=generator) < 0.75
        text, run = texts.rows(rows), noising.run([""] * len(rows))
        run.own["residuals"] = control([level[rows, chosen] for level in tokens], there, text)
        error = noising.loss(noising.noised(batch["latents"], generator), text, run=run)
        return error, {"mse": error.detach()}

    data = paired(latents_of(bridge, pictures), batch_size)
    fit(control, loss, data, steps=steps, lr=lr, ema=None, precision="no", seed=seed, progress=False)
    control.eval()


def overlapping(count: int, seed: int, split: str) -> list[Scene]:
    return sample(count, seed, split, 2, distinct=("shape", "colour"), relation=("in front of", "behind"), **PLAIN)


SCENES, STEPS, BATCH, RATE, SAMPLING, WIDTH, LEVELS = 320, 160, 16, 1e-3, 10, 96, 3


def experiment(lab: Lab) -> list[Comparison]:
    base, clip = lab.base("unet"), lab.base("clip")
    scenes, wanted = overlapping(SCENES, lab.seed, "train"), overlapping(lab.n, lab.seed, "test")
    pictures, captions = drawn(scenes), [scene.caption() for scene in scenes]
    prompts = PromptSet.of("overlapping", wanted, lab.seed)
    asked = edges_and_masks(wanted, True, lab.seed)  # one object by its edges, the other by its mask
    parts = {"edges": 0, "mask": 1}  # of the baseline, one control for each kind of condition

    def new(name: str) -> Control:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Control(base, clip, 8, WIDTH, LEVELS, 2, alignment=name != "no alignment")

    def trained(name: str, seed: int) -> Control:
        kinds = (False,) if name == "aligned data alone" else (False, True)
        sets: Any = [edges_and_masks(scenes, alone, lab.seed) for alone in kinds]
        if name in parts:
            sets = [[[row[parts[name]]] for row in one] for one in sets]
        steps, made = STEPS // 2 if name in parts else STEPS, new(name)
        train(made, base, clip, pictures, captions, sets, steps, BATCH, RATE, seed)
        return made

    @cache
    def control(name: str, seed: int) -> Control:
        made = new(name)
        made.load_state_dict(lab.trained(name, partial(trained, name), seed, steps=STEPS))
        return made.eval()

    @cache
    def made(name: str, seed: int) -> list[Any]:
        using: Technique
        if name == "summed":
            each = {part: [[row[i]] for row in asked] for part, i in parts.items()}
            using = Summed([AnyControl(control(part, seed), clip, pictures) for part, pictures in each.items()])
        elif name == "no conditions":
            using = AnyControl(control("anycontrol", seed), clip, [])
        else:
            using = AnyControl(control(name, seed), clip, asked)
        return base.generate(prompts.texts, using=[using], seed=seed, num_inference_steps=SAMPLING)

    def compared(metric: Callable[..., Any], control: str) -> Comparison:
        arms = {name: partial(made, name) for name in ("anycontrol", "summed", control)}
        return lab.compare(arms, metric=metric, expect="anycontrol > summed", control=control)

    return [
        compared(prompts.placed, "no conditions"),
        compared(prompts.relations, "aligned data alone"),
        compared(prompts.attributes, "no alignment"),
    ]
