"""Wan: text and images to clips, equal to the pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

import showtell
import tiny
from bridge_family import ONE, THREE, FamilyTests, fresh, shared
from showtell.errors import ShowtellError
from test_bridges_attention import At
from test_bridges_flux_kontext import pictures
from test_bridges_qwen_image import video_vae

FLOW = [
    lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
]


def umt5_text(tokenizer: Any, width: int = 32) -> Any:
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return transformers.UMT5EncoderModel(config).eval()


def transformer(channels: int = 4, **more: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels,
        out_channels=4, text_dim=32, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, **more,
    ).eval()  # fmt: skip


def text_to_video(**more: Any) -> Any:
    t5 = tiny.t5_tokenizer()
    return diffusers.WanPipeline(
        tokenizer=t5,
        text_encoder=umt5_text(t5),
        vae=video_vae(diffusers.AutoencoderKLWan),
        transformer=transformer(),
        scheduler=FLOW[1](),
        **more,
    )


def two_models() -> Any:
    return text_to_video(transformer_2=transformer(), boundary_ratio=0.875)


def expanding() -> Any:
    return text_to_video(expand_timesteps=True)


def image_to_video() -> Any:
    t5 = tiny.t5_tokenizer()
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return diffusers.WanImageToVideoPipeline(
        tokenizer=t5,
        text_encoder=umt5_text(t5),
        vae=video_vae(diffusers.AutoencoderKLWan),
        transformer=transformer(12, image_dim=16, added_kv_proj_dim=24),
        scheduler=FLOW[1](),
        image_encoder=transformers.CLIPVisionModel(vision).eval(),
        image_processor=transformers.CLIPImageProcessor(crop_size=8, size=8),
    )


def image_to_video_without_encoder(**more: Any) -> Any:
    t5 = tiny.t5_tokenizer()
    return diffusers.WanImageToVideoPipeline(
        tokenizer=t5,
        text_encoder=umt5_text(t5),
        vae=video_vae(diffusers.AutoencoderKLWan),
        transformer=transformer(4 if more else 12),
        scheduler=FLOW[1](),
        **more,
    )


def image_to_video_expanding() -> Any:
    return image_to_video_without_encoder(expand_timesteps=True)


class TestWan(FamilyTests):
    maker = staticmethod(text_to_video)
    keywords = {"max_sequence_length": 16, "num_frames": 5}
    schedulers = FLOW
    grids = {(2, 2, 2)}
    text = 16
    video = True


class TwoModels(TestWan):
    maker = staticmethod(two_models)
    keywords = {"max_sequence_length": 16, "num_frames": 5, "guidance_scale_2": 2.0}

    def test_every_attention_call_is_placed(self) -> None:
        # Told of the first model; the second has the same modules.
        seen: list[Any] = []
        self.watched(At(lambda run, site: seen.append((site.step, site.depth, site.name)), ("self", "cross")))
        names = [(depth, name) for step, depth, name in seen if step == 0]
        assert names == [(depth, name) for step, depth, name in seen if step == 1] and len(names) == 4


class Expanding(TestWan):
    maker = staticmethod(expanding)


class TestWanImageToVideo(FamilyTests):
    maker = staticmethod(image_to_video)
    keywords = {"max_sequence_length": 512, "num_frames": 5}
    schedulers = FLOW
    grids = {(2, 2, 2)}
    text = 512
    video = True
    cut_off = False  # 512 tokens

    def inputs(self, count: int) -> dict[str, Any]:
        # The pipeline takes one image for all prompts.
        return {"image": pictures(1)[0]}

    def ours(self, prompts: list[str], pipeline: Any = None, **more: Any) -> np.ndarray:
        bridge = showtell.load(pipeline or self.pipeline)
        if "seed" not in more and "generator" not in more:
            more["generator"] = torch.Generator().manual_seed(5)
        images = more.pop("image", self.inputs(len(prompts))["image"])
        return np.stack(bridge.animate(prompts, images, **self.call(**more)))

    def test_every_sample_has_its_image(self) -> None:
        images = pictures(2)
        together = self.ours([ONE[0], ONE[0]], image=images, seed=[1, 1])
        assert np.abs(together[0] - together[1]).max() > 1e-3, "the image matters"
        for i in range(2):
            alone = self.ours(ONE, image=images[i], seed=[1])
            assert np.abs(alone[0] - together[i]).max() <= 1e-4


class WithoutEncoder(TestWanImageToVideo):
    maker = staticmethod(image_to_video_without_encoder)
    keywords = {"max_sequence_length": 16, "num_frames": 5}
    text = 16


class ExpandingImageToVideo(WithoutEncoder):
    maker = staticmethod(image_to_video_expanding)


@pytest.mark.parametrize("variant", [TwoModels, Expanding, WithoutEncoder, ExpandingImageToVideo])
def test_variants(variant: type[FamilyTests]) -> None:
    family = variant()
    family.test_equal_to_the_pipeline()
    family.test_every_attention_call_is_placed()
    family.test_sample_is_independent_of_its_batch()
    expected = family.theirs(ONE, output_type="latent")
    assert np.abs(family.ours(ONE, output_type="latent") - expected).max() <= 1e-4


def test_last_image() -> None:
    family, last = WithoutEncoder(), pictures(2)[1]
    expected = family.theirs(THREE, last_image=last)
    assert np.abs(family.ours(THREE, last_image=last) - expected).max() <= 1e-4
    assert np.abs(family.theirs(THREE) - expected).max() > 1e-4


def test_wrong_calls() -> None:
    bridge = showtell.load(shared(text_to_video))
    with pytest.raises(ShowtellError, match=r"num_frames=6: .* 4 \* n \+ 1 frames; the nearest is 5"):
        bridge.animate("a cat", num_frames=6)
    with pytest.raises(ShowtellError, match="cannot generate"):
        bridge.generate("a cat")
    with pytest.raises(ShowtellError, match="animates an image"):
        showtell.load(shared(image_to_video_expanding)).animate(
            "a cat", num_frames=5, height=32, width=32, num_inference_steps=1, max_sequence_length=16
        )


def test_only_the_second_model_may_be_there() -> None:
    made = fresh(two_models)
    adapter: Any = showtell.load(made).adapter  # type: ignore[attr-defined]
    assert adapter.denoiser is made.transformer
