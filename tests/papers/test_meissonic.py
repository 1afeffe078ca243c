"""Meissonic: what each condition changes, compression and its cost, masks by hand, filling in, every host."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import run_example
from hosts import hosts, pipeline_of
from laboratory import Laboratory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import showtell
import test_bridges_amused
import test_bridges_janus
from bridge_family import shared
from showtell.errors import ShowtellError
from showtell.nets.meissonic import Meissonic, _places
from showtell.papers.generate import meissonic as module
from showtell.papers.generate.meissonic import meissonic, meissonic_loss
from showtell.train.bases.codes import from_codes, unit_range
from showtell.train.bases.tokens import Masked, hidden_tokens
from showtell.train.trainer import fit

SMALL = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
         "micro_cond_encode_dim": 4}  # fmt: skip
MASK = 31


def made(**more: Any) -> Meissonic:
    sizes = {"vocab_size": 32, "codebook_size": 30, "sample_size": 8, "joint_attention_dim": 6,
             "pooled_projection_dim": 5, **SMALL, **more}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Meissonic(**sizes).eval()
        for weight in model.parameters():  # random weights of the blocks' modulation are too small to show anything
            if weight.ndim > 1:
                weight.data *= 3
        return model


def given(score: float = 6.0, masked: int = 32) -> dict[str, Tensor]:
    tokens = torch.arange(64).remainder(30)
    tokens[:masked] = MASK
    told = torch.Generator().manual_seed(0)
    return {
        "input_ids": tokens.view(1, 8, 8), "encoder_hidden_states": torch.randn(1, 3, 6, generator=told),
        "pooled_text_emb": torch.randn(1, 5, generator=told), "micro_conds": torch.tensor([[64.0, 64, 0, 0, score]]),
    }  # fmt: skip


@torch.no_grad()
def logits(model: Meissonic, **more: Any) -> Tensor:
    return model(**given(**more))


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-4)


def test_it_is_told_the_rate_and_the_score() -> None:
    """And not, where the switch is off; the rate is the share of masks."""
    model = made()
    assert model.rate(given(masked=16)["input_ids"]).tolist() == [0.25]
    assert logits(model).shape == (1, 30, 8, 8)
    assert differ(logits(model, score=2.0), logits(model)) and not differ(
        logits(made(micro=False), score=2.0), logits(made(micro=False))
    )
    for told in (True, False):
        one = made(rate=told)
        wrong = copy.copy(one)
        wrong.rate = lambda tokens: torch.ones(1)  # type: ignore[method-assign]
        assert differ(logits(wrong), logits(one)) == told


def test_places_are_relative_with_rotary_and_by_heart_without() -> None:
    """With learnt places the grid's size is fixed, with rotary ones it is not; without any, all cells are the same."""
    assert _places(2, 2, 3).tolist() == [[0, 0, 0]] * 2 + [[0, r, c] for r in range(2) for c in range(3)]
    tall = {**given(), "input_ids": torch.full((1, 12, 4), MASK)}
    with torch.no_grad():
        assert made()(**tall).shape == (1, 30, 12, 4)
        with pytest.raises(RuntimeError):
            made(rotary=False)(**tall)
        even = {**given(), "input_ids": torch.full((1, 8, 8), MASK)}
        flat = made(rotary=False)
        assert flat.place is not None
        flat.place.data.zero_()
        same = flat(**even)
        assert torch.allclose(same[..., :1, :1].expand(-1, -1, 4, 4), same[..., ::2, ::2], atol=1e-4), "no places left"


def test_compression_saves_most_of_the_operations() -> None:
    counts = []
    for compressed in (True, False):
        model = made(downsample=compressed)
        with FlopCounterMode(display=False) as counter:
            assert logits(model).shape == (1, 30, 8, 8)
        counts.append(counter.get_total_flops())
    assert counts[1] > 2 * counts[0]


def test_text_and_image_both_ways() -> None:
    """Words change the image's logits in every arm, and masked cells hear of those that are not."""
    for sizes in ({}, {"downsample": False}, {"rate": False, "micro": False, "rotary": False}):
        model = made(**sizes)
        other = given()
        other["encoder_hidden_states"] = other["encoder_hidden_states"] + 1
        far = given()
        far["input_ids"][0, 7, 7] = 9
        with torch.no_grad():
            assert differ(model(**other), logits(model))
            assert differ(model(**far)[..., :2, :2], logits(model)[..., :2, :2])


def test_it_saves_and_loads(tmp_path: Path) -> None:
    model = made(rotary=False)
    model.save_pretrained(tmp_path)
    again: Any = Meissonic.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model)) and again.config.rotary is False


def test_rates_follow_a_cosine() -> None:
    codes = torch.zeros(4000, 4, 5, dtype=torch.long)
    share = hidden_tokens(codes, torch.Generator().manual_seed(0)).float().mean(dim=(1, 2))
    assert float(share.min()) >= 0.05 and float(share.mean()) == pytest.approx(2 / np.pi + 0.5 / 20, abs=0.015)
    assert float((share > 0.9).float().mean()) > 0.25, "far more often nearly all than nearly nothing"


