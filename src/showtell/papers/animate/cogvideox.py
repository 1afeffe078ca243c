"""CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer.
Yang, Teng, Zheng, Ding, Huang, Xu, Yang, Hong, Zhang, Feng, Yin, and others, 2024, arXiv 2408.06072

One transformer runs over text and clip together. What moves far is found again by full attention over space and time,
where attention in space and in time by turns has to pass it on through places that show neither; text and vision share
all weights but those of the adaptive norms, their experts; and every batch spreads its noise levels evenly.

Faithful: the transformer is diffusers' own (3-D rotary positions, normalised queries and keys, expert norms), the
schedule ends in pure noise and the velocity is predicted, explicit uniform sampling of times, clips of any sizes and
lengths packed into one sequence under a mask. Ours: one noise level for a pack. Scaled down: 3 latent frames (of 9 at
four to one) of 8x8, the packaged autoencoder frame by frame, plain captions, 1.1 M weights trained for a minute. The
factorised model has the same blocks and weights, so that space and time take turns from block to block.
What is measured is the loss on new clips, all arms with the same noise. That full attention is there for motion is
tested by what factorised attention loses where things cross the frame, against what it loses with the same things at
rest, which is the control: a place that shows the same thing in all frames is all that attention along time needs.
Both are learnt by the same models. Not measured: motion in clips that are sampled, which these models have not learnt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell.bridges.base import Technique, Text
from showtell.measure.experiment import Comparison, Lab
from showtell.train.narrow_clips import at_rest, crossing, crossing_latents, learn_clips, learnt, small_video
from showtell.train.noising import Noising

EXAMPLE = """
import torch
import showtell
from showtell.papers.animate.cogvideox import Factorised, packed
from showtell.train.noising import Noising

