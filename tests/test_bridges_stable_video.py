"""Stable Video Diffusion: equal to the pipeline; attention within a frame is seen like an image's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

import showtell
from bridge_family import fresh, park, park_whole, shared
from showtell.errors import ShowtellError
from test_bridges_attention import IDENTITIES, At
from unet_variants import pictures

CALL = {"num_frames": 3, "height": 32, "width": 32, "num_inference_steps": 3}


def pipeline() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224,
        patch_size=112, projection_dim=32, initializer_range=0.3,
    )  # fmt: skip
    blocks = ["CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"]
    return diffusers.StableVideoDiffusionPipeline(
        vae=diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 3,
        ).eval(),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision).eval(),
        unet=diffusers.UNetSpatioTemporalConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, num_attention_heads=(2, 4),
            down_block_types=(blocks[0],) * 2, up_block_types=(blocks[1],) * 2, cross_attention_dim=32, num_frames=3,
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        ).eval(),
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction", use_karras_sigmas=True, timestep_spacing="leading",
            timestep_type="continuous", sigma_min=0.002, sigma_max=700.0, interpolation_type="linear",
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
        ),
        feature_extractor=transformers.CLIPImageProcessor(crop_size=224, size=224),
    )  # fmt: skip


def theirs(count: int, made: Any = None, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    call = {"max_guidance_scale": 3.0, "output_type": "np", **CALL, **more}
    return np.asarray((made or shared(pipeline))(image=pictures(count), generator=generator, **call).frames)


def ours(count: int, made: Any = None, **more: Any) -> np.ndarray:
    bridge = showtell.load(made or shared(pipeline))
    call = {"guidance_scale": 3.0, "output_type": "np", **CALL, **more}
    if "seed" not in call:
        call["generator"] = torch.Generator().manual_seed(5)
    return np.stack(bridge.animate([""] * count, pictures(count), **call))


def test_equal_to_the_pipeline() -> None:
    for count in (1, 3):
        expected = theirs(count)
        assert expected.std() > 0.02, "it must draw something for equality to mean anything"
        assert np.abs(ours(count) - expected).max() <= 1e-4
    more: dict[str, Any] = {"fps": 12, "motion_bucket_id": 60, "noise_aug_strength": 0.3, "min_guidance_scale": 2.0}
    changed = theirs(1, **more)
    assert np.abs(changed - theirs(1)).max() > 1e-3 and np.abs(ours(1, **more) - changed).max() <= 1e-4
    assert np.abs(ours(1, guidance_scale=1.0) - theirs(1, max_guidance_scale=1.0)).max() <= 1e-4
    assert np.abs(ours(1, decode_chunk_size=2) - theirs(1, decode_chunk_size=2)).max() <= 1e-4


@pytest.mark.parametrize(
    "scheduler", [diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler, diffusers.DDIMScheduler]
)
def test_equal_on_other_schedulers(scheduler: Any) -> None:
    made = fresh(pipeline)
    made.scheduler = scheduler(prediction_type="v_prediction")
    assert np.abs(ours(2, made) - theirs(2, made)).max() <= 1e-4


def test_latents() -> None:
    found = ours(2, output_type="latent", seed=3)
    assert found.shape == (2, 4, 3, 8, 8)
    expected = theirs(1, output_type="latent")
    assert np.abs(ours(1, output_type="latent") - expected.transpose(0, 2, 1, 3, 4)).max() <= 1e-3
    noise = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    given = theirs(1, latents=noise)
    for latents in (noise, noise.transpose(1, 2)):
        assert np.abs(ours(1, latents=latents) - given).max() <= 1e-4
    alone = ours(1, output_type="latent", seed=3)
    assert np.abs(alone[0] - found[0]).max() <= 1e-3 * np.abs(found[0]).max(), "samples do not depend on their batch"


def test_attention() -> None:
    seen: list[Any] = []
    plain = ours(2, output_type="latent", num_inference_steps=1)
    made = fresh(pipeline)
    ran: list[str] = []
    for name, module in made.unet.named_modules():
        if hasattr(module, "processor"):
            module.register_forward_pre_hook(lambda m, a, kw, n=name: ran.append(n), with_kwargs=True)

    def look(run: Any, site: Any) -> None:
        assert site.fold == 3 and site.query.shape[0] == 2 * 2 * 3
        seen.append(site.place)
        for name, identity in IDENTITIES.items():
            if site.kind == "cross" or name in ("take", "key", "output"):  # the others are about text
                identity(site)
        if site.kind == "self":
            site.edit(lambda maps: maps * 1.0, keys="image")
            assert (site.probabilities().sum(-1) - 1).abs().max() < 1e-5

    watched = ours(2, made, using=[At(look, ("self", "cross"))], output_type="latent", num_inference_steps=1)
    assert np.array_equal(watched, plain)
    assert {place.grid for place in seen} == {(8, 8), (4, 4)} and {place.kind for place in seen} == {"self", "cross"}
    names = {place.name for place in seen}
    assert [place.name for place in seen] == [name for name in ran if name in names]
    assert {place.depth for place in seen} == {i for i, name in enumerate(ran) if ".temporal" not in name}


def test_attention_can_be_changed() -> None:
    def uniform(run: Any, site: Any) -> None:
        site.edit(lambda maps: torch.full_like(maps, 1 / maps.shape[-1]), keys="image")

    more: dict[str, Any] = {"output_type": "latent", "seed": [3, 4]}
    changed, plain = ours(2, using=[At(uniform, ("self",))], **more), ours(2, **more)
    assert np.abs(changed - plain).max() > 1e-4


def test_saved_and_loaded(tmp_path: Path) -> None:
    bridge = showtell.load(shared(pipeline))
    bridge.save(tmp_path)
    theirs_again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    theirs_again.set_progress_bar_config(disable=True)
    assert showtell.load(tmp_path).name == bridge.name == "Stable Video Diffusion"
    assert np.abs(theirs(1, theirs_again) - theirs(1)).max() <= 1e-5


@pytest.mark.parametrize("offload", [park, park_whole])
def test_offloaded(offload: Any) -> None:
    made = fresh(pipeline)
    offload(made)
    assert np.abs(ours(1, made) - ours(1)).max() <= 1e-5


def test_half_precision() -> None:
    made = fresh(pipeline).to(torch.bfloat16)
    assert np.abs(ours(1, made) - theirs(1, made)).max() <= 0.05


def test_images_of_different_sizes() -> None:
    first, second = pictures(2)
    call: dict[str, Any] = {"seed": [3, 4], "output_type": "latent", **CALL}
    bridge = showtell.load(shared(pipeline))
    wide = second.resize((48, 32))
    together = bridge.animate([""] * 2, [first, wide], **call)
    alone = bridge.animate("", wide, **{**call, "seed": [4]})
    assert np.abs(np.asarray(together[1]) - np.asarray(alone[0])).max() <= 1e-3 * np.abs(np.asarray(alone[0])).max()


def test_sizes() -> None:
    with pytest.raises(ShowtellError, match=r"multiples of 4 for this model, got 35x32; the nearest are 36x32"):
        ours(1, height=35)
    assert ours(1, height=36, output_type="latent").shape == (1, 4, 3, 9, 8), "the UNet takes odd sides too"


def test_an_image_is_needed() -> None:
    with pytest.raises(ShowtellError, match="animates an image"):
        showtell.load(shared(pipeline)).animate("", **CALL)
    with pytest.raises(ShowtellError, match="num_frames=0"):
        showtell.load(shared(pipeline)).animate("", pictures(1), **{**CALL, "num_frames": 0})
