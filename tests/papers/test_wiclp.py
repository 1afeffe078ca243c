"""WiCLP: the window by hand, off below a timestep, a frozen denoiser, what tokens contribute to tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts import PROMPTS, bridge_of, hosts, keywords, sampled
from laboratory import run_example
from worlds import WorldLab

import test_bridges_clip
from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.measure.prompts import PromptSet
from showtell.measure.text_encoders import contributions
from showtell.papers.compose import wiclp
from showtell.papers.compose.wiclp import WiCLP, WindowProjection, learn_projection


def drawn(width: int, window: int = 5) -> WindowProjection:
    made = WindowProjection(width, window).requires_grad_(False)
    made.mix.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    made.mix.bias.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return made


def width_of(name: str) -> int:
    return int(bridge_of(name).encode("a ring").tokens.shape[-1])


def test_the_window_by_hand() -> None:
    tokens, made = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(2)), drawn(3)
    assert torch.equal(WindowProjection(3)(tokens), tokens), "at first nothing changes"
    wanted = tokens + made.mix.bias
    for i in range(6):
        for j in range(-2, 3):
            if 0 <= i + j < 6:
                wanted[:, i] += tokens[:, i + j] @ made.mix.weight[:, :, j + 2].T
    assert torch.allclose(made(tokens), wanted, atol=1e-5)
    alone = drawn(3, 1)
    assert torch.allclose(alone(tokens)[:, :2], alone(tokens[:, :2])), "CLP sees no neighbours"
    for window in (0, 2):
        with pytest.raises(ShowtellError, match="odd"):
            WindowProjection(3, window)


@pytest.mark.parametrize("name", hosts("wiclp", "sd", "sdxl"))
def test_it_attaches_and_is_switched_off(name: str) -> None:
    plain, projection = sampled(name), drawn(width_of(name))
    changed = sampled(name, WiCLP(projection, off_below=0))
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    assert torch.equal(sampled(name, WiCLP(projection, off_below=1001)), plain)
    assert torch.equal(sampled(name, WiCLP(WindowProjection(width_of(name)), off_below=0)), plain)
    seen: list[tuple[float, bool]] = []

    class Watched(WiCLP):
        def conditioning(self, run: Any, text: Any) -> Any:
            found = super().conditioning(run, text)
            seen.append((float(run.timestep), found is not None))
            return found

    early = sampled(name, Watched(projection, off_below=500))
    assert {on for _, on in seen} == {True, False} and all(on == (time >= 500) for time, on in seen)
    assert not torch.equal(early, plain) and not torch.equal(early, changed)
    alone = sampled(name, WiCLP(projection, off_below=0), prompts=PROMPTS[:1])
    assert torch.allclose(alone[0], changed[0], atol=1e-4)
    unguided = sampled(name, WiCLP(projection, off_below=0), guidance_scale=1.0)
    assert not torch.equal(unguided, sampled(name, guidance_scale=1.0))


def test_a_projection_of_another_width() -> None:
    with pytest.raises(ShowtellError, match="tokens of 3 channels"):
        sampled("sd", WiCLP(drawn(3)))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_it_learns_through_a_frozen_denoiser(name: str) -> None:
    bridge, call = bridge_of(name), keywords(name)
    before = {key: value.clone() for key, value in bridge.adapter.denoiser.state_dict().items()}
    size = {"height": 32, "width": 32}
    latents = bridge.to_latents(
        np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8).astype(np.float32) / 255, **size
    )
    made = learn_projection(bridge, latents, PROMPTS, steps=8, batch_size=4, lr=0.05, **size)
    assert all(torch.equal(value, before[key]) for key, value in bridge.adapter.denoiser.state_dict().items())
    assert made.mix.weight.any() and made.mix.weight.shape[2] == 5
    noising = wiclp.Noising(bridge, **size)
    text = noising.text(PROMPTS)
    errors = []
    for tokens in (text.tokens, made(text.tokens)):
        at = noising.noised(latents.repeat(16, 1, 1, 1), torch.Generator().manual_seed(9))
        with torch.no_grad():
            errors.append(float(noising.loss(at, text.with_tokens(tokens).rows(torch.arange(2).repeat(16)))))
    assert errors[1] < errors[0], "its text explains the pictures better"
    assert call["height"] == 32


def by_hand(inner: Any, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """What the attention's output loses when a token's value is left out of it."""
    block = inner.encoder.layers[layer]
    given: list[torch.Tensor] = []
    hook = block.self_attn.register_forward_pre_hook(
        lambda m, args, more: given.append(more["hidden_states"]), with_kwargs=True
    )
    inner(input_ids=ids)
    hook.remove()
    own, x = block.self_attn, given[0]
    mask = torch.full((1, 1, len(ids[0]), len(ids[0])), -torch.inf).triu(1)
    full = own(hidden_states=x, attention_mask=mask)[0][0]
    lost = []
    for j in range(len(ids[0])):

        def without(m: Any, args: Any, out: torch.Tensor, j: int = j) -> torch.Tensor:
            out = out.clone()
            out[:, j] = 0
            return out

        hook = own.v_proj.register_forward_hook(without)
        lost.append((full - own(hidden_states=x, attention_mask=mask)[0][0]).norm(dim=-1))
        hook.remove()
    return torch.stack(lost, dim=1)


@pytest.mark.host("wiclp", "clip")
@torch.no_grad()
def test_contributions_are_what_would_be_missing() -> None:
    clip, sd = ClipBridge(*test_bridges_clip.make("clip")), bridge_of("sd")
    for bridge, inner, tokenizer in (
        (clip, clip.model.text_model, clip.processor.tokenizer),
        (sd, sd.pipeline.text_encoder, sd.pipeline.tokenizer),
    ):
        found = contributions(bridge, "a red ring")
        ids = tokenizer("a red ring", return_tensors="pt").input_ids
        assert found.shape == (5, 5) and not found.triu(1).any(), "later words tell earlier ones nothing"
        assert torch.allclose(found, by_hand(getattr(inner, "text_model", inner), ids, -1), atol=1e-4)
        assert torch.allclose(
            contributions(bridge, "a red ring", 0), by_hand(getattr(inner, "text_model", inner), ids, 0), atol=1e-4
        )
    with pytest.raises(ShowtellError, match="CLIP's kind"):
        contributions(bridge_of("pixart"), "a red ring")


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PAIRS": 4, "STEPS": 2, "BATCH": 2, "ORACLE": 1}.items():
        monkeypatch.setattr(wiclp, name, value)
    monkeypatch.setattr(PromptSet, "complete", lambda self, images, judge="first": np.zeros(len(images)))
    found = wiclp.experiment(WorldLab(seeds=1, steps=1))
    assert [next(iter(one.scores)) for one in found] == ["wiclp"] * 4 and "oracle" in found[0].scores
    assert run_example(wiclp.EXAMPLE, monkeypatch)["image"].size == (32, 32)
