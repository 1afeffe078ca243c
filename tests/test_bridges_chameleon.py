"""Chameleon: captions, answers and picture tokens equal to the library's own."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers

import tiny
from causal_models import TellTests, pixels, strong, text_config
from showtell.bridges.chameleon import ChameleonBridge
from showtell.bridges.families import table
from showtell.errors import UnsupportedError


@cache
def bridge() -> Any:
    tokenizer = tiny.llama_tokenizer()
    codes = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(i)) + "Z" for i in range(20)]
    special = ["<image>", "<racm3:break>", "<eoss>", "<reserved08706>", *codes]
    tokenizer.add_special_tokens({"sep_token": "<reserved08706>", "additional_special_tokens": special})
    known = {token: tokenizer.convert_tokens_to_ids(token) for token in ["<image>", *codes]}
    config = transformers.ChameleonConfig(
        **text_config(tokenizer),
        vocabulary_map=known,
        vq_config={
            "embed_dim": 8, "num_embeddings": 20, "latent_channels": 8, "resolution": 16, "base_channels": 32,
            "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
        },
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = strong(transformers.ChameleonForConditionalGeneration(config))
    size = {"height": 16, "width": 16}
    images = transformers.ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    return ChameleonBridge(model, transformers.ChameleonProcessor(images, tokenizer, image_seq_length=16))


class TestChameleon(TellTests):
    @property
    def bridge(self) -> Any:  # type: ignore[override]
        return bridge()

    def asked(self, question: str) -> str:
        return f"{question}<image>"

    def test_picture_tokens(self) -> None:
        model, processor = bridge().model, bridge().processor
        inputs = processor.image_processor(list(pixels()), return_tensors="pt")
        tokens = bridge().image_tokens(pixels())
        assert torch.equal(tokens, model.get_image_tokens(inputs["pixel_values"]))
        assert tokens.shape == (2, 16) and set(tokens.flatten().tolist()) <= set(
            model.model.vocabulary_mapping.image_tokens
        )

    def test_no_images_and_why(self) -> None:
        with pytest.raises(UnsupportedError, match=r"Chameleon cannot generate .*answer, attend, caption") as caught:
            bridge().generate("a red ring")
        named = str(caught.value).rstrip(".").split("Bridges that can: ")[1].split("; ")
        assert {"Janus", "Emu3", "Stable Diffusion XL"} <= set(named) and "Chameleon" not in named
        assert "Chameleon: the library reads its image tokens and has no decoder" in table()
