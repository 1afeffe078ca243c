"""Vision-language models: captions and answers are the library's own greedy ones, techniques steer them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import showtell
import tiny
from showtell.bridges.base import Technique
from showtell.bridges.qwen2_vl import Qwen2VLProcessor
from showtell.bridges.vlm import TEMPLATES, VisionLanguageBridge
from showtell.errors import ShowtellError

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
SIZE = {"height": 16, "width": 16}


def text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip


def llava() -> tuple[Any, Any]:
    tokenizer = tiny.llama_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    names = ["vision_start", "vision_end", "image_pad", "video_pad"]
    tokenizer = tiny.qwen_tokenizer()
    special = [f"<|{name}|>" for name in ["im_start", "im_end", *names]]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    ids = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2
    }  # fmt: skip
    config = transformers.Qwen2VLConfig(
        text_config={**text_config(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
    )
    images = transformers.Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=256)
    return transformers.Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor(images, tokenizer)


def blip2(t5: bool) -> tuple[Any, Any]:
    tokenizer = tiny.t5_tokenizer(64) if t5 else tiny.qwen_tokenizer()
    processor = transformers.Blip2Processor(transformers.BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=3)
    if t5:
        language = {
            "model_type": "t5", "vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 32,
            "num_layers": 2, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
        }  # fmt: skip
    else:
        language = {
            "model_type": "opt", **text_config(tokenizer), "ffn_dim": 32, "word_embed_proj_dim": 16,
            "max_position_embeddings": 128, "bos_token_id": tokenizer.eos_token_id,
        }  # fmt: skip
    qformer = {**VISION, "encoder_hidden_size": 16, "vocab_size": 8}
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.Blip2ForConditionalGeneration(config), processor


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava, "qwen2_vl": qwen2_vl, "blip2-opt": lambda: blip2(False), "blip2-t5": lambda: blip2(True)
}  # fmt: skip


@pytest.fixture(scope="module", params=MAKERS)
def bridge(request: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = MAKERS[request.param]()
    for name, parameter in model.named_parameters():
        # Random models of the usual scale write the same whatever they see.
        if parameter.ndim > 1:
            parameter.data *= 6
        if name == "lm_head.weight":
            # Bytes that are no character would all decode alike.
            words = processor.tokenizer.convert_ids_to_tokens(range(len(parameter)))
            plain = [word is not None and word.isascii() and "<" not in word for word in words]
            parameter.data[~torch.tensor(plain)] = 0.0
    return VisionLanguageBridge(model, processor)


def pixels(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


def reference(bridge: Any, image: np.ndarray, text: str, kind: int, **more: Any) -> str:
    """The library's way, one sample at a time."""
    pair = TEMPLATES[bridge.model.config.model_type]
    template = pair[1] if pair[kind] is None else pair[kind]
    prompt = template.replace("{image}", str(getattr(bridge.processor, "image_token", ""))).replace("{}", text)
    inputs = bridge.processor(images=[image], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        ids = bridge.model.generate(**inputs, **{"do_sample": False, "max_new_tokens": 8, **more})
    if not bridge.model.config.get_text_config().is_encoder_decoder:
        ids = ids[:, inputs["input_ids"].shape[1] :]
    return bridge.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


QUESTIONS = ["a red ring", "the big dog on the table", "cat"]


def test_answers_are_the_library_s_own(bridge: Any) -> None:
    images = pixels()
    expected = [reference(bridge, image, text, 1) for image, text in zip(images, QUESTIONS, strict=True)]
    assert bridge.answer(images, QUESTIONS, max_new_tokens=8) == expected
    assert bridge.answer(images, QUESTIONS, max_new_tokens=8, batch_size=2) == expected
    assert len(set(expected)) > 1


def test_captions_are_the_library_s_own(bridge: Any) -> None:
    images = pixels()
    expected = [reference(bridge, image, "Describe this image in one sentence.", 0) for image in images]
    assert bridge.caption(images, max_new_tokens=8) == expected
    assert len(set(expected)) > 1, "the image must matter for equality to mean anything"
    beams = [reference(bridge, image, "Describe this image in one sentence.", 0, num_beams=2) for image in images]
    assert bridge.caption(images, max_new_tokens=8, num_beams=2) == beams


def test_one_image_and_many_questions_and_the_other_way(bridge: Any) -> None:
    image = pixels(1)
    several = bridge.answer(image, QUESTIONS, max_new_tokens=6)
    assert several == [bridge.answer(image, text, max_new_tokens=6)[0] for text in QUESTIONS]
    images = pixels(2)
    both = bridge.answer(images, QUESTIONS[0], max_new_tokens=6)
    assert both == [bridge.answer(one, QUESTIONS[0], max_new_tokens=6)[0] for one in images]


class Never(Technique):
    """Forbids some tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.forbidden = tokens

    def logits(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape[0] == len(run.prompts)
        logits = logits.clone()
        logits[:, self.forbidden] = -torch.inf
        return logits


class Write(Technique):
    """Puts its own tokens in place of the model's."""

    def __init__(self, tokens: list[int]) -> None:
        self.written = tokens

    def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape == (len(run.prompts),)
        return torch.full_like(tokens, self.written[run.step])


def test_techniques_steer_the_library_s_loop(bridge: Any) -> None:
    tokenizer, images = bridge.processor.tokenizer, pixels(2)
    plain = bridge.answer(images, QUESTIONS[0], max_new_tokens=4)
    assert bridge.answer(images, QUESTIONS[0], max_new_tokens=4, using=[Technique(), Never([])]) == plain
    ids = tokenizer(plain[0], add_special_tokens=False)["input_ids"]
    assert bridge.answer(images[0], QUESTIONS[0], max_new_tokens=4, using=[Never(ids)]) != plain[:1]
    wanted = tokenizer(" red ring red", add_special_tokens=False)["input_ids"][:3]
    said = bridge.answer(images, QUESTIONS[0], max_new_tokens=3, using=[Never([]), Write(wanted)])
    assert said == [tokenizer.decode(wanted).strip()] * 2
    with pytest.raises(ShowtellError, match="leave num_beams out"):
        bridge.answer(images, "a", num_beams=2, using=[Never([])])


def test_prompt_and_finish_hooks(bridge: Any) -> None:
    class Rewrite(Technique):
        def prompt(self, run: Any, prompts: list[str]) -> list[str]:
            return [QUESTIONS[1]] * len(prompts)

        def finish(self, run: Any, outputs: list[str]) -> list[str]:
            return [text + "!" for text in outputs]

    image = pixels(1)
    expected = bridge.answer(image, QUESTIONS[1], max_new_tokens=4)[0] + "!"
    assert bridge.answer(image, "cat", max_new_tokens=4, using=[Rewrite()]) == [expected]


def test_sampling_draws_from_the_seed(bridge: Any) -> None:
    image, state = pixels(1), torch.random.get_rng_state()
    one, again, other = (
        bridge.answer(image, "cat", do_sample=True, max_new_tokens=8, seed=seed, temperature=3.0) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are left alone"


def test_saved_and_loaded_again(bridge: Any, tmp_path: Path) -> None:
    bridge.save(tmp_path)
    again: Any = showtell.load(tmp_path)
    assert again.can == {"caption", "answer", "attend"} and again.name == bridge.name
    images = pixels(2)
    assert again.answer(images, QUESTIONS[:2], max_new_tokens=6) == bridge.answer(
        images, QUESTIONS[:2], max_new_tokens=6
    )


def test_languages(bridge: Any) -> None:
    if bridge.name == "Blip2":
        with pytest.raises(ShowtellError, match="Blip2 captions in English only"):
            bridge.caption(pixels(1), language="zh")
        return
    expected = reference(bridge, pixels(1)[0], "用一句话描述这张图片。", 1)
    assert bridge.caption(pixels(1), language="zh", max_new_tokens=8) == [expected]
    with pytest.raises(ShowtellError, match="unsupported language 'fr'; use one of: en, es, zh"):
        bridge.caption(pixels(1), language="fr")


def test_chat_template_is_used(bridge: Any) -> None:
    # BLIP-2's processor puts the image in front of any text.
    image = "" if bridge.name == "Blip2" else str(bridge.processor.image_token)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}" + image + "{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} and the answer"
    )
    processor = bridge.processor
    processor.chat_template = template
    try:
        got = bridge.answer(pixels(1), "cat", max_new_tokens=6)
    finally:
        processor.chat_template = None
    inputs = processor(images=[pixels(1)[0]], text=[f"{image}cat and the answer"], return_tensors="pt")
    ids = bridge.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    if not bridge.model.config.get_text_config().is_encoder_decoder:
        ids = ids[:, inputs["input_ids"].shape[1] :]
    assert got == [processor.batch_decode(ids, skip_special_tokens=True)[0].strip()]


def test_bad_calls(bridge: Any) -> None:
    for images, questions, message in (
        ([], "a", "no images given"),
        (pixels(), ["a", "b"], "images: got 3 for|questions: got 2 for"),
        (pixels(), [], "questions must be"),
        (pixels(), " ", "none of them empty"),
    ):
        with pytest.raises(ShowtellError, match=message):
            bridge.answer(images, questions)
    with pytest.raises(ShowtellError, match=r"the library's generate: .*nonsense"):
        bridge.answer(pixels(1), "a", nonsense=3)
