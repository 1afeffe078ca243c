"""HunyuanDiT: equal to its pipeline; a word has positions in both of its texts."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import transformers

import showtell
import tiny
from bridge_family import ONE, FamilyTests, fresh, shared

SIZES = {"use_resolution_binning": False, "height": 64, "width": 64}


def bert_tokenizer() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.CHINESE]
    pieces += [*"abcdefghijklmnopqrstuvwxyz", *("##" + c for c in "abcdefghijklmnopqrstuvwxyz")]
    pieces += [word for word in tiny.WORDS if word not in ("hundred", "painting")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.BertTokenizer(vocab=vocab, model_max_length=77)


def pipeline() -> Any:
    bert, t5 = bert_tokenizer(), tiny.t5_tokenizer(256)
    return diffusers.HunyuanDiTPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval(),
        text_encoder=transformers.BertModel(
            transformers.BertConfig(
                vocab_size=len(bert), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=64, max_position_embeddings=80, initializer_range=0.3,
            )
        ).eval(),
        tokenizer=bert,
        text_encoder_2=tiny.t5_text(t5, 48),
        tokenizer_2=t5,
        transformer=diffusers.HunyuanDiT2DModel(
            sample_size=8, num_layers=4, patch_size=2, attention_head_dim=8, num_attention_heads=2,
            in_channels=4, hidden_size=16, cross_attention_dim=32, cross_attention_dim_t5=48, pooled_projection_dim=16,
            text_len=77, text_len_t5=256,
        ).eval(),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


class TestHunyuanDiT(FamilyTests):
    maker = staticmethod(pipeline)
    in_parts = False  # its attention pooling reads the weights of layers that it does not call
    keywords = SIZES
    schedulers = [
        lambda: diffusers.DDIMScheduler(),
        lambda: diffusers.DPMSolverMultistepScheduler(),
        lambda: diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
        lambda: diffusers.HeunDiscreteScheduler(),
    ]
    grids = {(4, 4)}
    text = 77 + 256
    readers = 2

    @pytest.mark.parametrize(
        "more",
        [
            {"guidance_rescale": 0.7},
            {"original_size": (64, 64), "crops_coords_top_left": (32, 0), "target_size": (48, 32)},
        ],
    )
    def test_further_keywords(self, more: dict[str, Any]) -> None:
        expected = self.theirs(ONE, **more)
        assert np.abs(self.ours(ONE, **more) - expected).max() <= 1e-4
        assert np.abs(self.theirs(ONE) - expected).max() > 1e-5, "the keyword must matter"

    def test_not_square(self) -> None:
        more = {"height": 96, "width": 64}
        assert np.abs(self.ours(ONE, **more) - self.theirs(ONE, **more)).max() <= 1e-4


def test_sizes_are_those_of_the_training() -> None:
    adapter: Any = showtell.load(shared(pipeline)).adapter  # type: ignore[attr-defined]
    assert adapter.size(1000, 1300) == (960, 1280)
    assert adapter.size(1024, 1024) == (1024, 1024)
    assert adapter.size(1000, 1300, use_resolution_binning=False) == (1000, 1300)


def test_chinese_words() -> None:
    bridge: Any = showtell.load(fresh(pipeline))
    words = bridge.words("红色的圆在蓝正方形左边")
    first = [position for position in words["正方形"] if position < 77]
    assert first == [7, 8, 9], "one token per character, after [CLS]"
    assert [position for position in words["正方形"] if position >= 77]
