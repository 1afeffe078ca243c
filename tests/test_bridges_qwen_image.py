"""Qwen-Image: equal to its pipeline, also where texts of different lengths share a batch."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
import transformers

import showtell
import tiny
from bridge_family import ONE, THREE, FamilyTests, shared


def qwen_text(tokenizer: Any, width: int = 32) -> Any:
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 1200, "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def video_vae(kind: Any, channels: int = 4) -> Any:
    """A tiny causal video autoencoder: factor 8 in space, 4 in time."""
    return kind(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0][:channels], latents_std=[1.5, 2.0, 0.8, 1.1][:channels],
    ).eval()  # fmt: skip


def pipeline() -> Any:
    tokenizer = tiny.qwen_tokenizer()
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=video_vae(diffusers.AutoencoderKLQwenImage),
        text_encoder=qwen_text(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
        ).eval(),
    )  # fmt: skip


class TestQwenImage(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {
        "height": 64,
        "width": 64,
        "max_sequence_length": 300,
        "true_cfg_scale": 3.0,
        "negative_prompt": "big",
        "guidance_scale": None,
    }
    schedulers = [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, use_karras_sigmas=True),
    ]
    grids = {(4, 4)}
    scale = "true_cfg_scale"

    def theirs(self, prompts: list[str], pipeline: Any = None, seed: int = 5, **more: Any) -> Any:
        # The pipeline wants as many negative prompts as prompts.
        given = more.pop("negative_prompt", "big")
        if isinstance(given, str):
            given = [given] * len(prompts)
        return super().theirs(prompts, pipeline, seed, negative_prompt=given, **more)

    def test_without_a_negative_prompt_there_is_no_guidance(self) -> None:
        call = {**self.call(), "negative_prompt": None}
        expected = self.pipeline(THREE, generator=torch.Generator().manual_seed(5), **call).images
        assert np.abs(self.ours(THREE, negative_prompt=None) - expected).max() <= 1e-4
        assert np.abs(self.ours(THREE) - expected).max() > 1e-4

    def test_not_square_and_packed_latents(self) -> None:
        made = self.pipeline
        noise = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(3))
        packed = made._pack_latents(noise, 1, 4, 12, 8)
        more = {"height": 96, "width": 64}
        expected = self.theirs(ONE, latents=packed, **more)
        assert np.abs(self.ours(ONE, latents=packed, **more) - expected).max() <= 1e-4
        assert np.abs(self.ours(ONE, latents=noise, **more) - expected).max() <= 1e-4


def test_images_to_latents_and_back() -> None:
    bridge: Any = showtell.load(shared(pipeline))
    image = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    latents = bridge.to_latents(image, height=64, width=64)
    assert latents.shape == (1, 4, 8, 8)
    assert bridge.to_images(latents, output_type="np")[0].shape == (64, 64, 3)
    vae = bridge.pipeline.vae
    pixels = torch.tensor(image).permute(2, 0, 1)[None, :, None] * 2 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()[:, :, 0]
    assert (bridge.adapter.unscale(latents) - mode).abs().max() < 1e-5


def test_chinese_words() -> None:
    bridge: Any = showtell.load(shared(pipeline))
    words = bridge.words("红色的圆")
    assert [word.text for word in words] == list("红色的圆")
    assert all(len(word.positions) == 3 for word in words), "three bytes, three tokens"
