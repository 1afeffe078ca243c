"""Which text tokens stand for which word, on the tokenizers of every text encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import showtell
import tiny
from showtell.bridges.words import Piece, find_words
from showtell.errors import ShowtellError

PROMPT = "A red ring, a hundred dog's painting and the red star"
TOKENIZERS = {
    "clip": lambda: tiny.clip_tokenizer(64),
    "t5": tiny.t5_tokenizer,
    "qwen": tiny.qwen_tokenizer,
    "llama": tiny.llama_tokenizer,
    "gemma": tiny.gemma_tokenizer,
}


def joined(tokenizer: Any, ids: list[int]) -> str:
    """The text of some tokens, however the tokenizer marks spaces and word ends."""
    text = "".join(tokenizer.convert_ids_to_tokens(ids))
    for mark, plain in (("</w>", ""), ("▁", ""), ("Ġ", ""), ("<0x27>", "'")):
        text = text.replace(mark, plain)
    return text.lower()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_of_every_word(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer(PROMPT)["input_ids"]
    words = find_words(PROMPT, [Piece(tokenizer, 64)])
    assert [word.text for word in words] == PROMPT.replace(",", "").split()
    for word in words:
        # T5's tiny vocabulary is lower-case: a capital letter is unknown to it but still has a position.
        if kind in ("t5", "llama", "gemma") and word.text == "A":
            assert word.positions
            continue
        got = joined(tokenizer, [ids[i] for i in word.positions])
        assert got == word.text.lower() or (kind == "t5" and word.text == "A")
    assert len(words.find("hundred")) > 1, "a word of several tokens"
    first, second = words.find("red", 0), words.find("red", 1)
    assert first != second and words["red"] == first + second
    assert words["RED ring"] == tuple(sorted({*first, *words["ring"]}))
    assert "hun" not in words and "red" in words


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_chinese(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    prompt = "红色的圆在蓝正方形左边"
    words = find_words(prompt, [Piece(tokenizer, 64)])
    assert [word.text for word in words] == list(prompt)
    red, square = words["红色"], words["正方形"]
    assert red and square and max(red) < min(square)
    covered = {position for word in words for position in word.positions}
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(prompt)["input_ids"]
    text = [i for i, token in enumerate(ids) if token not in special]
    assert covered == set(text) or kind in ("t5", "llama", "gemma"), "every text token belongs to a character"


def test_mixed_scripts() -> None:
    words = find_words("a red 圆 star", [Piece(tiny.qwen_tokenizer(), 64)])
    assert [word.text for word in words] == ["a", "red", "圆", "star"]
    assert len(words["圆"]) == 3, "three bytes, three tokens"


def test_template_and_dropped_tokens() -> None:
    tokenizer = tiny.qwen_tokenizer()
    template = "<|im_start|>the photo of{}<|im_end|>"
    whole = tokenizer(template.format(" a red ring"))["input_ids"]
    words = find_words(" a red ring", [Piece(tokenizer, 64, start=0, template=template, drop=4)])
    kept = whole[4:]
    assert joined(tokenizer, [kept[i] for i in words["red"]]) == "red"
    assert joined(tokenizer, [kept[i] for i in words["a ring"]] if "a ring" in words else []) == ""


def test_unknown_words_are_named() -> None:
    words = find_words("a red ring", [Piece(tiny.clip_tokenizer(), 16)])
    with pytest.raises(ShowtellError, match="'star' is not in the prompt; its words are: a, red, ring"):
        words["star"]
    with pytest.raises(ShowtellError, match="occurs 1 times"):
        words.find("red", 1)


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_positions_are_those_the_denoiser_reads(name: str) -> None:
    """Changing a word changes the encoded text at its positions (and, before them, nowhere for causal
    encoders).
    """
    bridge: Any = showtell.load(tiny.shared(name))
    options = {k: v for k, v in tiny.KEYWORDS[name].items() if k in ("max_sequence_length", "clean_caption")}
    before = bridge.encode("a red ring above the dog", **options).tokens[0]
    after = bridge.encode("a red ring above the cat", **options).tokens[0]
    change = (before - after).abs().amax(dim=-1)
    positions = bridge.words("a red ring above the dog", **options)["dog"]
    assert len(positions) == (2 if name == "sd3" else 1), "SD3 reads a prompt by CLIP and by T5"
    assert all(change[position] > 1e-3 for position in positions)
    if name in ("sd", "sdxl"):
        assert change[: positions[0]].max() < 1e-5 and int(change.argmax()) >= positions[0]
    same = bridge.words("a red ring above the cat", **options)
    assert same["ring"] == bridge.words("a red ring above the dog", **options)["ring"]


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_what_is_cut_is_said_in_words(name: str) -> None:
    bridge: Any = showtell.load(tiny.make(name))
    prompt = "a red ring left of a blue star above the big green square table and a dog on the cat"
    with pytest.warns(UserWarning, match="cut off: .*on the cat") as caught:
        bridge.generate(prompt, **tiny.keywords(name, num_inference_steps=2))
    assert len([w for w in caught if "cut off" in str(w.message)]) == 1
    options = {k: v for k, v in tiny.KEYWORDS[name].items() if k == "max_sequence_length"}
    words = bridge.words(prompt, **options)
    assert words.cut and words.find("dog") in [(), *[(i,) for i in range(64)]]
    assert all(position < 32 for word in words for position in word.positions)
    tokens = bridge.encode("a red ring", **options).tokens
    assert isinstance(tokens, torch.Tensor)


def test_cut_words_are_exactly_those_without_a_token() -> None:
    tokenizer = tiny.clip_tokenizer(8)
    prompt = "a red ring left of a blue star"
    words = find_words(prompt, [Piece(tokenizer, 8)])
    assert words.cut == ["blue", "star"]
    kept = tokenizer(prompt, truncation=True, max_length=8)["input_ids"]
    assert joined(tokenizer, [kept[i] for i in words.find("a", 1)]) == "a"
    assert [word.text for word in words if not word.positions] == ["blue", "star"]
