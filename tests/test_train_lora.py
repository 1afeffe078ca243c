"""LoRAs of one denoiser: they change nothing at first, are models of their own, learn, and leave the base alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import showtell
import tiny
from showtell.errors import ShowtellError
from showtell.train.lora import ATTENTION, Adapted, add_lora, load_lora, lora_size, lora_weights, merge_lora, train_lora
from unet_variants import pictures


@pytest.fixture
def bridge() -> Any:
    return showtell.load(tiny.make("sd"))


def drawn(model: Any) -> torch.Tensor:
    short = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    return torch.stack(model.generate(["a ring"], seed=3, **short))


def test_they_are_models_of_their_own(bridge: Any) -> None:
    plain = drawn(bridge)
    for name in ("a", "b"):
        add_lora(bridge, name, rank=2)
    assert torch.equal(drawn(Adapted(bridge, "a")), plain), "new ones change nothing"
    a, b = (lora_weights(bridge, name) for name in ("a", "b"))
    load_lora(bridge, {key: torch.ones_like(value) for key, value in a.items()})
    changed = drawn(Adapted(bridge, "a"))
    assert not torch.allclose(changed, plain, atol=1e-4)
    assert torch.equal(drawn(Adapted(bridge, "b")), plain) and torch.equal(drawn(Adapted(bridge, None)), plain)
    assert torch.equal(drawn(Adapted(bridge, "a")), changed)
    assert not a.keys() & b.keys() and all(min(v.shape) == 2 for v in b.values())


def test_they_learn_and_the_base_does_not(bridge: Any) -> None:
    before = {name: value.clone() for name, value in bridge.adapter.denoiser.state_dict().items()}
    for name in ("one", "other"):
        add_lora(bridge, name, rank=2)
    found = train_lora(bridge, "one", pictures(2), ["a ring", "a star"], 2, batch_size=2, height=32, width=32)
    assert any((value != 0).any() for name, value in found.items() if "lora_B" in name)
    assert all((v == 0).all() for name, v in lora_weights(bridge, "other").items() if "lora_B" in name)
    now = {name.replace(".base_layer", ""): value for name, value in bridge.adapter.denoiser.state_dict().items()}
    assert all(torch.equal(value, now[name]) for name, value in before.items())


def test_merged_they_are_the_model(bridge: Any) -> None:
    keys = bridge.adapter.denoiser.state_dict().keys()
    add_lora(bridge, "a", rank=2)
    weights = lora_weights(bridge, "a")
    load_lora(bridge, {key: torch.full_like(value, 0.1) for key, value in weights.items()})
    changed = drawn(Adapted(bridge, "a"))
    merge_lora(bridge, "a")
    assert torch.allclose(drawn(bridge), changed, atol=1e-4) and bridge.adapter.denoiser.state_dict().keys() == keys


def test_what_is_refused(bridge: Any) -> None:
    with pytest.raises(ShowtellError, match="no LoRA called 'a'"):
        lora_weights(bridge, "a")
    with pytest.raises(ShowtellError, match="no place"):
        load_lora(bridge, {"conv_in.lora_A.a.weight": torch.zeros(2)})


@pytest.mark.parametrize("layers", [ATTENTION, ("proj_out", "conv1")])
def test_sizes_are_known_beforehand(bridge: Any, layers: tuple[str, ...]) -> None:
    """Of linear layers and of convolutions, wider than a pixel too."""
    wanted = lora_size(bridge, layers, rank=3)
    add_lora(bridge, "a", 3, layers)
    assert wanted == sum(value.numel() for value in lora_weights(bridge, "a").values()) > 0
