"""Tiny random-weight bridges of every image family that a technique may attach to, and one short call of each.

    @pytest.mark.parametrize("name", hosts("frap", "sd", "sdxl", "sd3"))
    def test_attaches(name): ... sampled(name, Frap())

`hosts` marks every cell with `pytest.mark.host(slug, family)`, from which docs/matrix.md is made.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import bridge_family
import showtell
import test_bridges_cogview4
import test_bridges_hunyuan_dit
import test_bridges_lumina2
import test_bridges_qwen_image
import test_bridges_sana
import tiny
from showtell.steer.regions import Box
from steering import ddim

PROMPTS = ["a red ring left of a blue star", "a dog on the table"]
LEFT: Box = (0.0, 0.0, 0.5, 1.0)
RIGHT: Box = (0.5, 0.0, 1.0, 1.0)
_FAMILIES = {
    "sana": test_bridges_sana.TestSana,
    "lumina2": test_bridges_lumina2.TestLumina2,
    "hunyuan_dit": test_bridges_hunyuan_dit.TestHunyuanDiT,
    "qwen_image": test_bridges_qwen_image.TestQwenImage,
    "cogview4": test_bridges_cogview4.TestCogView4,
}
UNET = ("sd", "sdxl")
DIT = ("pixart", "pixart-sigma", "sana", "hunyuan_dit")
MMDIT = ("sd3", "flux", "qwen_image", "lumina2", "cogview4")


def hosts(slug: str, *names: str) -> list[Any]:
    """Parameters for a test that runs on every named family."""
    return [pytest.param(name, marks=pytest.mark.host(slug, name)) for name in names]


@cache
def pipeline_of(name: str) -> Any:
    """The family's tiny pipeline; tests only read it."""
    return bridge_family.shared(_FAMILIES[name].maker) if name in _FAMILIES else tiny.shared(name)


def bridge_of(name: str) -> Any:
    return showtell.load(pipeline_of(name))


def keywords(name: str, **more: Any) -> dict[str, Any]:
    """A short guided call of that family that returns latents. Stable Diffusion samples with DDIM."""
    own: dict[str, Any] = dict(_FAMILIES[name].keywords) if name in _FAMILIES else dict(tiny.KEYWORDS[name])
    if name == "sd":
        own["scheduler"] = ddim()
    small = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 32, "width": 32}
    return {**small, "output_type": "latent", "seed": 3, **own, **more}


def sampled(name: str, *using: Any, prompts: Any = PROMPTS, **more: Any) -> torch.Tensor:
    """Latents of that call, (n, channels, height, width)."""
    return torch.stack(bridge_of(name).generate(prompts, using=list(using), **keywords(name, **more)))


def words_of(name: str, prompt: str) -> Any:
    """Where the family's short call reads the words of a prompt."""
    bridge, call = bridge_of(name), keywords(name)
    return bridge.words(prompt, **{key: call[key] for key in bridge.adapter.text_options & call.keys()})
