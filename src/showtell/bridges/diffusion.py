"""The bridge over every diffusion pipeline: an adapter for what is the family's own, the one loop for the
rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ShowtellError, UnsupportedError
from ..files import share
from .adapter import Adapter
from .base import Bridge, Technique, Text, apply_hooks, as_list, spread
from .cache import TextCache, fingerprint
from .loop import DenoisingRun, denoise
from .together import check_fits
from .words import Words, find_words, warn_of_cut

OUTPUTS = ("pil", "np", "pt", "latent")
_OWN_OPTIONS = ("batch_size", "num_images_per_prompt", "progress", "scheduler")


class DiffusionBridge(Bridge):
    """A diffusers pipeline as a bridge. `pipeline` is the library's own object: schedulers, LoRA,
    offloading, quantisation
    and compilation are set on it as usual.
    """

    def __init__(self, adapter: Adapter, name: str, can: frozenset[str]) -> None:
        self.adapter = adapter
        self.pipeline = adapter.pipeline
        self.name = name
        self.can = can
        self._texts = TextCache()
        self.activation_budget: int | None = None
        """Bytes that autograd may keep of one evaluation before blocks are computed again; None for no limit. It is
        for techniques that take gradients through the denoiser; see `showtell.bridges.memory`."""

    def generate(
        self,
        prompts: str | list[str],
        *,
        using: Sequence[Technique] = (),
        seed: int | list[int] = 0,
        generator: Any = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        **more: Any,
    ) -> list[Any]:
        """See `Bridge.generate`. Further keywords: the pipeline's own (`adapter.options`), and

        batch_size: at most so many samples at once (default: all). num_images_per_prompt: samples per
            prompt, neighbours.
        scheduler: a diffusers scheduler instead of the pipeline's. progress: whether to show the pipeline's
            progress bar.
        Raises ShowtellError for sizes, latents or keywords the model cannot take, and where the latents
        become NaN.
        """
        self._offers("generate")
        settings = _Settings(
            list(using), seed, generator, negative_prompt, num_inference_steps, guidance_scale, height, width,
            num_frames, latents, output_type,
        )  # fmt: skip
        return self._sample(prompts, settings, more)

    def edit(self, images: Any, instructions: str | list[str], *, seed: int | list[int] = 0, **more: Any) -> list[Any]:
        """See `Bridge.edit`. Takes the keywords of `generate`."""
        self._offers("edit")
        pictures = _image_list(images)
        texts = as_list(instructions)
        count = max(len(pictures), len(texts))
        more["image"] = pictures if len(pictures) == count else pictures * count
        texts = texts if len(texts) == count else texts * count
        return self._sample(texts, _settings(more, seed), more)

    def animate(
        self, prompts: str | list[str], images: Any = None, *, seed: int | list[int] = 0, **more: Any
    ) -> list[Any]:
        """See `Bridge.animate`. Takes the keywords of `generate`; num_frames: frames of each clip."""
        self._offers("animate")
        if images is not None:
            more["image"] = _image_list(images)
        return self._sample(prompts, _settings(more, seed), more)

    @torch.no_grad()
    def begin(self, prompts: str | list[str], *, seed: int | list[int] = 0, **more: Any) -> DenoisingRun:
        """The run that `generate` or `animate` would make of these keywords, before its first step: `run.text`,
        `run.timesteps`, `run.latents` (the starting noise), and `run.evaluate` and `run.predict` for any latents.

        For those who ask the denoiser something without sampling: losses, scores, inversions.
        """
        if more.get("batch_size"):
            raise ShowtellError("batch_size: a run is one batch; leave it out.")
        settings = _settings(more, seed)
        [(run, latents)] = self._runs(prompts, settings, more)
        run.latents, _ = self._begin(run, settings.steps or self.adapter.steps, latents)
        return run

    def _sample(self, prompts: Any, settings: _Settings, more: dict[str, Any]) -> list[Any]:
        steps = settings.steps or self.adapter.steps
        runs = self._runs(prompts, settings, more)
        return [output for run, latents in runs for output in self._run(run, steps, latents, settings.output_type)]

    def _runs(
        self, prompts: Any, settings: _Settings, more: dict[str, Any]
    ) -> Iterator[tuple[DenoisingRun, torch.Tensor | None]]:
        """A run for every batch, with the latents given for it."""
        copies = more.pop("num_images_per_prompt", None) or 1
        size = more.pop("batch_size", None)
        texts = _texts(prompts, "prompts")
        each = self._per_sample(more, len(texts), copies)
        self._check(more, settings)
        negatives = _repeat(None if settings.negative is None else _negatives(settings.negative, len(texts)), copies)
        texts = [text for text in texts for _ in range(copies)]
        generators = _generators(settings.seed, settings.generator, len(texts))
        size = size or len(texts)
        if size < len(texts) and isinstance(generators, torch.Generator):
            raise ShowtellError("one generator for several batches would depend on batch_size; give seed, or one each.")
        check_fits(self, settings.using, denoises=True)
        for first in range(0, len(texts), size):
            part = slice(first, first + size)
            run = DenoisingRun(self, self.adapter, texts[part], settings.using)
            run.negative_prompts = None if negatives is None else negatives[part]
            run.generators = generators[part] if isinstance(generators, list) else generators
            run.guidance = float(self.adapter.scale if settings.scale is None else settings.scale)
            run.options = {**more, **{name: values[part] for name, values in each.items()}}
            run.height, run.width = self._size(settings.height, settings.width, run.options)
            run.num_frames = self.adapter.frames(settings.frames)
            latents = None if settings.latents is None else settings.latents[part]
            yield run, latents

    def _per_sample(self, more: dict[str, Any], count: int, copies: int) -> dict[str, list[Any]]:
        """The options that come one per sample (images, masks), repeated and sliced with the prompts."""
        names = [name for name in self.adapter.per_sample & self.adapter.options if more.get(name) is not None]
        lists = {name: _image_list(more[name]) for name in names}
        return {
            name: [
                value for value in spread(values if len(values) > 1 else values[0], count, name) for _ in range(copies)
            ]
            for name, values in lists.items()
        }

    def _begin(self, run: DenoisingRun, steps: int, latents: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        """(the starting latents, whether to show progress) of a run that is made ready to denoise."""
        scheduler = run.options.pop("scheduler", None)
        progress = run.options.pop("progress", False)
        run.scheduler = copy.deepcopy(self.pipeline.scheduler if scheduler is None else scheduler)
        run.prompts = apply_hooks(run, "prompt", run.prompts)
        run.text = self.encode(run.prompts, **run.options)
        if self.adapter.guided(run) or any(technique.unconditional for technique in run.techniques):
            negatives: Sequence[str | None] = run.negative_prompts or [None] * len(run.prompts)
            run.negative = self._encode(negatives, True, run.options)
        self.adapter.set_timesteps(run, steps)
        run.steps = len(run.timesteps)
        start = self.adapter.start(run, latents)
        self.adapter.condition(run)
        return start, progress

    @torch.no_grad()
    def _run(self, run: DenoisingRun, steps: int, latents: torch.Tensor | None, output_type: str) -> list[Any]:
        start, progress = self._begin(run, steps, latents)
        if progress:
            with self.pipeline.progress_bar(total=run.steps) as bar:
                run.techniques.append(_Progress(bar))
                result = denoise(run, start)
        else:
            result = denoise(run, start)
        if not bool(torch.isfinite(result).all()):
            raise ShowtellError(
                "the latents became NaN or infinite while sampling; use float32 or bfloat16 weights, "
                "a smaller guidance_scale, or check the techniques in use."
            )
        outputs = list(result) if output_type == "latent" else list(self.adapter.decode(run, result, output_type))
        self.pipeline.maybe_free_model_hooks()
        return apply_hooks(run, "finish", outputs)

    def encode(self, prompts: str | list[str], **options: Any) -> Text:
        """Prompts as the denoiser takes them, one row each; encodings are kept for repeated prompts."""
        return self._encode(_texts(prompts, "prompts"), False, options)

    def _encode(self, prompts: Sequence[str | None], negative: bool, options: dict[str, Any]) -> Text:
        wanted = {name: value for name, value in options.items() if name in self.adapter.text_options}
        modules = [getattr(self.pipeline, name, None) for name in self.adapter.text_encoders]
        tokenizers = [value for name, value in self.pipeline.components.items() if name.startswith("tokenizer")]
        weights = fingerprint([m for m in modules if m is not None], [t for t in tokenizers if t is not None])
        extra = tuple(sorted((name, repr(value)) for name, value in wanted.items()))

        def encode(missing: list[Any]) -> list[Text]:
            texts = [key[0] for key in missing]
            for text in texts:
                if text and not negative:
                    warn_of_cut(text, self.adapter.pieces(**wanted))
            encoded = self.adapter.encode(texts, negative, **wanted)
            return [encoded.rows(slice(i, i + 1)) for i in range(len(texts))]

        with torch.no_grad():
            rows = self._texts.get([(prompt, negative, extra) for prompt in prompts], weights, encode)
        text = Text.cat(rows)
        return Text(text.tokens, text.pooled, text.mask, text.extra, lambda: self._encode([""], False, options).tokens)

    def words(self, prompt: str, **options: Any) -> Words:
        """Which text tokens stand for which word; `options` as given to `generate` (such as
        max_sequence_length).
        """
        return find_words(prompt, self.adapter.pieces(**options))

    def to_latents(self, images: Any, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """Latents of images (the mode of the VAE's distribution), (n, channels, height, width)."""
        self._offers("invert")
        height, width = self._size(height, width)
        pixels = self.pipeline.image_processor.preprocess(_image_list(images), height=height, width=width)
        vae = self.pipeline.vae
        with torch.no_grad():
            return self.adapter.latents_of(pixels.to(device=self.adapter.device, dtype=vae.dtype))

    def to_images(self, latents: torch.Tensor, output_type: str = "pil") -> list[Any]:
        """Images of latents (n, channels, height, width)."""
        self._offers("invert")
        run = DenoisingRun(self, self.adapter, [""] * len(latents), ())
        factor = self.pipeline.vae_scale_factor
        run.height, run.width = latents.shape[-2] * factor, latents.shape[-1] * factor
        with torch.no_grad():
            return list(self.adapter.decode(run, latents, output_type))

    def clear_cache(self) -> None:
        """Forgets encoded prompts; needed only after changing a text encoder in a way torch cannot notice."""
        self._texts.clear()

    def save(self, directory: str | Path) -> None:
        self.pipeline.save_pretrained(directory, safe_serialization=True)
        share(directory)

    def _offers(self, ability: str) -> None:
        if ability not in self.can:
            raise self.unsupported(ability)

    def _size(self, height: int | None, width: int | None, options: dict[str, Any] | None = None) -> tuple[int, int]:
        height, width = self.adapter.size(height, width, **(options or {}))
        check_size(height, width, self.adapter.multiple)
        return int(height), int(width)

    def _check(self, more: dict[str, Any], settings: _Settings) -> None:
        unknown = sorted(set(more) - self.adapter.options - set(_OWN_OPTIONS))
        if unknown:
            known = ", ".join(sorted(self.adapter.options | set(_OWN_OPTIONS)))
            raise UnsupportedError(f"{self.name} does not take {', '.join(unknown)}; further keywords: {known}.")
        if settings.output_type not in OUTPUTS:
            raise ShowtellError(f"output_type={settings.output_type!r}: use one of {', '.join(OUTPUTS)}.")
        if settings.steps is not None and settings.steps < 1:
            raise ShowtellError(f"num_inference_steps={settings.steps}: use 1 or more.")
        check_scale(settings.scale)


@dataclass(frozen=True)
class _Settings:
    """The keywords that every diffusion family takes."""

    using: list[Technique]
    seed: int | list[int] = 0
    generator: Any = None
    negative: str | list[str] | None = None
    steps: int | None = None
    scale: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    latents: torch.Tensor | None = None
    output_type: str = "pil"


def _settings(more: dict[str, Any], seed: int | list[int]) -> _Settings:
    """Takes the keywords of `generate` out of `more`."""
    names = {
        "generator": "generator", "negative_prompt": "negative", "num_inference_steps": "steps",
        "guidance_scale": "scale", "height": "height", "width": "width", "num_frames": "frames",
        "latents": "latents", "output_type": "output_type",
    }  # fmt: skip
    given = {field: more.pop(name) for name, field in names.items() if name in more}
    return _Settings(list(more.pop("using", ())), seed, **given)


class _Progress(Technique):
    """Moves the progress bar of one call."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def latents(self, run: Any, latents: torch.Tensor) -> None:
        self.bar.update()


def check_scale(scale: float | None) -> None:
    """Raises ShowtellError for a guidance scale that is no finite number."""
    if scale is not None and not math.isfinite(scale):
        raise ShowtellError(f"guidance_scale={scale}: use a finite number, 1 for none.")


def check_size(height: int, width: int, multiple: int) -> None:
    """Raises ShowtellError, with the nearest size, where a side is no multiple."""
    if height % multiple or width % multiple or height <= 0 or width <= 0:
        near = tuple(max(multiple, round(side / multiple) * multiple) for side in (height, width))
        raise ShowtellError(
            f"height and width must be multiples of {multiple} for this model, got {height}x{width}; "
            f"the nearest are {near[0]}x{near[1]}."
        )


def _texts(prompts: Any, what: str) -> list[str]:
    texts = as_list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ShowtellError(f"{what} must be a string or a non-empty list of strings.")
    return texts


def _negatives(negative: Any, count: int) -> list[str]:
    return _texts(spread(negative, count, "negative_prompt"), "negative_prompt")


def _generators(seed: int | list[int], generator: Any, count: int) -> Any:
    """What the scheduler and the noise draw from: the given generator(s), or one per sample seeded by
    (seed, index).
    """
    if generator is not None:
        return spread(generator, count, "generator") if isinstance(generator, (list, tuple)) else generator
    if isinstance(seed, (list, tuple)):
        pairs = [(one, 0) for one in spread(seed, count, "seed")]
    else:
        pairs = [(seed, index) for index in range(count)]
    return [torch.Generator().manual_seed(_mixed(*pair)) for pair in pairs]


def _mixed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([abs(int(seed)), index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _image_list(images: Any) -> list[Any]:
    """One image or many, PIL, (n, height, width, 3) arrays or (n, 3, height, width) tensors, as a list of
    images.
    """
    if isinstance(images, (torch.Tensor, np.ndarray)):
        return list(images) if images.ndim > 3 else [images]
    if not as_list(images):
        raise ShowtellError("no images given; give one or a list.")
    return as_list(images)


def _repeat(values: list[Any] | None, copies: int) -> list[Any] | None:
    return None if values is None else [value for value in values for _ in range(copies)]
