"""Tiny random-weight pipelines of the real library classes, made on the spot; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers

WORDS = [
    "a",
    "red",
    "ring",
    "left",
    "of",
    "blue",
    "star",
    "above",
    "green",
    "square",
    "the",
    "hundred",
    "cat",
    "dog",
    "photo",
    "painting",
    "on",
    "table",
    "and",
    "big",
]
CHINESE = "红色的圆在蓝正方形左边"


def _bytes() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _merges(words: list[str], ending: str, first: str = "") -> list[tuple[str, str]]:
    """Byte-pair merges that build every word (and its prefixes) from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        symbols = ([first] if first else []) + list(word[:-1]) + [word[-1] + ending]
        while len(symbols) > 1:
            merges[(symbols[0], symbols[1])] = None
            symbols[:2] = [symbols[0] + symbols[1]]
    return list(merges)


def clip_tokenizer(length: int = 16) -> Any:
    """Real CLIP tokenizer class; the words of WORDS are one token each, "hundred" and others are split."""
    known = [word for word in WORDS if word not in ("hundred", "painting")]
    merges = _merges(known, "</w>")
    pieces = _bytes() + [b + "</w>" for b in _bytes()] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def t5_tokenizer(length: int = 16) -> Any:
    letters = sorted({c for c in "abcdefghijklmnopqrstuvwxyz.,'" + CHINESE})
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [("▁" + word, -3.0) for word in WORDS if word not in ("hundred", "painting")]
    vocab += [(letter, -8.0) for letter in letters]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, additional_special_tokens=[], model_max_length=length)


def qwen_tokenizer() -> Any:
    merges = _merges(["Ġ" + word for word in WORDS if word not in ("hundred", "painting")], "")
    pieces = _bytes() + ["".join(pair) for pair in merges] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def llama_tokenizer() -> Any:
    merges = _merges(["▁" + word for word in WORDS if word not in ("hundred", "painting")], "")
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{i:02X}>" for i in range(256)],
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.LlamaTokenizer(vocab=vocab, merges=merges, pad_token="</s>")


def gemma_tokenizer() -> Any:
    merges = _merges([word + "▁" for word in WORDS if word not in ("hundred", "painting")], "")
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *[f"<0x{i:02X}>" for i in range(256)]]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", *("".join(pair) for pair in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.GemmaTokenizer(vocab=vocab, merges=merges)


def clip_text(tokenizer: Any, width: int = 32, projection: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def t5_text(tokenizer: Any, width: int = 32) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def vae(latent_channels: int = 4, **more: Any) -> Any:
    """Factor 4: 32 pixels are 8 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=latent_channels,
        **more,
    ).eval()


def _unet(cross: int, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=cross,
        **more,
    ).eval()


def sd() -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(32),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        text_encoder_2=clip_text(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=_unet(
            64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )


def sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=16,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06),
        text_encoder=clip_text(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=clip_text(clip, projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(t5, 64),
        tokenizer_3=t5,
    )


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(shift_factor=0.11),
        text_encoder=clip_text(clip),
        tokenizer=clip,
        text_encoder_2=t5_text(t5),
        tokenizer_2=t5,
    )


def pixart(sigma: bool = False) -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    t5 = t5_tokenizer()
    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=t5,
        text_encoder=t5_text(t5),
        vae=vae(),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=32,
            use_additional_conditions=False,
        ).eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "pixart-sigma": lambda: pixart(sigma=True),
}


def make(name: str) -> Any:
    """A fresh pipeline of that family with the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = MAKERS[name]()
    _scale_up(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scale_up(pipeline: Any) -> None:
    """Zero-initialised output layers would make every prompt give the same image: give them weights."""
    generator = torch.Generator().manual_seed(1)
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        elif parameter.ndim > 1 and ("to_k" in name or "to_q" in name):
            parameter.data *= 3


@cache
def shared(name: str) -> Any:
    """A pipeline that tests only read."""
    return make(name)


# Keywords that make a call fit the tiny models, for the pipeline and the bridge alike.
KEYWORDS: dict[str, dict[str, Any]] = {
    "sd": {},
    "sdxl": {},
    "sd3": {"max_sequence_length": 16},
    "flux": {"max_sequence_length": 16, "true_cfg_scale": 2.0},
    "pixart": {"max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False},
    "pixart-sigma": {"max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False},
}


def keywords(name: str, **more: Any) -> dict[str, Any]:
    """Keywords of a small, guided call of that family."""
    small = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 32, "width": 32, "output_type": "np"}
    return {**small, **KEYWORDS[name], **more}