def test_unit_range_is_an_affine_map() -> None:
    vq = copy.deepcopy(shared(test_bridges_amused.pipeline).vqvae)
    codes = torch.arange(16)[None]
    before = from_codes(vq, codes)
    assert torch.allclose(from_codes(unit_range(vq), codes), (before + 1) / 2, atol=1e-5)


@pytest.mark.parametrize("name", hosts("meissonic", "amused"))
def test_host_learns_to_fill_in(name: str) -> None:
    """In place of aMUSEd's transformer it learns two pictures by their prompts, and the bridge draws them."""
    torch.manual_seed(0)
    bridge = meissonic(showtell.load(shared(test_bridges_amused.pipeline)), **SMALL)
    pipeline = bridge.decoder.pipeline  # type: ignore[attr-defined]
    pipeline.text_encoder = copy.deepcopy(pipeline.text_encoder)
    prompts, checks = ["a red ring", "a blue star"], torch.arange(8)[:, None].add(torch.arange(8)).remainder(2)
    codes = torch.stack([3 + checks, 7 + 2 * checks])
    encoded = pipeline.tokenizer(prompts, padding="max_length", max_length=pipeline.tokenizer.model_max_length)
    always = {"codes": codes, "ids": torch.tensor(encoded["input_ids"]),
              "micro": torch.tensor([[16.0, 16, 0, 0, 6]]).expand(2, -1)}  # fmt: skip
    result = fit(Masked(pipeline), meissonic_loss, lambda index, seed: always, steps=120, lr=1e-2, ema=None,
                 precision="no", progress=False, log_every=60)  # fmt: skip
    pipeline.transformer.eval()
    assert result.history[-1]["loss"] < 2
    call: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 1.0, "output_type": "latent", "temperature": 0}
    drawn = torch.stack(bridge.generate(prompts, **call))
    assert (drawn == codes).float().mean() > 0.8
    again = torch.stack(bridge.generate(prompts, **call, micro_conditioning_aesthetic_score=6))
    assert torch.equal(again, drawn), "6 is what it is told anyway"


@pytest.mark.parametrize("name", hosts("meissonic", "flux"))
def test_its_blocks_are_those_of_the_host(name: str) -> None:
    """The weights of FLUX's blocks fit, and then they do what FLUX's do."""
    flux = pipeline_of(name).transformer
    blocks, single, config = flux.transformer_blocks, flux.single_transformer_blocks, flux.config
    model = made(num_attention_heads=config.num_attention_heads, attention_head_dim=config.attention_head_dim,
                 num_layers=len(blocks), num_single_layers=len(single))  # fmt: skip
    model.transformer_blocks.load_state_dict(blocks.state_dict())
    model.single_transformer_blocks.load_state_dict(single.state_dict())
    width = config.num_attention_heads * config.attention_head_dim
    x, words, vector = torch.randn(1, 16, width), torch.randn(1, 3, width), torch.randn(1, width)
    angles = model.pos_embed(_places(3, 4, 4))
    with torch.no_grad():
        for one, other in zip(
            [*model.transformer_blocks, *model.single_transformer_blocks], [*blocks, *single], strict=True
        ):
            ours, theirs = (
                block(hidden_states=x, encoder_hidden_states=words, temb=vector, image_rotary_emb=angles)
                for block in (one, other)
            )
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert logits(model).shape == (1, 30, 8, 8)


def test_the_bridge_is_the_pipeline_s_own() -> None:
    """Through the library's pipeline the same tokens, as it is called as aMUSEd's transformer is."""
    bridge = meissonic(showtell.load(shared(test_bridges_amused.pipeline)), **SMALL)
    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = bridge.decoder.pipeline(["a red ring"], generator=torch.Generator().manual_seed(1), **call).images  # type: ignore[attr-defined]
    ours = bridge.generate(["a red ring"], generator=torch.Generator().manual_seed(1), **call)
    assert np.array_equal(np.stack(ours), np.asarray(theirs)) and len(np.unique(theirs)) > 5


def test_other_bridges_are_refused() -> None:
    with pytest.raises(ShowtellError, match="aMUSEd"):
        meissonic(test_bridges_janus.bridge())


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 8, "STEPS": 2, "BATCH": 4}.items():
        monkeypatch.setattr(module, name, value)
    lab: Any = Laboratory(seeds=1, bases={"vq": shared(test_bridges_amused.pipeline).vqvae})
    told, clean, work = (found for found in module.experiment(lab))
    assert told.scores["meissonic"].shape == (1, 2) and told.control == "wrong rate"  # type: ignore[attr-defined]
    assert set(clean.scores) == {*module.ARMS, "low score"}  # type: ignore[attr-defined]
    assert (work.scores["uncompressed"] > 2 * work.scores["meissonic"]).all()  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    small = module.EXAMPLE.replace("num_layers=14, num_single_layers=28, num_attention_heads=16", "**small")
    small = "small = " + repr(SMALL) + "\n" + small.replace("num_inference_steps=48", "num_inference_steps=2")
    found = run_example(small, monkeypatch, {"amused": showtell.load(shared(test_bridges_amused.pipeline))})
    assert found["image"].size == (32, 32)
