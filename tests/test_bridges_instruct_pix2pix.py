"""InstructPix2Pix: equal to its pipelines; the image and the instruction guide separately."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
from bridge_family import ONE, PAIR, THREE, shared
from showtell.errors import ShowtellError, UnsupportedError
from test_bridges_attention import At
from unet_variants import NOISE_SCHEDULERS, EditTests, parts, pictures, plain


def pipeline() -> Any:
    return diffusers.StableDiffusionInstructPix2PixPipeline(**plain(channels=8))


def pipeline_xl() -> Any:
    found = parts(True, channels=8)
    wanted = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    return diffusers.StableDiffusionXLInstructPix2PixPipeline(**{name: found[name] for name in wanted})


class _Both(EditTests):
    schedulers = NOISE_SCHEDULERS
    grids = {(8, 8), (4, 4)}
    text = 16

    def inputs(self, count: int) -> dict[str, Any]:
        return {"image": pictures(count)}

    @pytest.mark.parametrize("scale", [1.0, 4.0])
    def test_image_guidance(self, scale: float) -> None:
        expected = self.theirs(THREE, image_guidance_scale=scale)
        assert np.abs(self.ours(THREE, image_guidance_scale=scale) - expected).max() <= 1e-4
        assert np.abs(self.theirs(THREE) - expected).max() > 1e-4

    def test_the_image_matters(self) -> None:
        bridge = showtell.load(self.pipeline)
        one, other = (bridge.edit(pictures(1, seed=seed), ONE, **self.call())[0] for seed in (1, 2))
        assert np.abs(one - other).max() > 1e-3

    def test_three_branches(self) -> None:
        seen: list[dict[str, slice]] = []
        self.watched(At(lambda run, site: seen.append(site.branches)))
        assert seen[0] == {"negative": slice(0, 2), "image": slice(2, 4), "text": slice(4, 6)}

    def test_one_image_and_two_instructions(self) -> None:
        bridge = showtell.load(self.pipeline)
        image = pictures(1)
        both = np.stack(bridge.edit(image, PAIR, seed=[3, 4], **self.call()))
        for i, prompt in enumerate(PAIR):
            alone = bridge.edit(image, prompt, seed=[3 + i], **self.call())[0]
            assert np.abs(both[i] - alone).max() <= 1e-3

    def test_unconditional_asked_for_by_a_technique(self) -> None:
        class Unguided(At):
            unconditional = True

            def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> None:
                assert unconditional is not None and torch.equal(guided, conditional)

        self.watched(Unguided(lambda run, site: None), guidance_scale=1.0)

    def test_bad_calls(self) -> None:
        bridge: Any = showtell.load(self.pipeline)
        with pytest.raises(UnsupportedError, match=r"cannot generate .*it offers: attend, edit, invert"):
            bridge.generate("a")
        with pytest.raises(ShowtellError, match="no images given"):
            bridge.edit([], "a")


class TestInstructPix2Pix(_Both):
    maker = staticmethod(pipeline)

    def call(self, **more: Any) -> dict[str, Any]:
        # The pipeline takes its size from the image.
        return {k: v for k, v in super().call(**more).items() if k not in ("height", "width")}

    def test_size_is_the_image_s(self) -> None:
        bridge = showtell.load(self.pipeline)
        image = pictures(1, (42, 24))
        generator = torch.Generator().manual_seed(5)
        expected = self.pipeline(prompt=ONE, image=image, generator=generator, **self.call()).images
        generator = torch.Generator().manual_seed(5)
        got = np.stack(bridge.edit(image, ONE, generator=generator, **self.call()))
        assert got.shape == expected.shape == (1, 24, 40, 3)
        assert np.abs(got - expected).max() <= 1e-4


class TestInstructPix2PixXL(_Both):
    maker = staticmethod(pipeline_xl)

    def test_further_keywords(self) -> None:
        more = {"guidance_rescale": 0.7, "original_size": (64, 64), "crops_coords_top_left": (4, 0)}
        assert np.abs(self.ours(THREE, **more) - self.theirs(THREE, **more)).max() <= 1e-4


def test_image_latents_do_not_leak_into_the_cache() -> None:
    bridge: Any = showtell.load(shared(pipeline))
    bridge.edit(pictures(1), ONE, num_inference_steps=1)
    assert not bridge.encode(ONE).extra
