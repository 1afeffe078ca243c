"""Lumina-Image 2.0: equal to its pipeline, also where texts of different lengths share a batch."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import tiny
from bridge_family import ONE, THREE, FamilyTests
from showtell.bridges.lumina2 import _Aligned
from test_bridges_sana import gemma_text


def pipeline() -> Any:
    tokenizer = tiny.gemma_tokenizer()
    return diffusers.Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, shift_factor=0.1,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval(),
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2),
            axes_lens=(64, 32, 32), cap_feat_dim=32,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=6.0),
    )  # fmt: skip


class TestLumina2(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {"max_sequence_length": 40, "height": 64, "width": 64, "system_prompt": "the photo"}
    schedulers = [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, use_karras_sigmas=True),
    ]
    grids = {(4, 4)}

    @pytest.mark.parametrize(
        "more", [{"cfg_trunc_ratio": 0.4}, {"cfg_normalization": False}, {"sigmas": [1.0, 0.5, 0.2]}]
    )
    def test_further_keywords(self, more: dict[str, Any]) -> None:
        expected = self.theirs(THREE, **more)
        assert np.abs(self.ours(THREE, **more) - expected).max() <= 1e-4
        assert np.abs(self.theirs(THREE) - expected).max() > 1e-4, "the keyword must matter"

    def test_not_square(self) -> None:
        more = {"height": 96, "width": 64}
        assert np.abs(self.ours(ONE, **more) - self.theirs(ONE, **more)).max() <= 1e-4


def test_alignment_puts_text_first_and_the_image_last() -> None:
    lengths, image = torch.tensor([2, 4]), 3
    rows = [["t0", "t1", "i0", "i1", "i2", "", ""], ["t0", "t1", "t2", "t3", "i0", "i1", "i2"]]
    aligned = _Aligned(lengths, image)
    moved = [[row[i] for i in order] for row, order in zip(rows, aligned.order.tolist(), strict=True)]
    assert moved == [["t0", "t1", "", "", "i0", "i1", "i2"], rows[1]]
    back = [[row[i] for i in order] for row, order in zip(moved, aligned.back.tolist(), strict=True)]
    assert back == rows
