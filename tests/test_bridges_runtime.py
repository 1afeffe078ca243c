"""What the libraries do to a model in memory keeps working through a bridge: compiling, offloading, quantising."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

import showtell
import test_bridges_vlm
import tiny
from bridge_family import park
from showtell.bridges.stable_diffusion import unet_calls
from showtell.errors import ShowtellError
from test_bridges_attention import At

PROMPTS = ["a red ring left of a blue star", "a dog on the table"]


def denoiser(pipeline: Any) -> str:
    return "unet" if hasattr(pipeline, "unet") else "transformer"


def wrapped(pipeline: Any, **how: Any) -> None:
    name = denoiser(pipeline)
    setattr(pipeline, name, torch.compile(getattr(pipeline, name), **how))


def in_place(pipeline: Any, **how: Any) -> None:
    getattr(pipeline, denoiser(pipeline)).compile(**how)


def made(pipeline: Any, name: str, *using: Any, **more: Any) -> np.ndarray:
    bridge = showtell.load(pipeline)
    return np.stack(bridge.generate(PROMPTS, using=using, **tiny.keywords(name, num_inference_steps=2, **more)))


# Tracing takes its time, so most are among the slow tests.
@pytest.mark.parametrize(
    "name, compiled",
    [
        ("sd3", in_place),
        pytest.param("sd", wrapped, marks=pytest.mark.slow),
        pytest.param("sdxl", wrapped, marks=pytest.mark.slow),
        pytest.param("flux", wrapped, marks=pytest.mark.slow),
        pytest.param("pixart", in_place, marks=pytest.mark.slow),
        pytest.param("sd", in_place, marks=pytest.mark.slow),
    ],
)
def test_compiled(name: str, compiled: Callable[..., None]) -> None:
    ran: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def call(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return call

    def read(run: Any, site: Any) -> None:
        maps[-1].append(site.maps())
        names[-1].append(site.name)

    torch.compiler.reset()
    maps: list[list[torch.Tensor]] = [[]]
    names: list[list[str]] = [[]]
    plain, pipeline = made(tiny.shared(name), name, At(read)), tiny.make(name)
    compiled(pipeline, backend=backend)
    assert np.abs(made(pipeline, name) - plain).max() <= 1e-5 and ran, "the compiled graph is what runs"
    maps, names = [*maps, []], [*names, []]
    before = len(ran)
    assert np.abs(made(pipeline, name, At(read)) - plain).max() <= 1e-5
    assert len(ran) == before, "attention is seen by running eagerly"
    assert names[0] == names[1] and len(maps[0]) == len(maps[1]) > 0
    assert max((a - b).abs().max().item() for a, b in zip(*maps, strict=True)) < 1e-5
    made(pipeline, name)
    assert len(ran) > before, "and then compiled again"


def test_a_wrapped_unet_has_the_same_attention() -> None:
    unet = tiny.shared("sd").unet
    assert unet_calls(torch.compile(unet)) == unet_calls(unet) and len(unet_calls(unet)) == 14


def test_compiled_in_blocks() -> None:
    torch.compiler.reset()
    pipeline, plain = tiny.make("flux"), made(tiny.shared("flux"), "flux")
    pipeline.transformer.compile_repeated_blocks(backend="eager")
    seen: list[int] = []
    assert np.abs(made(pipeline, "flux") - plain).max() <= 1e-5
    assert np.abs(made(pipeline, "flux", At(lambda run, site: seen.append(site.depth))) - plain).max() <= 1e-5
    assert set(seen) == set(range(4))


def test_compiled_language_model() -> None:
    torch.compiler.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = test_bridges_vlm.llava()
    bridge = showtell.load(model, processor=processor)
    image = np.zeros((20, 24, 3), np.uint8)
    plain = bridge.answer(image, "a dog", max_new_tokens=3)
    model.model.language_model.layers[0].compile(backend="eager")
    seen: list[str] = []
    assert bridge.answer(image, "a dog", max_new_tokens=3) == plain
    reads = At(lambda run, site: seen.append(site.name), ("told",))
    assert bridge.answer(image, "a dog", max_new_tokens=3, using=[reads]) == plain and len(seen) >= 2


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_offloaded_with_a_technique_and_latents_of_images(name: str) -> None:
    """Families show the plain call in their own tests."""
    plain, pipeline = tiny.shared(name), tiny.make(name)
    park(pipeline)
    reads = At(lambda run, site: site.maps())
    assert np.abs(made(pipeline, name, reads) - made(plain, name)).max() <= 1e-5
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    offloaded: Any = showtell.load(pipeline)
    held: Any = showtell.load(plain)
    latents = held.to_latents(images, 32, 32)
    assert (offloaded.to_latents(images, 32, 32) - latents).abs().max() <= 1e-5
    again = offloaded.to_images(latents, output_type="pt")[0]
    assert (again - held.to_images(latents, output_type="pt")[0]).abs().max() <= 1e-5


def test_offloaded_in_groups() -> None:
    pipeline = tiny.make("sd3")
    pipeline.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert np.abs(made(pipeline, "sd3") - made(tiny.shared("sd3"), "sd3")).max() <= 1e-5


def test_from_pretrained_s_keywords_reach_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    showtell.load(tiny.shared("sd")).save(tmp_path / "pipeline")
    model, processor = test_bridges_vlm.llava()
    showtell.load(model, processor=processor).save(tmp_path / "model")
    given: list[Any] = []

    def stop(folder: str, **keywords: Any) -> Any:
        given.append(keywords)
        raise ImportError("this quantiser needs a package that is not here")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", stop)
    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "from_pretrained", stop)
    for folder in ("pipeline", "model"):
        with pytest.raises(ShowtellError, match=r"cannot load .*: this quantiser needs a package") as caught:
            showtell.load(tmp_path / folder, quantization_config="mine", variant="fp16")
        assert "\n" not in str(caught.value)
    assert [(one["quantization_config"], one["variant"]) for one in given] == [("mine", "fp16")] * 2


def test_components_given_instead_of_those_saved(tmp_path: Path) -> None:
    import shutil

    pipeline = tiny.shared("sd")
    showtell.load(pipeline).save(tmp_path)
    shutil.rmtree(tmp_path / "vae")
    bridge: Any = showtell.load(tmp_path, vae=pipeline.vae)
    assert bridge.pipeline.vae is pipeline.vae
    bridge.pipeline.set_progress_bar_config(disable=True)
    assert np.abs(made(bridge.pipeline, "sd") - made(pipeline, "sd")).max() <= 1e-5


def int8(package: str, library: Any) -> Any:
    """A configuration of int8 weights, for diffusers or transformers."""
    if package == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        return library.TorchAoConfig(Int8WeightOnlyConfig())
    pytest.importorskip("optimum.quanto")
    if library is diffusers:
        return diffusers.QuantoConfig(weights_dtype="int8")
    return transformers.QuantoConfig(weights="int8")


@pytest.mark.parametrize("package", ["torchao", "quanto"])
def test_quantised_pipelines(package: str, tmp_path: Path) -> None:
    parts = {"transformer": int8(package, diffusers), "text_encoder_3": int8(package, transformers)}
    showtell.load(tiny.shared("sd3")).save(tmp_path)
    config = diffusers.PipelineQuantizationConfig(quant_mapping=parts)
    bridge: Any = showtell.load(tmp_path, quantization_config=config)
    bridge.pipeline.set_progress_bar_config(disable=True)
    weight = bridge.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    assert "Int8" in type(weight).__name__ or "QBytes" in type(weight).__name__
    keywords = tiny.keywords("sd3", num_inference_steps=2)
    theirs = bridge.pipeline(PROMPTS, generator=torch.Generator().manual_seed(5), **keywords).images
    ours = np.stack(bridge.generate(PROMPTS, generator=torch.Generator().manual_seed(5), **keywords))
    assert np.abs(ours - theirs).max() <= 1e-4
    exact = made(tiny.shared("sd3"), "sd3")
    assert 0 < np.abs(made(bridge.pipeline, "sd3") - exact).max() < 0.1, "quantised, and not by much"
    reads = At(lambda run, site: site.maps())
    assert np.abs(made(bridge.pipeline, "sd3", reads) - made(bridge.pipeline, "sd3")).max() == 0


@pytest.mark.parametrize("package", ["torchao", "quanto"])
def test_quantised_language_models(package: str, tmp_path: Path) -> None:
    config = int8(package, transformers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = test_bridges_vlm.llava()
    showtell.load(model, processor=processor).save(tmp_path)
    bridge: Any = showtell.load(tmp_path, quantization_config=config)
    image, seen = np.zeros((20, 24, 3), np.uint8), list[int]()
    plain = bridge.answer(image, "a dog", max_new_tokens=3)
    reads = At(lambda run, site: seen.append(site.depth), ("told",))
    assert bridge.answer(image, "a dog", max_new_tokens=3, using=[reads]) == plain and len(seen) >= 2
    weight = bridge.model.model.language_model.layers[0].mlp.up_proj.weight
    assert "Int8" in type(weight).__name__ or "QBytes" in type(weight).__name__
