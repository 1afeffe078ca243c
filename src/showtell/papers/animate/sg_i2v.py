"""SG-I2V: Self-Guided Trajectory Control in Image-to-Video Generation.
Namekata, Bahmani, Wu, Kant, Gilitschenski, Lindell, 2024, arXiv 2411.04989

Boxes say where things of the first frame are to go. Attending to the first frame's keys and values, the features of
all frames become comparable; early in sampling the noisy latents are optimised until the features in a frame's box are
those of the first frame's, and only the low frequencies of what was optimised are kept.

Faithful: features beside the pass, which itself goes on unchanged; upsampled to the latents' size; Gaussian weights
from each box's centre (0.4 of its half sides); 5 steps of AdamW with rate 0.21 in 10 to 42 % of the sampling; a
Butterworth filter of order 4 at 0.5; what leaves the frame is left out; ordinary denoising afterwards. Layers of Stable
Video Diffusion: the second and later self-attentions of the middle decoder block.
Ours: transformers have no decoder, so the self-attention of their third quarter is read; where a model's latent frame
stands for several frames, boxes are interpolated to it. The rate belongs to Stable Video Diffusion's noise scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.base import Run, Technique, spread
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.clips import track_error
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.frequencies import butterworth, mixed_frequencies
from showtell.steer.maps import Where
from showtell.steer.trajectories import MovedNoise, Path, at_frames, cells_of, each_frame, moved
from showtell.world.draw import boxes
from showtell.world.motion import tracks

EXAMPLE = """
import showtell
from showtell.papers.animate.sg_i2v import SgI2V
from showtell.steer.trajectories import moved

picture = showtell.load().generate("a red ring left of a blue star")[0]
bridge = showtell.load("stabilityai/stable-video-diffusion-img2vid")
right = moved((0.1, 0.3, 0.4, 0.7), [(0.25, 0.5), (0.5, 0.5)])
[clip] = bridge.animate("", picture, using=[SgI2V([right])], num_inference_steps=50, seed=0)
"""


def bell(height: int, width: int, sigma: float) -> Tensor:
    """A Gaussian (height, width) around the middle, with deviations `sigma` of the half sides, at most 1."""
    y, x = ((torch.arange(n) + 0.5 - n / 2) / (sigma * n / 2) for n in (height, width))
    weights = torch.exp(-(y[:, None] ** 2 + x**2) / 2)
    return weights / weights.max()


def drift(features: Tensor, paths: Sequence[Path], sigma: float = 0.4) -> Tensor:
    """How much the features of one sample (frames, channels, height, width) in the boxes differ from the first
    frame's, a scalar: weighted mean over all cells, boxes and later frames."""
    frames, _, height, width = features.shape
    total, weight = features.sum() * 0, 0.0
    for path in paths:
        spans = [cells_of(box, height, width) for box in at_frames(path, frames)]
        top, left, bottom, right = spans[0]
        if min(top, left) < 0 or bottom > height or right > width:
            raise ShowtellError(f"box {tuple(path[0])} of the first frame leaves it; use numbers from 0 to 1.")
        wanted = features[0, :, top:bottom, left:right].detach()
        for f, (top, left, bottom, right) in enumerate(spans[1:], 1):
            rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
            target = F.interpolate(wanted[None], (bottom - top, right - left), mode="bilinear")[0][:, *inside]
            mask = bell(bottom - top, right - left, sigma)[inside].to(features)
            total = total + (mask * (features[f, :, rows, columns] - target).square().mean(0)).sum()
            weight = weight + float(mask.sum())
    return total / max(weight, 1e-8)


