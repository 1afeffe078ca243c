"""Janus: tokens, images, captions and answers equal to the library's own."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
from bridge_family import ONE, THREE
from causal_models import ShowTests, strong, text_config
from showtell.bridges.janus import JanusBridge
from showtell.errors import ShowtellError


@cache
def bridge() -> Any:
    tokenizer = tiny.llama_tokenizer()
    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values()), "pad_token": "<pad>"})
    tokenizer._set_model_specific_special_tokens(special_tokens=names)
    config = transformers.JanusConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
            "projection_dim": 16, "num_image_tokens": 16, "mlp_ratio": 2.0,
        },
        vq_config={
            "embed_dim": 4, "num_embeddings": 24, "latent_channels": 8, "base_channels": 32,
            "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "projection_dim": 16, "image_token_embed_dim": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = strong(transformers.JanusForConditionalGeneration(config))
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<boi>")}
    half = [0.5, 0.5, 0.5]
    images = transformers.JanusImageProcessor(
        size={"height": 16, "width": 16}, image_mean=half, image_std=half, min_size=2
    )
    return JanusBridge(model, transformers.JanusProcessor(images, tokenizer, num_image_tokens=16))


class TestJanus(ShowTests):
    vocabulary = 24

    @property
    def bridge(self) -> Any:  # type: ignore[override]
        return bridge()

    def asked(self, question: str) -> str:
        return f"<|User|>: <image>\n{question}\n\n<|Assistant|>:"

    def theirs(self, prompts: list[str], **more: Any) -> torch.Tensor:
        processor, model = self.bridge.teller.processor, self.bridge.teller.model
        texts = [f"<|User|>: {prompt}\n\n<|Assistant|>:" for prompt in prompts]
        inputs = processor(text=texts, generation_mode="image", padding=True, padding_side="left", return_tensors="pt")
        call = {"do_sample": False, "guidance_scale": 5.0, **more}
        return model.generate(**inputs, generation_mode="image", **call)

    def test_images_are_the_library_s_own(self) -> None:
        model, processor = self.bridge.teller.model, self.bridge.teller.processor
        with torch.no_grad():
            pixels = model.decode_image_tokens(self.theirs(THREE)).permute(0, 3, 1, 2)
        expected = processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")["pixel_values"]
        made = self.bridge.generate(THREE, do_sample=False)
        for a, b in zip(made, expected, strict=True):
            assert a.size == b.size == (16, 16)
            assert np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 1
        values = self.bridge.generate(THREE, do_sample=False, output_type="np")[0]
        assert np.abs(values * 255 - np.asarray(made[0], float)).max() <= 1.01

    def test_no_negative_prompt(self) -> None:
        with pytest.raises(ShowtellError, match="Janus takes no negative_prompt"):
            self.bridge.generate(ONE, negative_prompt="big")
