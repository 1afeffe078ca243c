"""aMUSEd: tokens and images equal to its pipeline's; the hooks of the token-decoding loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import showtell
import tiny
from bridge_family import ONE, PAIR, THREE, fresh, shared
from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from test_bridges_attention import IDENTITIES, At


def pipeline() -> Any:
    tokenizer = tiny.clip_tokenizer()
    return diffusers.AmusedPipeline(
        vqvae=diffusers.VQModel(
            act_fn="silu", block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, in_channels=3, out_channels=3, latent_channels=8,
            layers_per_block=1, norm_num_groups=4, num_vq_embeddings=30, vq_embed_dim=8,
            mid_block_add_attention=False, lookup_from_codebook=True,
        ).eval(),
        tokenizer=tokenizer,
        text_encoder=tiny.clip_text(tokenizer, projection=True),
        transformer=diffusers.UVit2DModel(
            hidden_size=16, cond_embed_dim=32, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
            encoder_hidden_size=32, vocab_size=32, codebook_size=30, in_channels=16, block_out_channels=16,
            num_res_blocks=1, downsample=True, upsample=True, block_num_heads=2, num_hidden_layers=2,
            num_attention_heads=2, attention_dropout=0.0, intermediate_size=32, hidden_dropout=0.0, sample_size=8,
        ).eval(),
        scheduler=diffusers.AmusedScheduler(mask_token_id=31),
    )  # fmt: skip


CALL = {"num_inference_steps": 4, "guidance_scale": 3.5, "output_type": "np"}


def made(prompts: list[str], **more: Any) -> np.ndarray:
    bridge = showtell.load(shared(pipeline))
    if "seed" not in more:
        more["generator"] = torch.Generator().manual_seed(5)
    return np.stack(bridge.generate(prompts, **{**CALL, **more}))


def theirs(prompts: list[str], **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    return np.asarray(shared(pipeline)(prompts, generator=generator, **{**CALL, **more}).images)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"output_type": "latent"},
        {"guidance_scale": 1.0},
        {"negative_prompt": ["big", "a dog", "cat"]},
        {"temperature": 1},
        {"micro_conditioning_aesthetic_score": 2, "micro_conditioning_crop_coord": (8, 0)},
        {"height": 48, "width": 32},
        {"num_inference_steps": 1},
    ],
)
def test_equal_to_the_pipeline(more: dict[str, Any]) -> None:
    expected = theirs(THREE, **more)
    got = made(THREE, **more)
    assert got.shape == expected.shape and np.abs(got - expected).max() <= 1e-4
    assert expected.std() > 0.01


def test_given_tokens_stay() -> None:
    latents = torch.full((1, 8, 8), 31)
    latents[:, :4] = torch.arange(32).view(4, 8) % 30
    expected = theirs(ONE, latents=latents, output_type="latent")
    got = made(ONE, latents=latents, output_type="latent")
    assert np.array_equal(got, expected) and np.array_equal(got[:, :4], latents[:, :4])


def test_prompt_guidance_and_noise_matter() -> None:
    base = made(ONE, output_type="latent")
    assert (made(["a dog on the table"], output_type="latent") != base).any()
    assert (made(ONE, guidance_scale=9.0, output_type="latent") != base).any()
    assert (made(ONE, seed=6, output_type="latent") != base).any()


def test_sample_is_independent_of_its_batch() -> None:
    together = made(THREE, seed=3, output_type="latent")
    assert np.array_equal(made(THREE, seed=3, batch_size=2, output_type="latent"), together)
    assert np.array_equal(made(THREE[:1], seed=3, output_type="latent"), together[:1])
    assert np.array_equal(made([THREE[1], THREE[0]], seed=[9, 3], output_type="latent")[1], together[0])


def test_saved_and_loaded(tmp_path: Path) -> None:
    bridge = showtell.load(shared(pipeline))
    bridge.save(tmp_path)
    again: Any = showtell.load(tmp_path)
    assert again.can == {"generate", "attend"}
    again.decoder.pipeline.set_progress_bar_config(disable=True)
    got = again.generate(ONE, **{**CALL, "generator": torch.Generator().manual_seed(5)})
    assert np.abs(np.stack(got) - made(ONE)).max() <= 1e-5


# Hooks


def test_logits_and_tokens_hooks() -> None:
    class Only(Technique):
        """A vocabulary of two tokens, and a token put in by hand."""

        def logits(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
            assert logits.shape == (2, 64, 30) and run.unconditional.shape == logits.shape
            guided = run.unconditional + run.guidance * (run.conditional - run.unconditional)
            assert torch.equal(guided, logits)
            kept = torch.full_like(logits, -torch.inf)
            kept[..., [3, 7]] = logits[..., [3, 7]]
            return kept

        def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
            assert tokens.shape == (2, 64)
            state = run.state(self)
            state.masked = [*getattr(state, "masked", []), int((tokens == 31).sum())]
            tokens = tokens.clone()
            tokens[:, 0] = 11
            return tokens

        def finish(self, run: Any, outputs: list[Any]) -> list[Any]:
            return [(output, run.state(self).masked) for output in outputs]

    bridge = showtell.load(shared(pipeline))
    for grid, masked in bridge.generate(PAIR, using=[Only()], **{**CALL, "output_type": "latent"}):
        assert grid[0, 0] == 11 and set(grid.flatten()[1:].tolist()) == {3, 7}
        assert masked == sorted(masked, reverse=True) and masked[0] > masked[-1] == 0


def test_unconditional_where_a_technique_asks() -> None:
    class Reversed(Technique):
        unconditional = True

        def logits(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
            assert torch.equal(logits, run.conditional)
            return run.unconditional

    bridge = showtell.load(shared(pipeline))
    call = {**CALL, "output_type": "latent", "guidance_scale": 1.0, "seed": 1}
    got = bridge.generate(ONE, using=[Reversed()], **call)[0]
    assert torch.equal(got, bridge.generate("", **call)[0])
    assert not torch.equal(got, bridge.generate(ONE, **call)[0])


def test_conditioning_hook() -> None:
    class Other(Technique):
        def conditioning(self, run: Any, text: Any) -> Any:
            return run.encode("a dog on the table")

    other = made(["a dog on the table"], seed=1)
    assert np.abs(made(ONE, using=[Other()], seed=1) - other).max() <= 1e-5


# Attention


def test_every_attention_call_is_placed() -> None:
    model = shared(pipeline).transformer
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda m, a, kw, n=name: ran.append(n), with_kwargs=True)
        for name, module in model.named_modules()
        if hasattr(module, "processor")
    ]
    seen: list[Any] = []
    made(PAIR, using=[At(lambda run, site: seen.append(site.place), ("self", "cross"))])
    for handle in handles:
        handle.remove()
    assert [place.name for place in seen] == ran and len(seen) == seen[0].of * 4
    assert {place.grid for place in seen} == {(8, 8), (4, 4)} or {place.grid for place in seen} == {(4, 4)}
    assert {place.text.stop for place in seen if place.text is not None} == {16}


def test_maps_are_probabilities_and_identities_change_nothing() -> None:
    spread: list[float] = []

    def check(run: Any, site: Any) -> None:
        assert (site.maps().sum(-1) - 1).abs().max() < 1e-5
        assert (site.probabilities() @ site.value - site.output).abs().max() < 1e-5
        spread.append(site.maps().std().item())

    plain = made(PAIR, output_type="latent")
    assert np.array_equal(made(PAIR, using=[At(check)], output_type="latent"), plain)
    assert max(spread) > 1e-4
    for name, identity in IDENTITIES.items():
        got = made(PAIR, using=[At(lambda run, site, act=identity: act(site))], output_type="latent")
        assert np.array_equal(got, plain), name


def test_masking_a_word_removes_it_from_the_softmax() -> None:
    bridge: Any = showtell.load(shared(pipeline))
    positions = list(bridge.words(PAIR[0])["ring"])

    def check(run: Any, site: Any) -> None:
        keep = torch.ones(16, dtype=torch.bool)
        keep[positions] = False
        logits = site.logits("text", "image")
        site.mask(keep)
        now = site.probabilities("text", "image")
        assert now[..., ~keep].abs().max() == 0
        assert (now[..., keep] - logits[..., keep].softmax(-1)).abs().max() < 1e-6
        seen.append(1)

    seen: list[int] = []
    made(PAIR, using=[At(check)])
    assert len(seen) >= 4


def test_words() -> None:
    bridge: Any = showtell.load(shared(pipeline))
    before, after = (bridge.encode(f"a red ring above the {word}").tokens[0] for word in ("dog", "cat"))
    change = (before - after).abs().amax(-1)
    (position,) = bridge.words("a red ring above the dog")["dog"]
    assert change[position] > 1e-3 and change[:position].max() < 1e-5
    with pytest.warns(UserWarning, match="cut off"):
        bridge.encode("a red ring left of a blue star above the big green square table and a dog")


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"height": 30}, "must be multiples of 8 for this model, got 30x32; the nearest are 32x32"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf: use a finite number"),
        ({"latents": torch.zeros(1, 4, 4)}, r"this call needs \(1, 8, 8\)"),
        ({"num_inference_steps": 0}, "use 1 or more"),
        ({"output_type": "jpeg"}, "use one of pil"),
        ({"steps": 3}, "does not take steps; further keywords: batch_size"),
        ({"num_frames": 4}, "single images"),
    ],
)
def test_bad_calls(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ShowtellError, match=message):
        made(ONE, **bad)


def test_broken_weights_are_said() -> None:
    broken = fresh(pipeline)
    with torch.no_grad():
        next(iter(broken.transformer.parameters())).fill_(torch.nan)
    with pytest.raises(ShowtellError, match="the logits became NaN at step 0"):
        showtell.load(broken).generate("a dog", **CALL)
