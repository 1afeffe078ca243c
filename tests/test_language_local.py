"""Local causal language models: tiny random ones of the library's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from causal_models import strong, text_config
from showtell import language
from showtell.errors import ShowtellError
from tiny import qwen_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ["a red ring", "the big dog on the table", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("lm")
    tokenizer = qwen_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**text_config(tokenizer), max_position_embeddings=256)
        model = strong(transformers.Qwen2ForCausalLM(config))
    model.generation_config.temperature, model.generation_config.do_sample = 0.1, True  # must not matter
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def lm(folder: Path) -> Any:
    return language.load(folder)


def theirs(lm: Any, prompt: str, tokens: int) -> str:
    """The library's own greedy answer, one conversation at a time."""
    inputs = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = lm.model.generate(**inputs, do_sample=False, temperature=None, max_new_tokens=tokens)
    return lm.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_greedy_answers_are_the_library_s_own(lm: Any) -> None:
    expected = [theirs(lm, prompt, 8) for prompt in PROMPTS]
    assert len(set(expected)) == 3
    assert lm.complete(PROMPTS, max_tokens=8) == [[text] for text in expected]
    assert lm.chat(PROMPTS[1], max_tokens=8) == expected[1]


def test_samples_depend_on_their_seed_only(lm: Any, folder: Path) -> None:
    call = {"temperature": 1.5, "max_tokens": 6}
    together = lm.complete(PROMPTS, n=2, seed=4, **call)
    assert lm.complete(PROMPTS[1:2], n=2, seed=4, **call) == together[1:2]
    assert language.load(folder, batch=1).complete(PROMPTS, n=2, seed=4, **call) == together
    assert lm.complete(PROMPTS, n=2, seed=5, **call) != together
    assert together[0][0] != together[0][1], "the samples of one conversation differ"


def test_sampling_follows_the_probabilities() -> None:
    from showtell.language.local import _seeded

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    process = _seeded(2.0, [(7, i) for i in range(4000)])
    drawn = process(torch.zeros(4000, 1), logits).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / 4000
    assert (share - (logits[0] / 2).softmax(-1)).abs().max() < 0.03


def test_stops_and_lengths(lm: Any) -> None:
    whole = lm.chat(PROMPTS[1], max_tokens=8)
    stop = whole[len(whole) // 2]
    assert lm.chat(PROMPTS[1], max_tokens=8, stop=[stop]) == whole[: whole.index(stop)].strip()
    assert len(lm.chat(PROMPTS[1], max_tokens=2)) < len(whole)
    with pytest.raises(ShowtellError, match="more than the 256 that"):
        lm.chat("a red ring " * 80, max_tokens=8)


def test_prompts(lm: Any) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert (
        lm.prompt(messages) == "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n"
    )
    lm.tokenizer.chat_template, kept = None, lm.tokenizer.chat_template
    try:
        assert lm.prompt(messages) == "system: x\nuser: y\nassistant:"
    finally:
        lm.tokenizer.chat_template = kept


def test_tasks_say_when_a_model_is_too_small_for_them(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = lm.complete
    monkeypatch.setattr(lm, "complete", lambda *args, **options: complete(["a red ring"], max_tokens=4))
    with pytest.raises(ShowtellError, match="gave no usable answer, also after one repair"):
        lm.split("a red ring")


@pytest.mark.parametrize(
    "source, told",
    [("no-such-model", "there is no language model 'no-such-model'"), ("./missing/model", "there is no language model"),
     ("owner/not-here", "cannot load the language model owner/not-here"), ("", "there is no language model ''")],
)  # fmt: skip
def test_what_cannot_be_loaded(source: str, told: str) -> None:
    with pytest.raises(ShowtellError, match=told) as caught:
        language.load(source)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ShowtellError, match="cannot load the language model"):
        language.load(tmp_path)
