"""AnimateDiff: text to clips, equal to the pipeline; a frame's attention is seen like an image's."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
import tiny
from bridge_family import PAIR, FamilyTests, fresh, shared
from showtell.errors import ShowtellError
from test_bridges_attention import At


def pipeline() -> Any:
    tokenizer = tiny.clip_tokenizer()
    return diffusers.AnimateDiffPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=tiny._unet(32),
        motion_adapter=diffusers.MotionAdapter(
            block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4,
            motion_num_attention_heads=2, motion_max_seq_length=8,
        ),
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )  # fmt: skip


class TestAnimateDiff(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {"num_frames": 3}
    schedulers = [
        lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
        lambda: diffusers.EulerDiscreteScheduler(),
        lambda: diffusers.EulerAncestralDiscreteScheduler(),
        lambda: diffusers.DPMSolverMultistepScheduler(),
    ]
    grids = {(8, 8), (4, 4)}
    text = 16
    video = True

    def test_frames_lie_in_the_batch(self) -> None:
        def look(run: Any, site: Any) -> None:
            assert site.fold == 3
            maps = site.maps()
            assert maps.shape[0] == len(PAIR) * 3
            seen.append(maps)

        seen: list[Any] = []
        self.watched(At(look))
        assert seen

    def test_samples_share_keys_of_the_same_frame(self) -> None:
        def share(run: Any, site: Any) -> None:
            before = site.key[site.branches["text"]].clone()
            site.take([0, 0])
            after = site.key[site.branches["text"]]
            assert torch.equal(after[:3], before[:3]) and torch.equal(after[3:], before[:3])

        shared_keys, plain = self.watched(At(share)), self.watched()
        assert np.array_equal(shared_keys[0], plain[0]) and np.abs(shared_keys[1] - plain[1]).max() > 1e-5

    def test_amounts_given_per_sample_reach_its_frames(self) -> None:
        def weaken(run: Any, site: Any) -> None:
            amount = torch.zeros(len(PAIR), 1, 1, 16)
            amount[1, ..., 2] = -1.0
            before = site.output.clone()
            site.bias(amount)
            change = (site.output - before).abs().amax(dim=(1, 2, 3))[site.branches["text"]]
            assert change[:3].max() == 0 and change[3:].min() > 0

        assert np.abs(self.watched(At(weaken)) - self.watched())[1].max() > 1e-5


def test_wrong_calls() -> None:
    for frames in (0, 9):
        with pytest.raises(ShowtellError, match=rf"num_frames={frames}: use 1 to 8, as many as this model has"):
            showtell.load(shared(pipeline)).animate("a cat", num_frames=frames)
    made = fresh(pipeline)
    made.enable_free_init()
    with pytest.raises(ShowtellError, match="disable_free_init"):
        showtell.load(made).animate("a cat", **TestAnimateDiff().call(num_inference_steps=1))
