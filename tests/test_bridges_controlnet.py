"""ControlNet: equal to its pipelines; the control matters while it is on."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
from bridge_family import ONE, THREE, FamilyTests
from showtell.errors import ShowtellError
from unet_variants import NOISE_SCHEDULERS, parts, pictures, plain


def controlnet(unet: Any) -> Any:
    model = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8)).eval()
    for name, parameter in model.named_parameters():
        if "controlnet" in name or name.startswith("controlnet_cond_embedding.conv_out"):
            parameter.data = torch.randn_like(parameter) * 0.3  # made as zeros
    return model


def pipeline() -> Any:
    found = plain()
    return diffusers.StableDiffusionControlNetPipeline(**found, controlnet=controlnet(found["unet"]))


def pipeline_xl() -> Any:
    found = parts(True)
    return diffusers.StableDiffusionXLControlNetPipeline(**found, controlnet=controlnet(found["unet"]))


class _Both(FamilyTests):
    schedulers = NOISE_SCHEDULERS
    grids = {(8, 8), (4, 4)}
    text = 16

    def inputs(self, count: int) -> dict[str, Any]:
        return {"image": pictures(count)}

    @pytest.mark.parametrize(
        "more",
        [
            {"controlnet_conditioning_scale": 0.3},
            {"guess_mode": True},
            {"guess_mode": True, "guidance_scale": 1.0},
            {"control_guidance_start": 0.3, "control_guidance_end": 0.7},
        ],
    )
    def test_further_keywords(self, more: dict[str, Any]) -> None:
        expected = self.theirs(THREE, **more)
        assert np.abs(self.ours(THREE, **more) - expected).max() <= 1e-4
        assert np.abs(self.theirs(THREE) - expected).max() > 1e-4, "the keyword must matter"

    def test_the_control_matters(self) -> None:
        bridge = showtell.load(self.pipeline)
        one, other = (bridge.generate(ONE, image=pictures(1, seed=s), **self.call())[0] for s in (1, 2))
        assert np.abs(one - other).max() > 1e-3

    def test_bad_calls(self) -> None:
        bridge = showtell.load(self.pipeline)
        with pytest.raises(ShowtellError, match="needs the control image"):
            bridge.generate(ONE, **self.call())
        with pytest.raises(ShowtellError, match="image: got 2 for 1"):
            bridge.generate(ONE, image=pictures(2), **self.call())


class TestControlNet(_Both):
    maker = staticmethod(pipeline)

    def test_size_is_the_control_s(self) -> None:
        bridge = showtell.load(self.pipeline)
        call = {name: value for name, value in self.call().items() if name not in ("height", "width")}
        generator = torch.Generator().manual_seed(5)
        expected = self.pipeline(ONE, image=pictures(1, (40, 24)), generator=generator, **call).images
        generator = torch.Generator().manual_seed(5)
        got = np.stack(bridge.generate(ONE, image=pictures(1, (40, 24)), generator=generator, **call))
        assert got.shape == expected.shape and np.abs(got - expected).max() <= 1e-4


class TestControlNetXL(_Both):
    maker = staticmethod(pipeline_xl)
