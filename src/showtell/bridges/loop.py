"""The one denoising loop: every diffusion family and every technique passes through it."""

from __future__ import annotations

import copy
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from ..errors import ShowtellError
from .adapter import Adapter
from .attention import SeenEnough, observe
from .attention import is_compiled as _is_compiled
from .base import Run, Text, apply_hooks, overriding
from .layout import Grid, Place, TokenLayout
from .memory import within


class DenoisingRun(Run):
    """A run of a diffusion bridge."""

    def __init__(self, bridge: Any, adapter: Adapter, prompts: list[str], techniques: Any) -> None:
        super().__init__(bridge, prompts, techniques)
        self.adapter = adapter
        self.given = None
        self._level = 0  # index of the timestep whose noise level the current latents have
        self._compiled: bool | None = None
        self._layout: TokenLayout | None = None
        self._places: list[Place] = []  # of the last whole evaluation
        self._joined: tuple[list[Text], Text] = ([], None)  # type: ignore[assignment]

    def encode(self, prompts: str | list[str]) -> Text:
        return self.bridge.encode(prompts, **self.options)  # type: ignore[attr-defined]

    @property
    def grids(self) -> list[Grid]:
        """The grids of image tokens that this call's attention may have, (height, width) or with frames before."""
        if self._layout is None:
            self._layout = self.adapter.layout(self)
        return list(self._layout.grids.values())

    def evaluate(self, latents: torch.Tensor, text: Text | None = None, timestep: Any = None) -> torch.Tensor:
        chosen = self.text if text is None else self._complete(text)
        return self._forward(latents, {"text": self._edited(chosen)}, timestep)["text"]

    def look(self, latents: torch.Tensor) -> None:
        """A conditional evaluation for the sake of its attention: it ends at the last place that a technique wants.

        The first one of a run is whole, and shows which places there are.
        """
        watching = overriding(self.techniques, "attention")
        here = [replace(place, step=self.step, steps=self.steps) for place in self._places]
        wanted = [place.depth for place in here if any(t.wants(self, place) for t in watching)]
        last = max(wanted, default=None) if self._may_stop else None
        with suppress(SeenEnough):
            self._forward(latents, {"text": self._edited(self.text)}, None, last)

    @cached_property
    def _may_stop(self) -> bool:
        """Whether a forward pass can be left in the middle: not where hooks or scaled LoRA layers wait for its end."""
        offloaded = any(hasattr(module, "_hf_hook") for module in self.adapter.denoiser.modules())
        return not offloaded and not any(name.endswith("attention_kwargs") for name in self.options)

    def predict(self, latents: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        asked = any(technique.differentiates(self) for technique in overriding(self.techniques, "differentiates"))
        with torch.set_grad_enabled(asked or torch.is_grad_enabled()):
            guided = self._predict(latents, timestep)
        return guided if torch.is_grad_enabled() else guided.detach()

    def _predict(self, latents: torch.Tensor, timestep: Any) -> torch.Tensor:
        branches = self.adapter.branches(self)
        branches["text"] = self._edited(branches["text"])
        for technique in overriding(self.techniques, "beside"):
            branches |= {name: self._complete(text) for name, text in (technique.beside(self) or {}).items()}
        outputs = self._forward(latents, branches, timestep)
        guided = self.adapter.guide(self, outputs)
        before = self.given, self._level
        self.given = latents
        self._level = self._level if timestep is None else self._index(timestep)
        for technique in overriding(self.techniques, "prediction"):
            changed = technique.prediction(self, guided, outputs["text"], outputs.get("negative"))
            guided = guided if changed is None else changed
        self.given, self._level = before
        return guided

    def clean(self, prediction: torch.Tensor, latents: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        alpha, sigma = self.noise_level(timestep)
        kind = self.scheduler.config.get("prediction_type", "epsilon")
        if "flow" in kind or _is_flow(self.scheduler):
            return latents - sigma * prediction
        if kind == "sample":
            return prediction
        if kind == "v_prediction":
            norm = (alpha**2 + sigma**2) ** 0.5
            return (alpha / norm) * (latents / norm) - (sigma / norm) * prediction
        return (latents - sigma * prediction) / alpha

    def noise_level(self, timestep: Any = None) -> tuple[float, float]:
        """(alpha, sigma) with latents = alpha * clean latents + sigma * noise, at `timestep` or the current
        level.
        """
        index = self._level if timestep is None else self._index(timestep)
        if index >= len(self.timesteps):
            return 1.0, 0.0
        return noise_level(self.scheduler, self.timesteps[index], index + self._begin)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """`clean` latents with `noise` at the level of `timestep` (default: that of the current latents)."""
        alpha, sigma = self.noise_level(timestep)
        return alpha * clean + sigma * noise

    def _edited(self, text: Text) -> Text:
        for technique in overriding(self.techniques, "conditioning"):
            changed = technique.conditioning(self, text)
            if isinstance(changed, Text):
                text = changed
            elif changed is not None:
                text = text.with_tokens(changed)
        return text

    def _complete(self, text: Text) -> Text:
        """A further text with what this call adds to its own texts (sizes, reference images)."""
        missing = {name: value for name, value in self.text.extra.items() if name not in text.extra}
        if not missing or len(text) != len(self.text):
            return text
        return replace(text, extra={**text.extra, **missing})

    def _forward(
        self, latents: torch.Tensor, branches: dict[str, Text], timestep: Any, last: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The denoiser's predictions for all branches, in one batch. last: see `observe`."""
        level, scheduler = self._at(timestep)
        current = self.timesteps[level]
        if self.adapter.rescaled_input and hasattr(scheduler, "scale_model_input"):
            latents = scheduler.scale_model_input(latents, current)
        if len(branches) > 1:
            latents = torch.cat([latents] * len(branches))
        text = self._join(list(branches.values()))

        def call() -> torch.Tensor:
            return self.adapter.predict(self, latents, current, text)

        watching = overriding(self.techniques, "attention")
        budget = getattr(self.bridge, "activation_budget", None)
        with ExitStack() as stack:
            if budget is not None and torch.is_grad_enabled():
                stack.enter_context(within(self.adapter.denoiser, budget))
            for technique in overriding(self.techniques, "around"):
                stack.enter_context(technique.around(self))
            if not watching:
                output = call()
            else:
                if self._layout is None or self._compiled is None:
                    self._layout = self.adapter.layout(self)
                    self._compiled = _is_compiled(self.adapter.denoiser)
                length = text.tokens.shape[1]
                output = observe(
                    call, self, self._layout, watching, list(branches), length, self._compiled, self._places, last
                )
        return dict(zip(branches, output.chunk(len(branches)), strict=True))

    def _join(self, texts: list[Text]) -> Text:
        """All branches in one text; joined once while they stay the same."""
        known = self._joined[0]
        if len(known) != len(texts) or any(a is not b for a, b in zip(known, texts, strict=True)):
            self._joined = (texts, Text.cat(texts))
        return self._joined[1]

    def _at(self, timestep: Any) -> tuple[int, Any]:
        """Index of the timestep to predict at, and a scheduler that stands there."""
        if timestep is None and self._level == len(self.timesteps):
            raise ShowtellError("after the last step the latents are clean: there is nothing left to predict.")
        level = self._level if timestep is None else self._index(timestep)
        stands = getattr(self.scheduler, "_step_index", level + self._begin)
        if stands == level + self._begin or (stands is None and level == 0):
            return level, self.scheduler
        # Schedulers count steps, and some scale their input by where they stand: look from a copy that
        # stands there.
        scheduler = copy.copy(self.scheduler)
        scheduler._step_index = level + self._begin
        return level, scheduler

    @property
    def _begin(self) -> int:
        """Where in the scheduler's schedule this run's first timestep lies."""
        return getattr(self.scheduler, "_begin_index", None) or 0

    def _index(self, timestep: Any) -> int:
        value = float(timestep)
        return int((self.timesteps.double().cpu() - value).abs().argmin())


def denoise(run: DenoisingRun, latents: torch.Tensor) -> torch.Tensor:
    """From the starting noise to clean latents, with every technique's hooks. (n, ...) in and out."""
    run.step = run._level = 0
    run.latents = latents
    run.latents = apply_hooks(run, "start", latents)
    for step in range(run.steps):
        run.step = run._level = step
        run.latents = apply_hooks(run, "before", run.latents)
        prediction = run.predict(run.latents)
        run.latents = run.adapter.advance(run, prediction, run.latents)
        run._level = step + 1
        run.latents = apply_hooks(run, "latents", run.latents)
    return run.latents


def noise_level(scheduler: Any, timestep: torch.Tensor, index: int) -> tuple[float, float]:
    """(alpha, sigma) of latents = alpha * clean + sigma * noise in the scheduler's own convention.

    index: of `timestep` in the scheduler's schedule.
    """
    if hasattr(scheduler, "sigmas"):
        sigma = scheduler.sigmas[index]
        if _is_flow(scheduler):
            return 1 - float(sigma), float(sigma)
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
            return float(alpha), float(sigma)
        return 1.0, float(sigma)
    product = float(scheduler.alphas_cumprod[int(timestep)])
    return product**0.5, (1 - product) ** 0.5


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas", False))
