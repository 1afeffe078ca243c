"""Models of standard classes with random weights for the narrow world's 32x32 pictures (`train.narrow`): what papers
train from nothing, so that only what they compare differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from showtell.bridges.clip import ClipBridge
from showtell.bridges.loading import load
from showtell.train.bases import seeing, text
from showtell.train.narrow import SIDE, short_text


def narrow_unet(base: Any, vae: Any, channels: Sequence[int], seed: int) -> Any:
    """A bridge over a StableDiffusionPipeline on 32x32 pictures.

    base: a Stable Diffusion bridge whose frozen text encoder it is told by. vae: an autoencoder, such as
    `nets.stages.Stages`. channels: of the UNet's levels, the last two of which attend to the text. The schedule
    is that of latent diffusion (arXiv 2112.10752).
    """
    import diffusers

    encoder, tokenizer = short_text(base)
    plain = len(channels) - 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=SIDE // vae.factor, in_channels=vae.channels, out_channels=vae.channels,
            block_out_channels=tuple(channels), layers_per_block=1, norm_num_groups=8, attention_head_dim=1,
            down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * plain,
            cross_attention_dim=encoder.config.hidden_size,
        )  # fmt: skip
    steps = diffusers.DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    return load(diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=steps, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ))  # fmt: skip


def narrow_mmdit(base: Any, seed: int, width: int = 128, depth: int = 3, flow: bool = True) -> Any:
    """A bridge over a StableDiffusion3Pipeline on 32x32 pictures, 16 image tokens, 64 numbers a head.

    base: a Stable Diffusion bridge, whose autoencoder it has and whose text encoder in the places of both CLIPs; there
    is no T5, so call it with max_sequence_length=1. flow: rectified flow; otherwise it predicts noise on the schedule
    of Stable Diffusion and samples with trailing steps.
    """
    import diffusers

    encoder, tokenizer = _projecting(*short_text(base))
    latents, side, told = base.adapter.channels, SIDE // base.pipeline.vae_scale_factor, encoder.config.hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=side, patch_size=2, in_channels=latents, out_channels=latents, num_layers=depth,
            attention_head_dim=min(64, width), num_attention_heads=max(1, width // 64),
            joint_attention_dim=2 * told, caption_projection_dim=width, pooled_projection_dim=2 * told,
            pos_embed_max_size=side, qk_norm="rms_norm",
        )  # fmt: skip
    steps: Any = diffusers.FlowMatchEulerDiscreteScheduler()
    if not flow:
        steps = diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=True, timestep_spacing="trailing",
        )  # fmt: skip
    return load(diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=steps, vae=base.pipeline.vae, text_encoder=encoder, tokenizer=tokenizer,
        text_encoder_2=encoder, tokenizer_2=tokenizer, text_encoder_3=None, tokenizer_3=None,
    ))  # fmt: skip


def narrow_kontext(base: Any, seed: int, width: int = 128, blocks: tuple[int, int] = (2, 2), length: int = 20) -> Any:
    """A bridge over a FluxKontextPipeline on 32x32 pictures: 16 image tokens, 16 of the picture that is edited and
    `length` of text in one softmax. blocks: of two streams and of one.

    base: a Stable Diffusion bridge, whose autoencoder it has and whose text encoder in the places of CLIP and T5.
    """
    import diffusers

    encoder, tokenizer = short_text(base, length)
    latents, told, head = base.adapter.channels, encoder.config.hidden_size, min(64, width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=4 * latents, num_layers=blocks[0], num_single_layers=blocks[1],
            attention_head_dim=head, num_attention_heads=width // head, joint_attention_dim=told,
            pooled_projection_dim=told, axes_dims_rope=(head // 4, 3 * head // 8, 3 * head // 8),
        )  # fmt: skip
    return load(diffusers.FluxKontextPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=base.pipeline.vae,
        text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder, tokenizer_2=tokenizer,
    ))  # fmt: skip


def _projecting(known: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A CLIPTextModel as one with a projection, which changes nothing."""
    from transformers import CLIPTextModelWithProjection

    width = known.config.hidden_size
    config = type(known.config).from_dict({**known.config.to_dict(), "projection_dim": width})
    encoder = CLIPTextModelWithProjection(config)
    weights = {name.removeprefix("text_model."): value for name, value in known.state_dict().items()}
    weights["text_projection.weight"] = torch.eye(width)
    encoder.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in encoder.state_dict()})
    return encoder.eval().requires_grad_(False), tokenizer


def narrow_clip(seed: int, width: int = 64, layers: int = 3, patch: int = 8) -> Any:
    """A CLIPModel over 32x32 pictures in [-1, 1] and the prompts of the bases' tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    told = text.clip_text(text.clip_tokenizer(), width, 2).config.to_dict()
    seen = seeing.vision_sizes(width, layers) | {"image_size": SIDE, "patch_size": patch}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(CLIPConfig(text_config=told, vision_config=seen, projection_dim=width))


def narrow_clip_bridge(model: Any) -> ClipBridge:
    """The bridge of a model of `narrow_clip`, which scales pictures of any size to its own."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    half, size = [0.5, 0.5, 0.5], {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size, image_mean=half, image_std=half)
    return ClipBridge(model, CLIPProcessor(images, text.clip_tokenizer()))
