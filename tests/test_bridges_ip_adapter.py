"""IP-Adapter on Stable Diffusion, SDXL and their variants: equal to the pipelines, one picture per sample."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
from bridge_family import ONE, THREE, FamilyTests, fresh
from showtell.errors import ShowtellError
from unet_variants import NOISE_SCHEDULERS, ip_adapter, parts, picture_encoder, pictures, plain


def with_pictures(pipeline: Any) -> Any:
    pipeline.unet._load_ip_adapter_weights([ip_adapter(pipeline.unet)])
    return pipeline


def pipeline() -> Any:
    encoder, extractor = picture_encoder()
    found = {**plain(), "image_encoder": encoder, "feature_extractor": extractor}
    return with_pictures(diffusers.StableDiffusionPipeline(**found))


def pipeline_xl() -> Any:
    encoder, extractor = picture_encoder()
    found = {**parts(True), "image_encoder": encoder, "feature_extractor": extractor}
    return with_pictures(diffusers.StableDiffusionXLPipeline(**found))


class _Both(FamilyTests):
    schedulers = NOISE_SCHEDULERS[:2]
    grids = {(8, 8), (4, 4)}
    text = 16

    def inputs(self, count: int) -> dict[str, Any]:
        # One picture for all: the pipelines know no picture per sample.
        return {"ip_adapter_image": pictures(1)[0]}

    def test_saved_and_loaded(self, tmp_path: Any) -> None:
        """An IP-Adapter is loaded onto a pipeline, and not part of what the library saves."""

    def test_a_picture_per_sample(self) -> None:
        bridge = showtell.load(self.pipeline)
        several = np.stack(bridge.generate(THREE, ip_adapter_image=pictures(3), seed=2, **self.call()))
        for i, (prompt, picture) in enumerate(zip(THREE, pictures(3), strict=True)):
            generator = _generator_of(bridge, 2, i)
            alone = self.pipeline([prompt], ip_adapter_image=[[picture]], generator=generator, **self.call()).images[0]
            assert np.abs(several[i] - alone).max() <= 1e-3
        assert np.abs(several[0] - bridge.generate(THREE[0], seed=2, **self.inputs(1), **self.call())[0]).max() < 1e-3

    def test_scale(self) -> None:
        pipeline = fresh(type(self).maker)
        pipeline.set_ip_adapter_scale(0.3)
        half = self.theirs(ONE, pipeline)
        assert np.abs(self.ours(ONE, pipeline) - half).max() <= 1e-4
        assert np.abs(self.ours(ONE) - half).max() > 1e-4
        pipeline.set_ip_adapter_scale(0.0)
        from test_bridges_attention import At

        names: list[str] = []
        self.ours(ONE, pipeline, using=[At(lambda run, site: names.append(site.name), ("self", "cross"))])
        once = list(dict.fromkeys(names))
        assert names == once * (len(names) // len(once))

    def test_bad_calls(self) -> None:
        bridge = showtell.load(self.pipeline)
        with pytest.raises(ShowtellError, match="has an IP-Adapter loaded: give ip_adapter_image"):
            bridge.generate(ONE, **self.call())


def _generator_of(bridge: Any, seed: int, index: int) -> torch.Generator:
    from showtell.bridges.diffusion import _mixed

    return torch.Generator().manual_seed(_mixed(seed, index))


class TestStableDiffusion(_Both):
    maker = staticmethod(pipeline)


class TestStableDiffusionXL(_Both):
    maker = staticmethod(pipeline_xl)


def test_no_adapter_loaded() -> None:
    bridge = showtell.load(diffusers.StableDiffusionPipeline(**plain()))
    with pytest.raises(ShowtellError, match=r"call pipeline.load_ip_adapter first"):
        bridge.generate(ONE, ip_adapter_image=pictures(1)[0], height=32, width=32, num_inference_steps=1)
