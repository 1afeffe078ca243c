"""CogVideoX: text to clips, equal to the pipeline."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
import tiny
from bridge_family import ONE, THREE, FamilyTests, shared
from showtell.errors import ShowtellError


def pipeline(**more: Any) -> Any:
    t5 = tiny.t5_tokenizer()
    return diffusers.CogVideoXPipeline(
        tokenizer=t5,
        text_encoder=tiny.t5_text(t5),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            temporal_compression_ratio=4,
        ).eval(),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
            text_embed_dim=32, num_layers=2, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=16, **more,
        ).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # fmt: skip


def rotary() -> Any:
    """As CogVideoX 1.5 is: rotary positions, patches in time, which three latent frames do not fill."""
    return pipeline(use_rotary_positional_embeddings=True, patch_size_t=2)


class TestCogVideoX(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {"max_sequence_length": 16, "num_frames": 5}
    schedulers = [
        lambda: diffusers.CogVideoXDPMScheduler(),
        lambda: diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
        lambda: diffusers.DPMSolverMultistepScheduler(),
    ]
    grids = {(2, 2, 2)}
    text = 16
    video = True

    def test_dynamic_guidance(self) -> None:
        expected = self.theirs(THREE, use_dynamic_cfg=True)
        assert np.abs(self.ours(THREE, use_dynamic_cfg=True) - expected).max() <= 1e-4
        assert np.abs(self.theirs(THREE) - expected).max() > 1e-4

    def test_latents_in_both_orders(self) -> None:
        noise = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(3))
        expected = self.theirs(ONE, latents=noise.transpose(1, 2))
        assert np.abs(self.ours(ONE, latents=noise.transpose(1, 2)) - expected).max() <= 1e-4
        assert np.abs(self.ours(ONE, latents=noise) - expected).max() <= 1e-4


class Rotary(TestCogVideoX):
    maker = staticmethod(rotary)
    keywords = {"max_sequence_length": 16, "num_frames": 9}


def test_patches_in_time() -> None:
    family = Rotary()
    family.test_equal_to_the_pipeline()
    family.test_every_attention_call_is_placed()
    bridge: Any = showtell.load(family.pipeline)
    latents = bridge.animate("a cat", **family.call(output_type="latent"))[0]
    assert latents.shape == (4, 4, 4, 4), "three latent frames and one that fills the last patch"


def test_frames_that_cannot_be() -> None:
    with pytest.raises(ShowtellError, match=r"num_frames=8: .* the nearest is 9"):
        showtell.load(shared(pipeline)).animate("a cat", num_frames=8)
