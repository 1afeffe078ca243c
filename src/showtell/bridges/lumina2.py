"""Lumina-Image 2.0: joint attention over a Gemma text and, right behind its last word, the image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.lumina2.pipeline_lumina2 import calculate_shift
from torch.overrides import TorchFunctionMode

from .adapter import Adapter
from .base import Run, Text
from .layout import Place, TokenLayout, attention_calls
from .words import Piece


class _PackedLayout(TokenLayout):
    """Joint sequences hold as many text tokens as the longest text of the batch has, not the padded ones."""

    def place(self, depth: int, queries: int, keys: int, text: int, step: int, steps: int) -> Place | None:
        return super().place(depth, queries, keys, keys - next(iter(self.grids)), step, steps)


class _Aligned(TorchFunctionMode):
    """Moves the image tokens of joint attention to the end of the sequence, for texts of different lengths.

    The model puts each row's image right behind its text and the padding last, so the same position is text
    in one row and image in another. Attention does not mind the order of its tokens; whoever reads its maps
    does.
    """

    def __init__(self, lengths: torch.Tensor, image: int) -> None:
        super().__init__()
        longest = int(lengths.max())
        place = torch.arange(longest + image, device=lengths.device)
        lengths = lengths[:, None]
        padding = torch.where(place < longest, place + image, place - longest + lengths)
        self.order = torch.where(place < lengths, place, padding)
        self.back = self.order.argsort(dim=1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].shape[-2] != self.order.shape[1]:
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is None or mask.shape[-1] != self.order.shape[1]:
            return func(*args, **kwargs)
        query, key, value = (self._ordered(tensor, self.order) for tensor in args)
        columns = self.order[:, None, None]
        kwargs = {**kwargs, "attn_mask": mask.gather(-1, columns)}
        return self._ordered(func(query, key, value, **kwargs), self.back)

    def _ordered(self, tensor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return tensor.gather(2, order[:, None, :, None].expand_as(tensor))


class Lumina2(Adapter):
    steps = 30
    scale = 4.0
    rescaled_input = False
    zero_begin = True
    text_options = frozenset({"max_sequence_length", "system_prompt"})
    options = text_options | {"sigmas", "cfg_trunc_ratio", "cfg_normalization"}

    @property
    def multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor) * 2

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        own = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return height or own, width or own

    def _template(self, **options: Any) -> str:
        return (options.get("system_prompt") or self.pipeline.system_prompt) + " <Prompt Start> {}"

    def pieces(self, **options: Any) -> list[Piece]:
        limit = options.get("max_sequence_length") or 256
        return [Piece(self.pipeline.tokenizer, limit, template=self._template(**options))]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        # The pipeline reads negative prompts without the system prompt.
        before = "" if negative else self._template(**options).removesuffix("{}")
        tokens, mask = self.pipeline._get_gemma_prompt_embeds(
            [before + (prompt or "") for prompt in prompts],
            device=self.device,
            max_sequence_length=options.get("max_sequence_length") or 256,
        )
        return Text(tokens, mask=mask)

    def timestep_kwargs(self, run: Run, steps: int) -> dict[str, Any]:
        config = run.scheduler.config
        sigmas = run.options.get("sigmas")
        shift = calculate_shift(
            # As the pipeline has it: the channels of the latents, not their tokens.
            self.channels,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return {"sigmas": np.linspace(1.0, 1 / steps, steps) if sigmas is None else sigmas, "mu": shift}

    def branches(self, run: Run) -> dict[str, Text]:
        branches = super().branches(run)
        last = (run.step + 1) / run.steps > run.options.get("cfg_trunc_ratio", 1.0)
        return {"text": branches["text"]} if last else branches

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        guided = super().guide(run, outputs)
        if "negative" not in outputs or run.guidance == 1 or not run.options.get("cfg_normalization", True):
            return guided
        wanted, found = (torch.norm(one, dim=-1, keepdim=True) for one in (outputs["text"], guided))
        return guided * (wanted / found)

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        assert text.mask is not None
        lengths = text.mask.sum(dim=1)
        patch = self.denoiser.config.patch_size
        image = (latents.shape[-2] // patch) * (latents.shape[-1] // patch)
        uneven = bool((lengths != lengths[0]).any())
        with _Aligned(lengths, image) if uneven else nullcontext():
            velocity = self.denoiser(
                hidden_states=latents,
                timestep=(1 - timestep / run.scheduler.config.num_train_timesteps).expand(len(latents)),
                encoder_hidden_states=text.tokens,
                encoder_attention_mask=text.mask,
                return_dict=False,
            )[0]
        # The network's time runs from noise to image.
        return -velocity

    def layout(self, run: Run) -> TokenLayout:
        def kind(name: str, module: Any) -> str:
            if name.startswith("context_refiner"):
                return "other"
            return "self" if name.startswith("noise_refiner") else "joint"

        height, width = self.grid(run, self.denoiser.config.patch_size)
        calls = attention_calls(self.denoiser, kind, ("context_refiner", "noise_refiner", "layers"))
        return _PackedLayout(calls, {height * width: (height, width)}, text_first=True)
