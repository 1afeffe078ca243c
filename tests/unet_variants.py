"""Tiny UNet pipelines with more than text as a condition, and the pictures they take."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
import transformers

import showtell
import tiny
from bridge_family import FamilyTests

NOISE_SCHEDULERS = [
    lambda: diffusers.DDIMScheduler(),
    lambda: diffusers.EulerDiscreteScheduler(),
    lambda: diffusers.EulerAncestralDiscreteScheduler(),
    lambda: diffusers.DPMSolverMultistepScheduler(),
]


def parts(xl: bool, channels: int = 4) -> dict[str, Any]:
    """Components of the tiny Stable Diffusion or SDXL, with a UNet of that many input channels."""
    whole = tiny.sdxl() if xl else tiny.sd()
    found = {name: part for name, part in whole.components.items() if name not in ("image_encoder",)}
    if channels != 4:
        config = {k: v for k, v in whole.unet.config.items() if not k.startswith("_")}
        config["in_channels"] = channels
        found["unet"] = diffusers.UNet2DConditionModel.from_config(config).eval()
    return found


def plain(**more: Any) -> dict[str, Any]:
    """Components of Stable Diffusion, whose pipelines want to be told of the missing safety checker."""
    return {**parts(False, **more), "requires_safety_checker": False}


def pictures(count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> list[Any]:
    """Coarse noise: pictures whose content survives a VAE."""
    generator = np.random.default_rng(seed)
    small = [generator.integers(0, 255, (4, 4, 3), dtype=np.uint8) for _ in range(count)]
    return [PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.NEAREST) for pixels in small]


def masks(count: int, size: tuple[int, int] = (32, 32)) -> list[Any]:
    """Another half white for every sample."""
    found = []
    for i in range(count):
        pixels = np.zeros((size[1], size[0]), np.uint8)
        pixels[:, i * 4 : i * 4 + size[0] // 2] = 255
        found.append(PIL.Image.fromarray(pixels))
    return found


def picture_encoder(width: int = 32) -> tuple[Any, Any]:
    """(CLIP vision model with projection, its feature extractor)."""
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=width, initializer_range=0.3,
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    return transformers.CLIPVisionModelWithProjection(config).eval(), extractor


def ip_adapter(unet: Any, width: int = 32, tokens: int = 4) -> dict[str, Any]:
    """Random IP-Adapter weights for a UNet, in the layout of the published ones."""
    cross = unet.config.cross_attention_dim
    layers: dict[str, torch.Tensor] = {}
    for index, (name, _) in enumerate(unet.attn_processors.items()):
        if name.endswith("attn1.processor"):
            continue
        inside = dict(unet.named_modules())[name.removesuffix(".processor")].inner_dim
        layers[f"{index}.to_k_ip.weight"] = torch.randn(inside, cross) * 0.1
        layers[f"{index}.to_v_ip.weight"] = torch.randn(inside, cross) * 0.1
    projection = {
        "proj.weight": torch.randn(tokens * cross, width) * 0.3,
        "proj.bias": torch.zeros(tokens * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    return {"image_proj": projection, "ip_adapter": layers}


class EditTests(FamilyTests):
    """The tests of every family, through `edit`."""

    def ours(self, prompts: list[str], pipeline: Any = None, **more: Any) -> np.ndarray:
        given = self.inputs(len(prompts))
        images = given.pop("image")
        if "seed" not in more and "generator" not in more:
            more["generator"] = torch.Generator().manual_seed(5)
        bridge = showtell.load(pipeline or self.pipeline)
        return np.stack(bridge.edit(images, prompts, **{**given, **self.call(**more)}))
