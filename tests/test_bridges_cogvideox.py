"""CogVideoX: text to clips, equal to the pipeline."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
import tiny
from bridge_family import ONE, THREE, FamilyTests, fresh, shared
from showtell.errors import ShowtellError
from test_bridges_flux_kontext import pictures


def pipeline(kind: Any = diffusers.CogVideoXPipeline, channels: int = 4, **more: Any) -> Any:
    t5 = tiny.t5_tokenizer()
    return kind(
        tokenizer=t5,
        text_encoder=tiny.t5_text(t5),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            temporal_compression_ratio=4,
        ).eval(),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4, time_embed_dim=8,
            text_embed_dim=32, num_layers=2, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=16, **more,
        ).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # fmt: skip


def rotary() -> Any:
    """As CogVideoX 1.5 is: rotary positions, patches in time, which three latent frames do not fill."""
    return pipeline(use_rotary_positional_embeddings=True, patch_size_t=2)


def image_to_video(**more: Any) -> Any:
    return pipeline(diffusers.CogVideoXImageToVideoPipeline, 8, **more)


def image_to_video_rotary() -> Any:
    """As the 1.5 model is, which is also told how strongly to move."""
    return image_to_video(use_rotary_positional_embeddings=True, patch_size_t=2, ofs_embed_dim=8)


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


class TestImageToVideo(FamilyTests):
    maker = staticmethod(image_to_video)
    keywords = {"max_sequence_length": 16, "num_frames": 5}
    schedulers = TestCogVideoX.schedulers
    grids = {(2, 2, 2)}
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


class RotaryImageToVideo(TestImageToVideo):
    maker = staticmethod(image_to_video_rotary)
    keywords = {"max_sequence_length": 16, "num_frames": 9}


def test_image_to_video_of_the_later_model() -> None:
    family = RotaryImageToVideo()
    family.test_equal_to_the_pipeline()
    family.test_every_attention_call_is_placed()


def test_image_to_video_that_divides_where_it_should_multiply() -> None:
    family = TestImageToVideo()
    made = fresh(image_to_video)
    made.vae.register_to_config(invert_scale_latents=True)
    expected = family.theirs(ONE, made)
    assert np.abs(family.ours(ONE, made) - expected).max() <= 1e-4
    assert np.abs(family.theirs(ONE) - expected).max() > 1e-4


def test_an_image_is_needed() -> None:
    with pytest.raises(ShowtellError, match="animates an image"):
        showtell.load(shared(image_to_video)).animate("a cat", num_frames=5, max_sequence_length=16)
