"""HunyuanDiT: a transformer whose cross-attention reads a Chinese-English CLIP text and a T5 text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit as library

from .adapter import Adapter
from .base import Run, Text
from .layout import TokenLayout, self_then_cross
from .stable_diffusion import rescaled
from .words import Piece

# Tokens of the two texts; fixed in the pipeline.
_FIRST, _SECOND = 77, 256


class HunyuanDiT(Adapter):
    steps = 50
    scale = 5.0
    text_encoders = ("text_encoder", "text_encoder_2")
    options = frozenset(
        {
            "eta",
            "guidance_rescale",
            "original_size",
            "target_size",
            "crops_coords_top_left",
            "use_resolution_binning",
        }
    )

    @property
    def multiple(self) -> int:
        return 16

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        own = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        height, width = height or own, width or own
        if options.get("use_resolution_binning", True):
            # As the pipeline does: the nearest size that the model was trained at.
            rounded = (height // 16 * 16, width // 16 * 16)
            if rounded in library.SUPPORTED_SHAPE:
                return rounded
            width, height = library.map_to_standard_shapes(rounded[1], rounded[0])
        return int(height), int(width)

    def pieces(self, **options: Any) -> list[Piece]:
        first = Piece(self.pipeline.tokenizer, _FIRST)
        return [first, Piece(self.pipeline.tokenizer_2, _SECOND, start=_FIRST)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        texts = [prompt or "" for prompt in prompts]
        both = [
            self.pipeline.encode_prompt(
                texts,
                self.device,
                self.denoiser.dtype,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                text_encoder_index=index,
            )
            for index, length in enumerate((_FIRST, _SECOND))
        ]
        tokens, masks = [output[0] for output in both], [output[2] for output in both]
        # One sequence, so that techniques see all of it; the narrower text is padded with zeros that
        # `predict` takes off again.
        widest = max(part.shape[-1] for part in tokens)
        padded = [F.pad(part, (0, widest - part.shape[-1])) for part in tokens]
        return Text(torch.cat(padded, dim=1), mask=torch.cat(masks, dim=1))

    def condition(self, run: Run) -> None:
        patch = self.denoiser.config.patch_size
        height, width = run.height // 8 // patch, run.width // 8 // patch
        crop = library.get_resize_crop_region_for_grid((height, width), 512 // 8 // patch)
        run.own["rotary"] = get_2d_rotary_pos_embed(
            self.denoiser.inner_dim // self.denoiser.num_heads,
            crop,
            (height, width),
            device=self.device,
            output_type="pt",
        )
        sizes = (
            run.options.get("original_size") or (1024, 1024),
            run.options.get("target_size") or (run.height, run.width),
            run.options.get("crops_coords_top_left") or (0, 0),
        )
        run.own["sizes"] = [value for pair in sizes for value in pair]

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        assert text.mask is not None
        rows, config = len(latents), self.denoiser.config
        prediction = self.denoiser(
            latents,
            timestep.expand(rows).to(latents.dtype),
            encoder_hidden_states=text.tokens[:, :_FIRST, : config.cross_attention_dim],
            text_embedding_mask=text.mask[:, :_FIRST],
            encoder_hidden_states_t5=text.tokens[:, _FIRST:, : config.cross_attention_dim_t5].contiguous(),
            text_embedding_mask_t5=text.mask[:, _FIRST:],
            image_meta_size=torch.tensor([run.own["sizes"]] * rows).to(text.tokens),
            style=torch.zeros(rows, dtype=torch.int64, device=latents.device),
            image_rotary_emb=run.own["rotary"],
            return_dict=False,
        )[0]
        # The second half of the channels is a learned variance that no scheduler uses.
        return prediction[:, : latents.shape[1]]

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return rescaled(self, run, super().guide(run, outputs), outputs["text"])

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        pixels = self.pipeline.vae.decode(self.unscale(latents), return_dict=False)[0]
        pixels, flagged = self.pipeline.run_safety_checker(pixels, self.device, latents.dtype)
        keep = [True] * len(pixels) if flagged is None else [not bad for bad in flagged]
        return self.pipeline.image_processor.postprocess(pixels, output_type=output_type, do_denormalize=keep)

    def layout(self, run: Run) -> TokenLayout:
        return self_then_cross(self.denoiser, self.grid(run, self.denoiser.config.patch_size))
