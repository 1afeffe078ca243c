"""Sana: equal to its pipeline, with the instruction's tokens kept apart from the prompt's words."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
import transformers

import showtell
import tiny
from bridge_family import ONE, FamilyTests, fresh


def gemma_text(tokenizer: Any, width: int = 32) -> Any:
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=2, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return transformers.Gemma2Model(config).eval()


def pipeline() -> Any:
    tokenizer = tiny.gemma_tokenizer()
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=2,
            encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()),
            downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.41407,
        ).eval(),
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
            attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=32, sample_size=32,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


class TestSana(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {"max_sequence_length": 16, "use_resolution_binning": False, "complex_human_instruction": None}
    schedulers = [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
        lambda: diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        lambda: diffusers.DDIMScheduler(),
    ]
    grids = {(4, 4)}
    text = 16
    one_negative = True


class TestSanaWithInstruction(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {
        "max_sequence_length": 16,
        "use_resolution_binning": False,
        "complex_human_instruction": ["the photo of a big cat", "and the painting: "],
    }
    schedulers = [lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)]
    grids = {(4, 4)}
    text = 16
    one_negative = True

    def test_the_instruction_matters(self) -> None:
        plain = self.ours(ONE, complex_human_instruction=None)
        assert np.abs(self.ours(ONE) - plain).max() > 1e-4


def test_at_the_trained_sizes_with_the_pipeline_s_own_instruction() -> None:
    made = fresh(pipeline)
    made.transformer.register_to_config(sample_size=16)
    family = TestSana()
    call = {"use_resolution_binning": True, "height": 96, "width": 192, "num_inference_steps": 1}
    call = {**family.call(**call), "max_sequence_length": 300}
    del call["complex_human_instruction"]
    expected = made(ONE, generator=torch.Generator().manual_seed(5), **call).images
    got = showtell.load(made).generate(ONE, generator=torch.Generator().manual_seed(5), **call)
    assert expected.shape == (1, 96, 192, 3)
    assert np.abs(np.stack(got) - expected).max() <= 1e-4


def test_capitals_are_read_as_the_pipeline_reads_them() -> None:
    bridge: Any = showtell.load(fresh(pipeline))
    options = {"max_sequence_length": 16, "complex_human_instruction": None}
    small, large = bridge.words("a red ring", **options), bridge.words("A RED Ring", **options)
    assert [word.positions for word in large] == [word.positions for word in small]
