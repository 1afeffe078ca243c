"""Bridges give the library pipelines' own images when no technique is attached."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
import tiny
from showtell.bridges.base import Technique
from showtell.errors import ShowtellError

ONE = ["a red ring left of a blue star"]
THREE = ["a red ring", "a dog on the table", "a big cat and the green star"]

NOISE_SCHEDULERS = [
    lambda: diffusers.DDIMScheduler(),
    lambda: diffusers.EulerDiscreteScheduler(),
    lambda: diffusers.EulerAncestralDiscreteScheduler(),
    lambda: diffusers.DPMSolverMultistepScheduler(),
    lambda: diffusers.HeunDiscreteScheduler(),
    lambda: diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
]
FLOW_SCHEDULERS = [
    lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
]
SCHEDULERS = {
    "sd": NOISE_SCHEDULERS,
    "sdxl": NOISE_SCHEDULERS,
    "sd3": FLOW_SCHEDULERS,
    # FLUX always shifts by resolution and gives its own sigmas, which these schedulers take.
    "flux": [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, stochastic_sampling=False, use_karras_sigmas=True
        ),
    ],
    "pixart": NOISE_SCHEDULERS[:4],
    "pixart-sigma": NOISE_SCHEDULERS[:4],
}
CASES = [(name, i) for name in tiny.MAKERS for i in range(len(SCHEDULERS[name]))]


def reference(pipeline: Any, prompts: list[str], seed: int = 5, **keywords: Any) -> np.ndarray:
    return pipeline(prompts, generator=torch.Generator().manual_seed(seed), **keywords).images


def ours(pipeline: Any, prompts: list[str], seed: int = 5, **keywords: Any) -> np.ndarray:
    bridge = showtell.load(pipeline)
    return np.stack(bridge.generate(prompts, generator=torch.Generator().manual_seed(seed), **keywords))


def negative(name: str, count: int) -> Any:
    # PixArt pipelines take one negative prompt for all.
    return "big" if name.startswith("pixart") else ["big"] * count


@pytest.mark.parametrize("name", tiny.MAKERS)
@pytest.mark.parametrize("prompts", [ONE, THREE], ids=["batch1", "batch3"])
def test_equal_to_the_pipeline(name: str, prompts: list[str]) -> None:
    pipeline = tiny.shared(name)
    keywords = tiny.keywords(name, negative_prompt=negative(name, len(prompts)))
    expected = reference(pipeline, prompts, **keywords)
    assert expected.std() > 0.05, "the tiny pipeline must draw something for equality to mean anything"
    assert np.abs(ours(pipeline, prompts, **keywords) - expected).max() <= 1e-4


@pytest.mark.parametrize("name, index", CASES)
def test_equal_on_every_scheduler(name: str, index: int) -> None:
    pipeline = tiny.make(name)
    pipeline.scheduler = SCHEDULERS[name][index]()
    keywords = tiny.keywords(name)
    assert np.abs(ours(pipeline, THREE, **keywords) - reference(pipeline, THREE, **keywords)).max() <= 1e-4


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_a_run_begun_and_stepped_by_hand(name: str) -> None:
    """`begin` gives the run that `generate` would make: the same noise, text, timesteps and predictions."""
    bridge: Any = showtell.load(tiny.shared(name))
    keywords = tiny.keywords(name, output_type="latent")
    run = bridge.begin(THREE, seed=3, **keywords)
    latents = run.latents
    with torch.no_grad():
        for step, timestep in enumerate(run.timesteps):
            run.step = step
            latents = run.adapter.advance(run, run.predict(latents, timestep), latents)
    assert run.step == run.steps - 1
    assert torch.equal(latents, torch.stack(bridge.generate(THREE, seed=3, **keywords)))
    with pytest.raises(ShowtellError, match="batch_size: a run is one batch"):
        bridge.begin(THREE, batch_size=1, **keywords)


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_prompt_guidance_and_noise_matter(name: str) -> None:
    # Guards the equalities above: tiny models whose output ignored these would be equal for the wrong reason.
    pipeline, keywords = tiny.shared(name), tiny.keywords(name)
    base = ours(pipeline, ONE, **keywords)
    other = "true_cfg_scale" if name == "flux" else "guidance_scale"
    pair = {"negative_prompt": "a dog"} if name == "flux" else {}
    assert np.abs(ours(pipeline, ["a dog on the table"], **keywords) - base).max() > 1e-3
    assert np.abs(ours(pipeline, ONE, seed=6, **keywords) - base).max() > 1e-2
    guided = ours(pipeline, ONE, **{**keywords, **pair, other: 9.0})
    assert np.abs(guided - base).max() > 1e-3


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_unguided(name: str) -> None:
    pipeline = tiny.shared(name)
    keywords = tiny.keywords(name, guidance_scale=1.0)
    assert np.abs(ours(pipeline, THREE, **keywords) - reference(pipeline, THREE, **keywords)).max() <= 1e-4


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_not_square_and_given_latents_and_list_of_generators(name: str) -> None:
    pipeline = tiny.shared(name)
    keywords = tiny.keywords(name, height=48, width=32, output_type="latent")
    made = [torch.Generator().manual_seed(i) for i in (1, 2)]
    expected = pipeline(THREE[:2], generator=made, **keywords).images
    made = [torch.Generator().manual_seed(i) for i in (1, 2)]
    got = torch.stack(showtell.load(pipeline).generate(THREE[:2], generator=made, **keywords))
    if name == "flux":
        expected = pipeline._unpack_latents(expected, 48, 32, pipeline.vae_scale_factor)
    assert got.shape == expected.shape == (2, 4, 12, 8)
    assert (got - expected).abs().max() <= 1e-4
    noise = torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(3))
    packed = pipeline._pack_latents(noise, 2, 4, 12, 8) if name == "flux" else noise
    keywords["output_type"] = "np"
    expected = pipeline(THREE[:2], latents=packed, **keywords).images
    got = np.stack(showtell.load(pipeline).generate(THREE[:2], latents=packed, **keywords))
    assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_sample_is_independent_of_its_batch(name: str) -> None:
    bridge = showtell.load(tiny.shared(name))
    keywords = tiny.keywords(name)
    together = np.stack(bridge.generate(THREE, seed=3, **keywords))
    assert np.abs(np.stack(bridge.generate(THREE, seed=3, batch_size=2, **keywords)) - together).max() <= 1e-3
    alone = bridge.generate(THREE[:1], seed=3, **keywords)[0]
    assert np.abs(alone - together[0]).max() <= 1e-3
    listed = bridge.generate([THREE[1], THREE[0]], seed=[9, 3], **keywords)
    assert np.abs(listed[1] - together[0]).max() <= 1e-3, "seed=[3] names the generator of (3, 0)"


def test_samples_of_one_prompt_differ() -> None:
    images = showtell.load(tiny.shared("sd")).generate("a dog", num_images_per_prompt=2, **tiny.keywords("sd"))
    assert len(images) == 2 and np.abs(images[0] - images[1]).max() > 1e-2


@pytest.mark.parametrize(
    "name, more",
    [
        ("sd", {"guidance_rescale": 0.7}),
        ("sdxl", {"clip_skip": 1, "negative_prompt": ["big"]}),
        ("sdxl", {"guidance_rescale": 0.7, "clip_skip": 1}),
        ("sdxl", {"original_size": (64, 64), "crops_coords_top_left": (4, 0), "target_size": (48, 32)}),
        ("sdxl", {"negative_original_size": (16, 16), "negative_target_size": (64, 32)}),
        ("sdxl", {"negative_prompt": [""]}),
        ("sd3", {"clip_skip": 1, "sigmas": [1.0, 0.6, 0.2]}),
        ("flux", {"sigmas": [1.0, 0.5, 0.1], "negative_prompt": ["big"]}),
    ],
)
def test_equal_with_the_pipeline_s_further_keywords(name: str, more: dict[str, Any]) -> None:
    pipeline = tiny.shared(name)
    keywords = tiny.keywords(name, **more)
    expected = reference(pipeline, ONE, **keywords)
    assert np.abs(ours(pipeline, ONE, **keywords) - expected).max() <= 1e-4
    plain = tiny.keywords(name)
    assert np.abs(reference(pipeline, ONE, **plain) - expected).max() > 1e-4, "the keyword must matter"


def test_clip_skip_of_stable_diffusion() -> None:
    # The library's own path fails with newer transformers, so equality cannot be the test.
    pipeline = tiny.shared("sd")
    plain = ours(pipeline, ONE, **tiny.keywords("sd"))
    assert np.abs(ours(pipeline, ONE, **tiny.keywords("sd", clip_skip=0)) - plain).max() <= 1e-5
    assert np.abs(ours(pipeline, ONE, **tiny.keywords("sd", clip_skip=1)) - plain).max() > 1e-3


def test_eta_draws_the_same_noise() -> None:
    pipeline = tiny.make("sd")
    pipeline.scheduler = diffusers.DDIMScheduler()
    keywords = tiny.keywords("sd", eta=1.0)
    assert np.abs(ours(pipeline, THREE, **keywords) - reference(pipeline, THREE, **keywords)).max() <= 1e-4


def test_sdxl_without_zeroed_empty_prompt() -> None:
    pipeline = tiny.make("sdxl")
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    keywords = tiny.keywords("sdxl")
    assert np.abs(ours(pipeline, ONE, **keywords) - reference(pipeline, ONE, **keywords)).max() <= 1e-4


def test_pixart_in_one_step() -> None:
    pipeline = tiny.make("pixart")
    pipeline.scheduler = diffusers.LCMScheduler()
    keywords = tiny.keywords("pixart", num_inference_steps=1)
    assert np.abs(ours(pipeline, ONE, **keywords) - reference(pipeline, ONE, **keywords)).max() <= 1e-4


def test_pixart_at_its_trained_sizes() -> None:
    pipeline = tiny.make("pixart")
    pipeline.transformer.register_to_config(sample_size=32)
    keywords = tiny.keywords("pixart", use_resolution_binning=True, height=64, width=128, num_inference_steps=2)
    expected = reference(pipeline, ONE, **keywords)
    assert expected.shape == (1, 64, 128, 3)
    assert np.abs(ours(pipeline, ONE, **keywords) - expected).max() <= 1e-4


@pytest.mark.parametrize("kind", ["pil", "pt", "np"])
def test_output_types(kind: str) -> None:
    pipeline = tiny.shared("sd")
    keywords = tiny.keywords("sd", output_type=kind)
    expected = pipeline(THREE, generator=torch.Generator().manual_seed(5), **keywords).images
    got = showtell.load(pipeline).generate(THREE, generator=torch.Generator().manual_seed(5), **keywords)
    assert isinstance(got, list) and len(got) == 3
    for a, b in zip(got, expected, strict=True):
        assert type(a) is type(b) and np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 1


class Count(Technique):
    """Counts what the loop evaluates."""

    def start(self, run: Any, latents: torch.Tensor) -> None:
        run.state(self).steps = 0

    def before(self, run: Any, latents: torch.Tensor) -> None:
        run.state(self).steps += 1

    def finish(self, run: Any, outputs: list[Any]) -> list[Any]:
        return [run.state(self).steps]


def test_guidance_is_skipped_at_scale_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny.make("sd")
    rows: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    bridge = showtell.load(pipeline)
    assert bridge.generate(THREE, using=[Count()], **tiny.keywords("sd", guidance_scale=1.0)) == [4]
    assert set(rows) == {3}
    rows.clear()
    bridge.generate(THREE, **tiny.keywords("sd"))
    assert set(rows) == {6}, "conditional and unconditional in one batch"


def test_text_is_encoded_once() -> None:
    pipeline = tiny.make("sd")
    calls: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0])), with_kwargs=True
    )
    bridge = showtell.load(pipeline)
    keywords = tiny.keywords("sd")
    first = bridge.generate([ONE[0], ONE[0]], **keywords)
    assert calls == [1, 1], "one row for the repeated prompt, one for the empty one"
    bridge.generate(ONE, **keywords)
    assert calls == [1, 1]
    with torch.no_grad():
        pipeline.text_encoder.final_layer_norm.weight.mul_(-1)
    changed = bridge.generate([ONE[0], ONE[0]], **keywords)
    assert calls == [1, 1, 1, 1], "changed weights are noticed"
    assert np.abs(changed[0] - first[0]).max() > 1e-3
    # A merged LoRA writes behind torch's back.
    pipeline.text_encoder.encoder.layers[0].self_attn.q_proj.weight.data += 1.0
    bridge.generate(ONE, **keywords)
    assert len(calls) == 6
