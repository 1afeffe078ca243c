"""RecA: what is read stands in the caption's place, what learns and what does not, every host."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from examples import run_example
from hosts import bridge_of as image_bridge
from hosts import hosts
from laboratory import Laboratory
from PIL import Image
from worlds import bright

import small_unified
import test_bridges_emu3
import test_bridges_janus
from showtell.bridges.janus import JanusBridge
from showtell.bridges.vlm import VisionLanguageBridge
from showtell.errors import ShowtellError
from showtell.papers.unify import reca as module
from showtell.papers.unify.reca import INSTRUCTION, reca, reca_loss, short, understood
from showtell.train.image_text import reading_loss, writing_loss, written_codes
from showtell.train.noising import Noising
from showtell.train.queries import Queries, told_loss
from showtell.world import Scene
from test_bridges_vlm import MAKERS


def fresh(name: str) -> Any:
    if name == "image_text_lm":
        return small_unified.bridge(eye=True)
    own = test_bridges_janus.bridge()
    return JanusBridge(copy.deepcopy(own.decoder.model).float(), own.decoder.processor)


def pictures(count: int = 2, size: int = 64) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def features(bridge: Any, images: Any) -> torch.Tensor:
    """What the model itself reads of pictures."""
    model, inputs = bridge.decoder.model, bridge.teller.inputs(images, ["a", "a"])
    with torch.no_grad():
        if hasattr(model, "eye"):
            return model.read(inputs["pixel_values"])
        return model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output


@pytest.mark.parametrize("name", hosts("reca", "janus", "image_text_lm"))
def test_what_is_read_stands_where_the_caption_would(name: str) -> None:
    """The features one after the other, then words, then what opens an image; another picture changes nothing else."""
    bridge = fresh(name)
    one, two = pictures()
    told, mask = understood(bridge, [one, two], "a red ring")
    seen = features(bridge, [one, two])
    at = int((told[0] == seen[0, 0]).all(-1).nonzero()[0])
    assert torch.equal(told[:, at : at + seen.shape[1]], seen) and mask.all()
    opening = bridge.decoder.opening(bridge.decoder.grid(None, None))
    assert torch.equal(told[0, -1], bridge.decoder.model.get_input_embeddings().weight[opening])
    changed = (told[0] != told[1]).any(-1).nonzero().flatten()
    assert changed.min() >= at and changed.max() < at + seen.shape[1]


@pytest.mark.parametrize("name", ["janus", "image_text_lm"])
def test_the_loss_is_the_decoding_loop_s_own(name: str) -> None:
    """Teacher forcing in one pass, against tokens forced on the loop one after the other."""
    bridge, prompts = fresh(name), ["a red ring", "the ring"]
    codes = written_codes(bridge, pictures())
    decoder, grid = bridge.decoder, bridge.decoder.grid(None, None)
    given = decoder.encode(prompts, grid)
    opened = decoder.model.get_input_embeddings()(torch.full((2, 1), decoder.opening(grid)))
    told = torch.cat([given.tokens, opened], dim=1)
    loss = writing_loss(bridge, told, torch.nn.functional.pad(given.mask, (0, 1), value=1), codes)
    assert loss.item() == pytest.approx(small_unified.forced_loss(bridge, prompts, codes), rel=1e-3)


@pytest.mark.parametrize("name", ["janus", "image_text_lm"])
def test_the_encoder_stays_and_the_rest_learns_to_redraw(name: str) -> None:
    bridge, images = fresh(name), pictures()
    before = {key: value.clone() for key, value in bridge.decoder.model.state_dict().items()}
    asks = {key: one.requires_grad for key, one in bridge.decoder.model.named_parameters()}
    first = reca_loss(bridge, images).item()
    reca(bridge, images, steps=12, batch_size=2, lr=1e-2)
    assert reca_loss(bridge, images).item() < 0.8 * first
    after = bridge.decoder.model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert any("q_proj" in key for key in moved)
    frozen = ("eye.", "adaptor.", "vq.", "model.vision_model.", "model.aligner.", "model.vqmodel.")
    assert not [key for key in moved if key.startswith(frozen)]
    assert asks == {key: one.requires_grad for key, one in bridge.decoder.model.named_parameters()}


def test_reading_is_trained_beside_it() -> None:
    """With questions the answers get likelier, without them nothing sees to it."""
    images, asked = pictures(), [(one, "a ring", "blue") for one in pictures()]

    def left(*known: Any) -> float:
        bridge = fresh("image_text_lm")
        reca(bridge, images, steps=8, batch_size=2, lr=3e-3, asked=known)
        return reading_loss(bridge, images, ["a ring"] * 2, ["blue"] * 2).item()

    assert left(*asked) < 0.5 * left()


@pytest.mark.host("reca", "emu3", "it reads pictures as the very tokens that it writes")
def test_models_that_read_what_they_write_are_refused() -> None:
    for bridge in (test_bridges_emu3.bridge(), small_unified.bridge()):
        with pytest.raises(ShowtellError, match=r"by an encoder of its own; take Janus"):
            understood(bridge, pictures())
    with pytest.raises(ShowtellError, match="take Janus"):
        understood(image_bridge("sd"), pictures())


@pytest.mark.parametrize("name", hosts("reca", "pixart", "sd3"))
@pytest.mark.host("reca", "llava")
def test_diffusion_models_are_told_by_a_reader(name: str) -> None:
    """Another picture read, another loss; gradients reach queries, connector and denoiser, not the reader."""
    reader, bridge = VisionLanguageBridge(*MAKERS["llava"]()), image_bridge(name)
    tokens = bridge.encode(["a"]).tokens
    torch.manual_seed(0)
    queries = Queries(reader, tokens.shape[1], tokens.shape[2])
    noising, images = Noising(bridge, height=32, width=32), pictures(2, 32)
    denoiser = bridge.adapter.denoiser
    parameter = next(one for one in denoiser.parameters() if one.ndim > 1)
    needed = parameter.requires_grad
    parameter.requires_grad_(True)

    def loss(read: Any) -> torch.Tensor:
        return told_loss(noising, queries(read, INSTRUCTION), images, torch.Generator().manual_seed(0))

    value = loss(images)
    grads = torch.autograd.grad(value, [queries.queries, queries.connector[0].weight, parameter])
    assert all(float(grad.abs().max()) > 0 for grad in grads)
    assert value.item() != loss(images[::-1]).item() and not any(
        one.grad is not None for one in reader.model.parameters()
    )
    assert {key.split(".")[0] for key in queries.state_dict()} == {"queries", "connector"}
    parameter.requires_grad_(needed)


def test_short_captions() -> None:
    scene = Scene.parse("a red star left of a blue heart")
    assert short(scene, random.Random(0), 1.0) == "a red star and a blue heart"
    assert short(scene, random.Random(0), 0.0) == "a star and a heart"


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 16, "UNLABELLED": 8, "STEPS": 1, "AFTER": 1, "BATCH": 4}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "score_images", lambda score, images, scenes, judge="first": bright(images))
    lab: Any = Laboratory(seeds=1)
    tokens, masked, kept = module.experiment(lab)
    assert list(tokens.scores) == ["reca", "continued", "start", "another image", "own tokens"]  # type: ignore[attr-defined]
    assert tokens.control == masked.control == "another image" and kept.scores["reca"].shape == (1, 2)  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_example(module.EXAMPLE, monkeypatch, {"Janus": fresh("janus")})
    assert found["again"].size == (16, 16) and len(found["images"]) == 2
