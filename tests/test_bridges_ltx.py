"""LTX-Video: text to clips, equal to the pipeline."""

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


def pipeline(conditioned: bool = False) -> Any:
    t5 = tiny.t5_tokenizer()
    return diffusers.LTXPipeline(
        tokenizer=t5,
        text_encoder=tiny.t5_text(t5),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
            timestep_conditioning=conditioned, patch_size=2, patch_size_t=1,
        ).eval(),
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
            num_layers=2, caption_channels=32,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def conditioned() -> Any:
    return pipeline(conditioned=True)


class TestLTXVideo(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {"max_sequence_length": 16, "num_frames": 5}
    schedulers = [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, use_karras_sigmas=True),
    ]
    grids = {(2, 4, 4)}
    text = 16
    video = True

    @pytest.mark.parametrize("more", [{"guidance_rescale": 0.7}, {"frame_rate": 8}])
    def test_further_keywords(self, more: dict[str, Any]) -> None:
        expected = self.theirs(THREE, **more)
        assert np.abs(self.ours(THREE, **more) - expected).max() <= 1e-4
        assert np.abs(self.theirs(THREE) - expected).max() > 1e-5, "the keyword must matter"

    def test_packed_latents_and_other_shapes(self) -> None:
        noise = torch.randn(1, 8, 2, 8, 4, generator=torch.Generator().manual_seed(3))
        more = {"height": 64, "width": 32}
        packed = self.pipeline._pack_latents(noise)
        expected = self.theirs(ONE, latents=packed, **more)
        assert np.abs(self.ours(ONE, latents=packed, **more) - expected).max() <= 1e-4
        assert np.abs(self.ours(ONE, latents=noise, **more) - expected).max() <= 1e-4


class Conditioned(TestLTXVideo):
    maker = staticmethod(conditioned)
    keywords = {"max_sequence_length": 16, "num_frames": 5, "decode_timestep": 0.05, "decode_noise_scale": 0.1}


def test_decoder_that_denoises() -> None:
    family = Conditioned()
    family.test_equal_to_the_pipeline()
    more = {"decode_timestep": 0.3, "decode_noise_scale": None}
    assert np.abs(family.ours(THREE, **more) - family.theirs(THREE, **more)).max() <= 1e-4
    assert np.abs(family.ours(THREE, **more) - family.ours(THREE)).max() > 1e-4


def test_frames_that_cannot_be() -> None:
    with pytest.raises(ShowtellError, match=r"num_frames=6: .* the nearest is 5"):
        showtell.load(shared(pipeline)).animate("a cat", num_frames=6)
