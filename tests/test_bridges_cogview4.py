"""CogView4: equal to its pipeline; texts of different lengths share a batch without touching each other."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import tokenizers
import transformers

import showtell
import tiny
from bridge_family import ONE, FamilyTests, shared

LONG = "a red ring left of a blue star above the big green square table and a dog on the cat"


def glm_tokenizer() -> Any:
    """Byte-level pairs behind two special tokens, padded on the left."""
    merges = tiny._merges(["Ġ" + word for word in tiny.WORDS if word not in ("hundred", "painting")], "")
    special = ["<|endoftext|>", "[gMASK]", "<sop>"]
    pieces = tiny._bytes() + ["".join(pair) for pair in merges] + special
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(special)
    inner.post_processor = tokenizers.processors.Sequence(
        [
            tokenizers.processors.ByteLevel(trim_offsets=False),
            tokenizers.processors.TemplateProcessing(
                single="[gMASK] <sop> $A", special_tokens=[(name, vocab[name]) for name in special[1:]]
            ),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )


def pipeline() -> Any:
    tokenizer = glm_tokenizer()
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(
            transformers.GlmConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, head_dim=16, initializer_range=0.3,
                pad_token_id=0,
            )
        ).eval(),
        vae=tiny.vae(),
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, text_embed_dim=32, time_embed_dim=16, condition_dim=8, sample_size=8,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )  # fmt: skip


class TestCogView4(FamilyTests):
    maker = staticmethod(pipeline)
    keywords = {"max_sequence_length": 64}
    schedulers = [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, use_karras_sigmas=True),
    ]
    grids = {(4, 4)}

    def test_further_keywords(self) -> None:
        for more in ({"original_size": (64, 48), "crops_coords_top_left": (8, 0)}, {"sigmas": [0.9, 0.5, 0.1]}):
            expected = self.theirs(ONE, **more)
            assert np.abs(self.ours(ONE, **more) - expected).max() <= 1e-4
            assert np.abs(self.theirs(ONE) - expected).max() > 1e-5, "the keyword must matter"

    def test_lengths_that_need_different_padding(self) -> None:
        tokens = self.pipeline._get_glm_embeds([LONG]).shape[1]
        assert tokens > self.pipeline._get_glm_embeds(ONE).shape[1] >= 16
        together = self.ours([LONG, *ONE], seed=3)
        assert np.abs(self.ours([LONG], seed=3)[0] - together[0]).max() <= 1e-4
        swapped = self.ours([*ONE, LONG], seed=3)
        assert np.abs(self.ours(ONE, seed=3)[0] - swapped[0]).max() <= 1e-4
        # A long conditional text beside a short empty one, in one batch here and in two calls there.
        assert np.abs(self.ours([LONG]) - self.theirs([LONG])).max() <= 1e-4


def test_padding_is_last_and_words_are_first() -> None:
    bridge: Any = showtell.load(shared(pipeline))
    words = bridge.words("a red ring")
    assert min(words["red"]) >= 2, "two special tokens precede"
    assert [position for word in words for position in word.positions] == list(range(2, 5))