class SgI2V(Technique):
    """paths: boxes over the clip of each thing, the same for all samples or a list of such lists; a box that stays pins
    what is in it, one on the background moves the camera. [] changes nothing.

    window: from, to, as fractions of the sampling. iterations, lr: of AdamW. sigma: of the Gaussians. cutoff: of the
    low-pass filter; None keeps all frequencies. where: the attention to read. aligned: False reads each frame's own.
    """

    def __init__(
        self, paths: Sequence[Path] | Sequence[Sequence[Path]], window: tuple[float, float] = (0.1, 0.42),
        iterations: int = 5, lr: float = 0.21, sigma: float = 0.4, cutoff: float | None = 0.5,
        where: Where | None = None, aligned: bool = True,
    ) -> None:  # fmt: skip
        shared = not paths or isinstance(paths[0][0][0], (int, float))
        self.paths: Any = [paths] if shared else list(paths)
        self.window, self.iterations, self.lr, self.sigma = window, iterations, lr, sigma
        self.cutoff, self.where, self.aligned = cutoff, where, aligned

    def start(self, run: Any, latents: Tensor) -> None:
        if latents.ndim != 5:
            raise ShowtellError("SG-I2V moves things through a clip: call animate of a bridge that makes clips.")
        each = self.paths * len(run.prompts) if len(self.paths) == 1 else self.paths
        state = run.state(self)
        state.paths, state.features = spread(each, len(run.prompts), "paths"), None
        state.names = None if self.where else decoder_attentions(run)

    def wants(self, run: Run, place: Place) -> bool:
        state = run.state(self)
        if state.features is None or place.image_keys is None:
            return False
        return self.where(place) if self.where else place.name in state.names

    def attention(self, run: Run, site: Any) -> None:
        """Keeps what every frame gets, attending to the first one: (n, frames, channels, height, width)."""
        query, key, value = each_frame(site, site.branches["text"])
        if self.aligned:
            key, value = key[:, :1].detach(), value[:, :1].detach()
        scale = query.shape[-1] ** -0.5
        found = (query * scale @ key.transpose(-1, -2)).softmax(dim=-1) @ value  # (n, frames, heads, tokens, channels)
        run.state(self).features.append(found.transpose(-1, -2).flatten(2, 3).unflatten(-1, site.grid[-2:]))

    def features(self, run: Any, latents: Tensor) -> Tensor:
        """Of one conditional evaluation, all layers at the latents' size, (n, frames, channels, height, width)."""
        state, size = run.state(self), latents.shape[-2:]
        state.features = []
        try:
            run.evaluate(latents)
            if not state.features:
                raise ShowtellError("no attention place was chosen to read; widen `where`.")
            large = [F.interpolate(x.flatten(0, 1), size, mode="bilinear") for x in state.features]
            return torch.cat(large, dim=1).unflatten(0, (len(latents), -1))
        finally:
            state.features = None

    def before(self, run: Any, latents: Tensor) -> Tensor | None:
        paths = run.state(self).paths
        if not self.window[0] <= run.progress < self.window[1] or not any(paths):
            return None
        with torch.enable_grad():
            made = latents.detach().clone().requires_grad_()
            optimizer = torch.optim.AdamW([made], lr=self.lr)
            for _ in range(self.iterations):
                found = zip(self.features(run, made), paths, strict=True)
                loss = torch.stack([drift(one, path, self.sigma) for one, path in found]).sum()
                [made.grad] = torch.autograd.grad(loss, made)
                optimizer.step()
        led = torch.tensor([bool(path) for path in paths], device=latents.device).view(-1, 1, 1, 1, 1)
        made = torch.where(led, made.detach(), latents)  # AdamW's decay is for those with boxes alone
        if self.cutoff is None:
            return made
        return mixed_frequencies(made, latents, butterworth(latents.shape[-2:], self.cutoff).to(latents))


def decoder_attentions(run: Any) -> list[str]:
    """Self- and joint attentions to read: of a decoder's middle block, else of the third quarter."""
    names = [name for name, kind in run.adapter.layout(run).calls if kind in ("self", "joint")]
    up = [name for name in names if name.startswith("up_blocks.")]
    if not up:
        return names[len(names) // 2 : max(3 * len(names) // 4, len(names) // 2 + 1)]
    blocks = list(dict.fromkeys(name.split(".attentions")[0] for name in up))
    middle = [name for name in up if name.startswith(f"{blocks[len(blocks) // 2]}.")]
    return middle[1:] or middle


FRAMES = 16  # of a clip, at which paths are given


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("animator"), lab.prompts("motion")
    # Where every object is seen through the clip; those at rest are pinned.
    wanted = [
        [moved(tuple(box.tolist()), track) for box, track in zip(boxes(scene), tracks(scene, FRAMES)[0], strict=True)]
        for scene in prompts.scenes
    ]

    def arm(*using: Technique) -> Any:
        return cache(lambda seed: bridge.animate([""] * len(wanted), prompts.renders, using=list(using), seed=seed))

    arms = {
        "sg_i2v": arm(SgI2V(wanted)),
        "plain": arm(),
        "moved noise": arm(MovedNoise(wanted)),
        "features not aligned": arm(SgI2V(wanted, aligned=False)),
        "all frequencies": arm(SgI2V(wanted, cutoff=None)),
    }
    distance = partial(track_error, scenes=prompts.scenes)
    expect = "plain >= 2 * sg_i2v, moved noise > sg_i2v"
    return [
        lab.compare(arms, metric=distance, expect=expect, control="features not aligned"),
        lab.compare(arms, metric=prompts.identity, expect="sg_i2v > plain - 0.03", control="all frequencies"),
    ]
