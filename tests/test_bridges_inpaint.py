"""Inpainting: equal to its pipelines, for UNets that see the masked image and for those that do not."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
from bridge_family import ONE, PAIR, THREE
from showtell.errors import ShowtellError
from unet_variants import NOISE_SCHEDULERS, EditTests, masks, parts, pictures, plain


def pipeline(channels: int = 9) -> Any:
    return diffusers.StableDiffusionInpaintPipeline(**plain(channels=channels))


def blending() -> Any:
    return pipeline(4)


def pipeline_xl() -> Any:
    return diffusers.StableDiffusionXLInpaintPipeline(**parts(True, channels=9))


class _Both(EditTests):
    schedulers = NOISE_SCHEDULERS
    grids = {(8, 8), (4, 4)}
    text = 16

    def inputs(self, count: int) -> dict[str, Any]:
        return {"image": pictures(count), "mask_image": masks(count)}

    def test_strength(self) -> None:
        more = {"strength": 0.6, "num_inference_steps": 5}
        expected = self.theirs(THREE, **more)
        assert np.abs(self.ours(THREE, **more) - expected).max() <= 1e-4
        assert np.abs(self.theirs(THREE, num_inference_steps=5) - expected).max() > 1e-3

    def test_image_and_mask_matter(self) -> None:
        bridge = showtell.load(self.pipeline)
        base, other_image, other_mask = (
            bridge.edit(pictures(1, seed=seed), ONE, mask_image=masks(2)[at], **self.call())[0]
            for seed, at in ((1, 0), (2, 0), (1, 1))
        )
        assert np.abs(base - other_image).max() > 1e-3 and np.abs(base - other_mask).max() > 1e-4

    def test_one_image_for_several_prompts(self) -> None:
        image, mask = pictures(1), masks(1)
        generator = torch.Generator().manual_seed(5)
        expected = self.pipeline(
            prompt=THREE, image=image[0], mask_image=mask[0], generator=generator, **self.call()
        ).images
        generator = torch.Generator().manual_seed(5)
        bridge = showtell.load(self.pipeline)
        got = np.stack(bridge.edit(image, THREE, mask_image=mask, generator=generator, **self.call()))
        assert np.abs(got - expected).max() <= 1e-4

    def test_bad_calls(self) -> None:
        bridge = showtell.load(self.pipeline)
        with pytest.raises(ShowtellError, match="needs image and mask_image; mask_image is missing"):
            bridge.edit(pictures(1), ONE, **self.call())
        for strength, message in ((0.0, "use more than 0"), (2.0, "at most 1"), (0.1, "leaves none")):
            with pytest.raises(ShowtellError, match=message):
                bridge.edit(pictures(1), ONE, mask_image=masks(1), **self.call(strength=strength))


class TestInpaint(_Both):
    maker = staticmethod(pipeline)


class TestInpaintByBlending(_Both):
    maker = staticmethod(blending)

    def test_outside_the_mask_the_image_stays(self) -> None:
        bridge: Any = showtell.load(self.pipeline)
        call = {**self.call(), "output_type": "latent"}
        image = pictures(1)
        seen, same = (bridge.edit(image, text, mask_image=masks(1), seed=1, **call)[0] for text in ("a dog", ONE))
        assert torch.equal(seen[:, :, 5:], same[:, :, 5:]) and (seen[:, :, :4] - same[:, :, :4]).abs().max() > 1e-3


class TestInpaintXL(_Both):
    maker = staticmethod(pipeline_xl)

    def watched(self, *using: Any, **more: Any) -> np.ndarray:
        # At its default strength, just below 1, a step is left out.
        return self.ours(PAIR, using=using, **{"num_inference_steps": 3, **more})

    def test_sizes(self) -> None:
        more = {"original_size": (64, 64), "negative_original_size": (16, 16), "guidance_rescale": 0.5}
        assert np.abs(self.ours(ONE, **more) - self.theirs(ONE, **more)).max() <= 1e-4
