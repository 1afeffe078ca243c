"""Emu3: tokens, images, captions and answers equal to the library's own."""

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
from showtell.bridges.emu3 import Emu3Bridge


@cache
def bridge() -> Any:
    tokenizer = tiny.qwen_tokenizer()
    names = {
        "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
    }  # fmt: skip
    codes = [f"<|visual token {i:06d}|>" for i in range(20)]
    special = ["<|extra_200|>", "<|extra_203|>", *names.values(), *codes]
    tokenizer.add_special_tokens({"bos_token": "<|extra_203|>", "additional_special_tokens": special})
    tokenizer._set_model_specific_special_tokens(special_tokens=names)
    known = {token: tokenizer.convert_tokens_to_ids(token) for token in ["<image>", "<|extra_200|>", *codes]}
    config = transformers.Emu3Config(
        text_config=text_config(tokenizer, num_key_value_heads=1, attention_dropout=0.0),
        vq_config={
            "codebook_size": 20, "embed_dim": 4, "latent_channels": 4, "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [3], "hidden_size": 32,
            "num_attention_heads": 1, "temporal_downsample_factor": 1,
        },
        vocabulary_map=known,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = strong(transformers.Emu3ForConditionalGeneration(config))
    images = transformers.Emu3ImageProcessor(min_pixels=256, max_pixels=1024, spatial_factor=8)
    return Emu3Bridge(model, transformers.Emu3Processor(images, tokenizer))


class TestEmu3(ShowTests):
    size = {"height": 24, "width": 24}

    @property
    def bridge(self) -> Any:  # type: ignore[override]
        return bridge()

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        return len(bridge().teller.processor.tokenizer)

    def asked(self, question: str) -> str:
        return f"<image>{question}"

    def theirs(self, prompts: list[str], negative: str = "", **more: Any) -> torch.Tensor:
        processor, model = self.bridge.teller.processor, self.bridge.teller.model
        call = {"return_for_image_generation": True, "image_area": 24 * 24, "padding": True, "return_tensors": "pt"}
        inputs = processor(text=prompts, padding_side="left", **call)
        against = processor(text=[negative] * len(prompts), padding_side="left", **call)
        vocabulary = model.vocabulary_mapping
        start = inputs["input_ids"].shape[1]

        def allowed(batch: int, ids: torch.Tensor) -> list[int]:
            return [vocabulary.eol_token_id] if (len(ids) - start) % 4 == 3 else vocabulary.image_tokens

        tokens = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            negative_prompt_ids=against["input_ids"],
            negative_prompt_attention_mask=against["attention_mask"],
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=12,
            **{"do_sample": False, "guidance_scale": 3.0, **more},
        )
        return tokens[:, start:]

    def test_negative_prompt(self) -> None:
        expected = self.theirs(THREE, negative="a big dog on the table")
        assert torch.equal(self.ours(THREE, negative_prompt="a big dog on the table"), expected)
        assert not torch.equal(self.ours(THREE), expected)

    def test_images_are_the_library_s_own(self) -> None:
        model, processor = self.bridge.teller.model, self.bridge.teller.processor
        tokens = torch.nn.functional.pad(self.theirs(THREE), (0, 3))
        pixels = model.decode_image_tokens(image_tokens=tokens, height=3, width=3)
        expected = processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")["pixel_values"]
        made = self.bridge.generate(THREE, do_sample=False, **self.size)
        for a, b in zip(made, expected, strict=True):
            assert a.size == (24, 24) and np.array_equal(np.asarray(a), np.asarray(b))
        values = self.bridge.generate(THREE, do_sample=False, output_type="np", **self.size)[0]
        assert np.abs(values * 255 - np.asarray(made[0], float)).max() <= 1.01

    def test_codes_and_size(self) -> None:
        codes = self.bridge.generate(ONE, do_sample=False, output_type="latent", height=16, width=32)[0]
        assert codes.shape == (2, 4) and int(codes.min()) >= 0 and int(codes.max()) < 20
        assert self.bridge.decoder.grid(None, None) == (90, 90), "720 x 720 pixels, as the processor has it"

    @pytest.mark.parametrize("scale", [1.0])
    def test_unguided(self, scale: float) -> None:
        assert torch.equal(self.ours(THREE, guidance_scale=scale), self.theirs(THREE, guidance_scale=scale))
