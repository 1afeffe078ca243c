"""Janus: both losses against the loops that read and write, one encoder exchanged without the other, every host."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from examples import run_example
from hosts import bridge_of as image_bridge
from hosts import hosts
from laboratory import Laboratory
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from worlds import bright

import small_unified
import test_bridges_janus
from showtell.bridges.janus import JanusBridge
from showtell.errors import ShowtellError
from showtell.papers.unify import janus as module
from showtell.papers.unify.janus import Places, janus_loss, swap_encoder
from showtell.train.image_text import drawing_loss, reading_loss, written_codes

PROMPTS = ["a red ring", "the big blue star"]
QUESTIONS = ["a ring", "the big star"]
ANSWERS = ["red", "blue star"]


def fresh(name: str, eye: bool = True) -> Any:
    if name == "image_text_lm":
        return small_unified.bridge(eye=eye)
    own = test_bridges_janus.bridge()
    return JanusBridge(copy.deepcopy(own.decoder.model), own.decoder.processor)


def pictures(count: int = 2) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def tower(side: int = 32, patch: int = 8) -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=side,
            patch_size=patch,
        )
    ).eval()


@pytest.mark.parametrize("name", hosts("janus", "janus", "image_text_lm"))
def test_losses_are_what_reading_and_writing_say(name: str) -> None:
    bridge, images = fresh(name), pictures()
    codes = written_codes(bridge, images)
    expected = small_unified.forced_loss(bridge, PROMPTS, codes)
    drawn = drawing_loss(bridge, images, PROMPTS, drop=0.0)
    assert drawn.item() == pytest.approx(expected, rel=1e-3)
    read = reading_loss(bridge, images, QUESTIONS, ANSWERS)
    likelihood = float(bridge.teller.log_probability(images, QUESTIONS, ANSWERS).sum())
    tokens = bridge.teller.processor.tokenizer(ANSWERS, add_special_tokens=False)["input_ids"]
    assert read.item() == pytest.approx(-likelihood / sum(map(len, tokens)), rel=1e-4)
    both = janus_loss(bridge, images, QUESTIONS, ANSWERS, PROMPTS, drop=0.0)
    assert both.item() == pytest.approx(read.item() + drawn.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["janus", "image_text_lm"])
def test_dropped_prompts_are_those_of_guidance(name: str) -> None:
    """With every prompt dropped it does not matter what was said (in prompts of one length)."""
    bridge, images = fresh(name), pictures()
    one, two = (drawing_loss(bridge, images, texts, drop=1.0) for texts in (["a red ring"] * 2, ["the big star"] * 2))
    said = drawing_loss(bridge, images, ["a red ring"] * 2, drop=0.0)
    assert one.item() == pytest.approx(two.item(), rel=1e-5) and one.item() != pytest.approx(said.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["janus", "image_text_lm"])
def test_each_path_has_parts_of_its_own(name: str) -> None:
    """Writing sends no gradient to the encoder that reads; reading none to the tokenizer."""
    bridge, images = fresh(name), pictures()
    model = bridge.decoder.model
    own = ("eye.", "adaptor.") if name == "image_text_lm" else ("model.vision_model.", "model.aligner.")
    reads = [one for key, one in model.named_parameters() if key.startswith(own)]
    for parameter in reads:
        parameter.requires_grad_(True)
    drawn = torch.autograd.grad(drawing_loss(bridge, images, PROMPTS, 0.0), reads, allow_unused=True)
    assert all(grad is None for grad in drawn)
    read = torch.autograd.grad(reading_loss(bridge, images, QUESTIONS, ANSWERS), reads, allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 0 for grad in read)


@pytest.mark.parametrize("name", ["janus", "image_text_lm"])
def test_exchanging_the_encoder_leaves_what_is_written(name: str) -> None:
    bridge, images = fresh(name), pictures()
    call: dict[str, Any] = {"seed": 0, "output_type": "latent"}
    shown = torch.stack(bridge.generate(PROMPTS, **call))
    told = bridge.teller.log_probability(images, QUESTIONS, ANSWERS)
    count = 16
    encoder = tower(32, 8)
    before = swap_encoder(bridge, encoder)
    assert torch.equal(torch.stack(bridge.generate(PROMPTS, **call)), shown)
    now = bridge.teller.log_probability(images, QUESTIONS, ANSWERS)
    assert not torch.allclose(now, told) and isinstance(before, torch.nn.Module)
    places = Places(encoder, count)
    pixels = torch.rand(1, 3, 16, 16)
    assert places(pixels).last_hidden_state.shape == (1, 16, 8), "at its own size, without the class token"
    with pytest.raises(ShowtellError, match="gives 4 features, the model reads 16"):
        swap_encoder(bridge, tower(32, 16))


def test_bad_calls() -> None:
    for bridge in (small_unified.bridge(), image_bridge("sd")):
        with pytest.raises(ShowtellError, match="by an encoder of its own; take Janus"):
            swap_encoder(bridge, tower())


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"SCENES": 16, "STEPS": 1, "BATCH": 4, "CLIP_STEPS": 1, "DECODER_STEPS": 1, "CODES": 8}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "score_images", lambda score, images, scenes, judge="first": bright(images))
    lab: Any = Laboratory(seeds=1)
    told, shown = module.experiment(lab)
    assert told.control == "random encoder" and told.trained and set(told.scores) == set(module.ARMS)  # type: ignore[attr-defined]
    assert shown.scores["shared semantic tokens"].shape == (1, 2)  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    clip: Any = SimpleNamespace(model=SimpleNamespace(vision_model=tower()))
    found = run_example(module.EXAMPLE, monkeypatch, {"Janus": fresh("janus"), "clip": clip})
    assert float(found["loss"]) > 0 and isinstance(found["before"], torch.nn.Module)