bridge = showtell.load("THUDM/CogVideoX-5b")
[clip] = bridge.animate("a dog runs across a field", seed=0)
[worse] = bridge.animate("a dog runs across a field", using=[Factorised()], seed=0)   # without full attention
noising = Noising(bridge)                                     # a loss for `showtell.train.fit`, times spread evenly
latents = torch.stack(bridge.animate(["a dog", "a cat"], output_type="latent", seed=0)).float()
loss = noising.loss(noising.noised(latents, even=True), noising.text(["a dog", "a cat"]))
predictions = packed(bridge, [latents[:1, :, :1], latents[1:]], noising.text(["a dog", "a cat"]), torch.tensor([500]))
"""


class Factorised(Technique):
    """What the paper argues against: attention within frames in the even blocks, at one place along time in the odd.

    Text and vision see each other in both. For training there is `Noising.predict(at, text, watching=[Factorised()])`.
    """

    def wants(self, run: Any, place: Any) -> bool:
        return place.image_keys is not None and len(place.grid) == 3 and place.grid[0] > 1

    def attention(self, run: Any, site: Any) -> None:
        frames, height, width = site.grid
        token = torch.arange(frames * height * width, device=site.query.device)
        block = int(re.findall(r"\d+", site.name)[0])
        group = token % (height * width) if block % 2 else token // (height * width)
        site.mask(group[:, None] == group, branch=None, queries="image", keys="image")


def share_norms(transformer: Any) -> None:
    """Makes a CogVideoX transformer scale, shift and gate its text as it does vision: one norm for two experts."""

    def for_both(linear: nn.Module, given: Any, made: Tensor) -> Tensor:
        return made.chunk(2, dim=1)[0].repeat(1, 2)  # three numbers a channel for vision, three for text

    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            norm.linear.register_forward_hook(for_both)


def packed(bridge: Any, clips: Sequence[Tensor], text: Text, times: Tensor) -> list[Tensor]:
    """The predictions for clips (1, channels, frames, height, width) of any lengths and sizes, each with its row of
    text, in one sequence in which no clip sees another; times (1,). A CogVideoX bridge with rotary positions.
    """
    model, adapter, run = bridge.adapter.denoiser, bridge.adapter, Noising(bridge).run([""])
    tokens, words, rotary, lengths = [], [], [], []
    for row, clip in enumerate(clips):
        run.height, run.width = (side * bridge.pipeline.vae_scale_factor_spatial for side in clip.shape[-2:])
        rotary.append(adapter.rotary(run, clip.shape[2]))
        joined = model.patch_embed(text.tokens[row : row + 1], clip.transpose(1, 2))
        length = text.tokens.shape[1]
        words.append(joined[:, :length])
        tokens.append(joined[:, length:])
        lengths.append(joined.shape[1] - length)
    owners = [torch.full((size,), row) for row, size in enumerate(lengths)]
    owner = torch.cat([torch.arange(len(clips)).repeat_interleave(text.tokens.shape[1]), *owners]).to(times.device)
    apart = {"attention_mask": (owner[:, None] == owner)[None]}
    told, shown = torch.cat(words, dim=1), torch.cat(tokens, dim=1)
    positions = tuple(torch.cat(part) for part in zip(*rotary, strict=True))
    time = model.time_embedding(model.time_proj(times).to(shown.dtype))
    for block in model.transformer_blocks:
        shown, told = block(shown, told, time, positions, apart)
    made = model.proj_out(model.norm_out(model.norm_final(shown), temb=time)).split(lengths, dim=1)
    return [_unpatched(part, clip, model.config) for part, clip in zip(made, clips, strict=True)]


def _unpatched(tokens: Tensor, like: Tensor, config: Any) -> Tensor:
    """Tokens (1, n, numbers) laid out as the clip that they come from."""
    side, long = config.patch_size, config.patch_size_t or 1
    _, _, frames, height, width = like.shape
    # A token's numbers are (channels, rows, columns), in 1.5 (channels, frames, rows, columns).
    grid = tokens.reshape(frames // long, height // side, width // side, -1, long, side, side)
    return grid.permute(3, 0, 4, 1, 5, 2, 6).reshape(1, -1, frames, height, width)


CLIPS, STEPS, GROUPS, DRAWS, EACH = 2400, 600, 16, 8, 16
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def experiment(lab: Lab) -> list[Comparison]:
    lab.base("vae")
    watching: dict[str, list[Technique]] = {"cogvideox": [], "factorised": [Factorised()], "one norm": []}
    moving = crossing(lab.n, 1 + lab.seed, lab.split)
    held_out = {False: moving, True: [at_rest(scene) for scene in moving]}  # by whether they rest

    def blank(name: str, seed: int) -> Any:
        bridge = small_video(seed)
        if name == "one norm":
            share_norms(bridge.pipeline.transformer)
        return bridge

    def make(name: str, seed: int) -> Any:
        scenes = [*crossing(CLIPS // 2), *crossing(CLIPS // 2, rest=True)]
        drawn = lab.trained("latents", lambda: {"latents": crossing_latents(scenes)}, shared=True, clips=CLIPS)
        texts = [scene.caption() for scene in scenes]
        return learn_clips(blank(name, seed), drawn["latents"], texts, STEPS, watching=watching[name], seed=seed)

    @cache
    def bridge_of(name: str, seed: int) -> Any:
        bridge = blank(name, seed)
        state = lab.trained(name, partial(make, name), seed, shared=True, steps=STEPS)
        learnt(bridge).eval().requires_grad_(False).load_state_dict(state)
        return bridge

    @cache
    def latents(rest: bool) -> Tensor:
        return crossing_latents(held_out[rest], 1)

    @cache
    def missed(rest: bool, name: str, seed: int) -> np.ndarray:
        """The loss on held-out clips, mean over the noise levels."""
        noising, clean = Noising(bridge_of(name, seed)), latents(rest)
        told = noising.text([scene.caption() for scene in held_out[rest]])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        levels = [noising.at_share(clean, noise, share) for share in SHARES]
        errors = [noising.predict(at, told, watching[name]) - noising.target(at) for at in levels]
        return torch.stack(errors).square().flatten(2).mean(dim=(0, 2)).numpy()

    def lost(rest: bool, seed: int) -> np.ndarray:
        return missed(rest, "factorised", seed) - missed(rest, "cogvideox", seed)

    def spread(even: bool, seed: int) -> np.ndarray:
        """The standard deviation of a batch's loss over draws of noise levels, batch by batch."""
        noising, clean = Noising(bridge_of("cogvideox", seed)), latents(False)
        told, rng, found = noising.text([scene.caption() for scene in moving]), np.random.default_rng(seed), []
        for group in range(GROUPS):
            rows, losses = torch.from_numpy(rng.integers(len(moving), size=EACH)), []
            for number in range(DRAWS):
                generator = torch.Generator().manual_seed((seed * GROUPS + group) * DRAWS + number)
                losses.append(float(noising.loss(noising.noised(clean[rows], generator, even), told.rows(rows))))
            found.append(np.std(losses))
        return np.array(found)

    far = {name: partial(missed, False, name) for name in ("cogvideox", "factorised", "one norm")}
    gaps = {"crossing": partial(lost, False), "at rest": partial(lost, True)}
    times = {"spread evenly": partial(spread, True), "drawn freely": partial(spread, False)}
    return [
        lab.compare(far, expect="factorised > cogvideox, one norm > cogvideox - 0.005", name="loss on what moves far"),
        lab.compare(gaps, expect="crossing > at rest", control="at rest", name="what factorised attention loses"),
        lab.compare(times, expect="drawn freely > spread evenly", name="spread of the loss", trained=True),
    ]
