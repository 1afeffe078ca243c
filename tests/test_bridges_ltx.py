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
from test_bridges_flux_kontext import pictures


def pipeline(conditioned: bool = False, kind: Any = diffusers.LTXPipeline) -> Any:
    t5 = tiny.t5_tokenizer()
    return kind(
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


def image_to_video() -> Any:
    made = pipeline(kind=diffusers.LTXImageToVideoPipeline)
    # Not the neutral values of a fresh model, so that leaving them out shows.
    made.vae.latents_mean += torch.linspace(-0.2, 0.3, 8)
    made.vae.latents_std *= 0.7
    return made


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


class TestImageToVideo(FamilyTests):
    maker = staticmethod(image_to_video)
    keywords = {"max_sequence_length": 16, "num_frames": 5}
    schedulers = TestLTXVideo.schedulers
    grids = {(2, 4, 4)}
    text = 16
    video = True

    def inputs(self, count: int) -> dict[str, Any]:
        return {"image": pictures(count)}

    def ours(self, prompts: list[str], pipeline: Any = None, **more: Any) -> np.ndarray:
        bridge = showtell.load(pipeline or self.pipeline)
        if "seed" not in more and "generator" not in more:
            more["generator"] = torch.Generator().manual_seed(5)
        images = more.pop("image", pictures(len(prompts)))
        return np.stack(bridge.animate(prompts, images, **self.call(**more)))

    def test_every_sample_has_its_image(self) -> None:
        images = pictures(2)
        together = self.ours([ONE[0], ONE[0]], image=images, seed=[1, 1])
        assert np.abs(together[0] - together[1]).max() > 1e-3, "the image matters"
        for i in range(2):
            alone = self.ours(ONE, image=images[i], seed=[1])
            assert np.abs(alone[0] - together[i]).max() <= 1e-4

    def test_the_first_frame_stays(self) -> None:
        few, many = (self.ours(ONE, num_inference_steps=n, output_type="latent") for n in (1, 4))
        assert np.array_equal(few[:, :, 0], many[:, :, 0]) and np.abs(few - many).max() > 1e-2

    def test_given_latents_hold_the_first_frame(self) -> None:
        noise = torch.randn(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(3))
        packed = self.pipeline._pack_latents(noise)
        expected = self.theirs(ONE, latents=packed)
        assert np.abs(self.ours(ONE, latents=packed) - expected).max() <= 1e-4
        assert np.abs(self.ours(ONE, latents=noise) - expected).max() <= 1e-4

    def test_guidance_rescale(self) -> None:
        expected = self.theirs(THREE, guidance_rescale=0.7)
        assert np.abs(self.ours(THREE, guidance_rescale=0.7) - expected).max() <= 1e-4


def test_an_image_is_needed() -> None:
    with pytest.raises(ShowtellError, match="animates an image"):
        showtell.load(shared(image_to_video)).animate("a cat", num_frames=5, max_sequence_length=16)
