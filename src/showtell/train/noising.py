"""The denoiser of any diffusion bridge as training needs it: any noise level for every sample, no sampling loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from showtell.bridges.attention import observe
from showtell.bridges.base import Technique, Text
from showtell.bridges.loop import DenoisingRun, _is_flow


@dataclass(frozen=True)
class Noised:
    """latents = alpha clean + sigma noise, all (n, ...); alpha, sigma (n, 1, ...); times (n,) as the denoiser takes
    them."""

    latents: Tensor
    clean: Tensor
    noise: Tensor
    alpha: Tensor
    sigma: Tensor
    times: Tensor


def stratified(count: int, generator: torch.Generator | None = None, device: Any = None) -> Tensor:
    """Numbers (count,) in [0, 1), one drawn from each of `count` equal intervals.

    A batch that takes its noise levels there sees them all, and its loss varies less (explicit uniform sampling, arXiv
    2408.06072).
    """
    within = torch.rand(count, generator=generator, device=device)
    return ((torch.arange(count, device=device) + within) / count).clamp(max=1 - 1e-6)


class Noising:
    """What the losses of papers are made of. height, width, options: as for `bridge.generate`.

    Levels are the ones that the model was trained with: uniform steps of the scheduler (arXiv 2006.11239), for flow
    models logit-normal times (arXiv 2403.03206). `adapter` may be replaced by `showtell.train.networks.with_denoiser`.
    """

    def __init__(self, bridge: Any, height: int | None = None, width: int | None = None, **options: Any) -> None:
        self.bridge, self.adapter, self.options = bridge, bridge.adapter, dict(options)
        self.height, self.width = bridge._size(height, width, self.options)
        self.scheduler = copy.deepcopy(bridge.pipeline.scheduler)
        self.flow = _is_flow(self.scheduler)
        self.kind = "flow" if self.flow else self.scheduler.config.get("prediction_type", "epsilon")

    def run(self, prompts: Sequence[str], techniques: Sequence[Technique] = ()) -> DenoisingRun:
        """A run of these prompts that stands nowhere: for what the adapter and techniques want to know of a call."""
        run = DenoisingRun(self.bridge, self.adapter, list(prompts), techniques)
        run.options, run.guidance, run.scheduler = dict(self.options), 1.0, self.scheduler
        run.height, run.width, run.num_frames = self.height, self.width, self.adapter.frames(None)
        return run

    def text(self, prompts: Sequence[str], trained: bool = False) -> Text:
        """Encoded prompts with what the family adds to them, one row each. trained: with gradients to the encoders."""
        run = self.run(prompts)
        if trained:
            names = self.adapter.text_options & self.options.keys()
            run.text = self.adapter.encode(run.prompts, False, **{name: self.options[name] for name in names})
        else:
            run.text = self.bridge.encode(run.prompts, **self.options)
        self.adapter.condition(run)
        return run.text

    def noised(self, clean: Tensor, generator: torch.Generator | None = None, even: bool = False) -> Noised:
        """Clean latents (n, ...) at drawn noise levels; even: one from each of n equal parts of their distribution."""
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        shape = (len(clean), *[1] * (clean.ndim - 1))
        parts = stratified(len(clean), generator, clean.device) if even else None
        if self.flow:
            if parts is None:
                normal = torch.randn(shape, generator=generator, device=clean.device)
            else:
                normal = torch.special.ndtri(parts.clamp(min=1e-6)).view(shape)
            sigma = normal.sigmoid()
            return Noised((1 - sigma) * clean + sigma * noise, clean, noise, 1 - sigma, sigma, 1000 * sigma.flatten())
        levels = len(self.scheduler.alphas_cumprod)
        if parts is None:
            times = torch.randint(levels, (len(clean),), generator=generator, device=clean.device)
        else:
            times = (parts * levels).long()
        return self.at(clean, noise, times)

    def at(self, clean: Tensor, noise: Tensor, times: Tensor) -> Noised:
        """Clean latents at these timesteps (n,) of the scheduler; -1 is no noise at all."""
        alpha, sigma = self.level(times)
        shape = (-1, *[1] * (clean.ndim - 1))
        alpha, sigma = alpha.view(shape), sigma.view(shape)
        return Noised(alpha * clean + sigma * noise, clean, noise, alpha, sigma, times)

    def at_share(self, clean: Tensor, noise: Tensor, share: float | Tensor) -> Noised:
        """Clean latents at a share (one, or (n,)) of the training levels, 0 to 1, whatever the model predicts."""
        shares = torch.as_tensor(share, dtype=torch.float32, device=clean.device).expand(len(clean))
        if not self.flow:
            return self.at(clean, noise, (shares * (len(self.scheduler.alphas_cumprod) - 1)).round().long())
        sigma = shares.view(-1, *[1] * (clean.ndim - 1))
        return Noised((1 - sigma) * clean + sigma * noise, clean, noise, 1 - sigma, sigma, 1000 * sigma.flatten())

    def at_level(self, clean: Tensor, noise: Tensor, level: int) -> Noised:
        """Clean latents at a level of 1000; of flow models the levels are shares of the noise, moved by the
        scheduler's shift."""
        if not self.flow:
            return self.at(clean, noise, torch.full((len(clean),), level, device=clean.device))
        config = self.scheduler.config
        shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
        return self.at_share(clean, noise, shift * level / (1000 + (shift - 1) * level))

    def level(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), (n,) each, at timesteps of the scheduler."""
        products = self.scheduler.alphas_cumprod.to(times.device)
        signal = torch.where(times < 0, 1.0, products[times.clamp(min=0)]).float()  # some schedulers' are doubles
        return signal.sqrt(), (1 - signal).sqrt()

    def predict(self, at: Noised, text: Text, watching: Sequence[Technique] = (), run: Any = None) -> Tensor:
        """The denoiser's prediction, (n, ...) float32. watching: techniques that see its attention; run: of `run`."""
        run = self.run([""] * len(text)) if run is None else run

        def call() -> Tensor:
            return self.adapter.predict(run, at.latents, at.times, text).float()

        if not watching:
            return call()
        return observe(call, run, self.adapter.layout(run), watching, ["text"], text.tokens.shape[1])

    def target(self, at: Noised) -> Tensor:
        """What the denoiser should predict."""
        if self.flow:
            return at.noise - at.clean
        return {"epsilon": at.noise, "sample": at.clean}.get(self.kind, at.alpha * at.noise - at.sigma * at.clean)

    def clean(self, predicted: Tensor, at: Noised) -> Tensor:
        """The clean latents that a prediction implies."""
        if self.flow:
            return at.latents - at.sigma * predicted
        if self.kind == "sample":
            return predicted
        if self.kind == "v_prediction":
            return at.alpha * at.latents - at.sigma * predicted
        return (at.latents - at.sigma * predicted) / at.alpha

    def noise_errors(self, predicted: Tensor, at: Noised) -> Tensor:
        """The mean squared error, (n,), of the noise that a prediction implies; of flow models that of the velocity."""
        if self.flow:
            missed = predicted - self.target(at)
        else:
            missed = at.alpha / at.sigma * (self.clean(predicted, at) - at.clean)
        return missed.flatten(1).square().mean(dim=1)

    def loss(self, at: Noised, text: Text, **more: Any) -> Tensor:
        """The mean squared error of the prediction."""
        return (self.predict(at, text, **more) - self.target(at)).square().mean()
