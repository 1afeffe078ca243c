"""IP-Adapter (arXiv 2308.06721): picture prompts for a UNet, by cross-attention of their own beside the text's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from showtell.train.dropping import dropped
from showtell.train.noising import Noising
from showtell.train.samples import latents_of, paired
from showtell.train.trainer import fit


def image_encoder(clip: Any) -> Any:
    """The vision half of a CLIP bridge as pipelines take it."""
    from transformers import CLIPVisionModelWithProjection

    config = clip.model.config.vision_config
    config.projection_dim = clip.model.config.projection_dim
    encoder = CLIPVisionModelWithProjection(config)
    encoder.vision_model.load_state_dict(clip.model.vision_model.state_dict())
    encoder.visual_projection.load_state_dict(clip.model.visual_projection.state_dict())
    return encoder.eval().requires_grad_(False)


def add_ip_adapter(pipeline: Any, clip: Any, tokens: int = 4, seed: int = 0) -> nn.Module:
    """Gives a Stable Diffusion or SDXL pipeline picture prompts of `tokens` tokens, read by a CLIP bridge; what is to
    be trained, as one module. New keys and values begin as those of the text."""
    unet, generator = pipeline.unet, torch.Generator().manual_seed(seed)
    cross, size = unet.config.cross_attention_dim, clip.model.config.projection_dim
    layers = {}
    for index, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for part in "kv":
                layers[f"{index}.to_{part}_ip.weight"] = getattr(attention, f"to_{part}").weight.detach().clone()
    projection = {
        "proj.weight": torch.randn(tokens * cross, size, generator=generator) * size**-0.5,
        "proj.bias": torch.zeros(tokens * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    pipeline.register_modules(image_encoder=image_encoder(clip), feature_extractor=clip.processor.image_processor)
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    return adapter_of(unet)


def adapter_of(unet: Any) -> nn.Module:
    """The trained parts of an IP-Adapter that is loaded: the projection of pictures, their keys and values."""
    parts = [part for part in unet.attn_processors.values() if isinstance(part, nn.Module)]
    return nn.ModuleList([unet.encoder_hid_proj, *parts])


def train_ip_adapter(
    bridge: Any, pictures: Sequence[Any], prompts: Sequence[str], steps: int, batch_size: int = 32, lr: float = 1e-3,
    seed: int = 0,
) -> nn.Module:  # fmt: skip
    """Trains the adapter of `add_ip_adapter` to draw pictures (n) from themselves and their prompts (n); in place."""
    bridge.adapter.denoiser.requires_grad_(False)
    adapter = adapter_of(bridge.adapter.denoiser).requires_grad_(True)
    noising = Noising(bridge, ip_adapter_image=list(pictures))
    with torch.no_grad():
        texts, empty = noising.text(prompts), bridge.encode([""])

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        text = dropped(texts.rows(batch["row"].long()), empty, "picture_0", generator)
        error = noising.loss(noising.noised(batch["latents"], generator), text)
        return error, {"mse": error.detach()}

    data = paired(latents_of(bridge, pictures), batch_size)
    fit(adapter, loss, data, steps=steps, lr=lr, precision="no", seed=seed, progress=False)
    return adapter.eval().requires_grad_(False)
