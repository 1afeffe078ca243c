"""Embeddings found by gradients lower the loss they are found for, and leave everything else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import showtell
import tiny
from showtell.bridges.base import Technique, Text
from showtell.errors import ShowtellError
from showtell.steer.tokens import DenoisingError, OptimisedText, learn_word
from steering import FAMILIES, PROMPTS, bridge_of, ddim, sampled


def options(name: str) -> dict[str, Any]:
    kept = {key: value for key, value in tiny.keywords(name).items() if key not in ("output_type", "guidance_scale")}
    return {**kept, **({"scheduler": ddim()} if name == "sd" else {})}


def clean(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Keep(Technique):
    """Keeps the text that is sampled with."""

    def __init__(self) -> None:
        self.text: Text | None = None

    def conditioning(self, run: Any, text: Text) -> None:
        self.text = text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_of_every_sample_falls(name: str) -> None:
    losses: list[torch.Tensor] = []
    moved = sampled(name, OptimisedText(DenoisingError(clean()), 6, 0.02, receive=losses.append))
    assert losses[0].shape == (6, 2) and (losses[0][-1] < losses[0][0]).all()
    assert not torch.allclose(moved, sampled(name), atol=1e-4)
    assert torch.equal(sampled(name, OptimisedText(DenoisingError(clean()), 0)), sampled(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_named_words_move(name: str) -> None:
    before, after = Keep(), Keep()
    sampled(name, before)
    sampled(name, OptimisedText(DenoisingError(clean()), 2, words=["ring", "dog"]), after)
    changed = (after.text.tokens - before.text.tokens).abs().amax(-1) > 0  # type: ignore[union-attr]
    for row, (prompt, word) in enumerate(zip(PROMPTS, ["ring", "dog"], strict=True)):
        given = {key: value for key, value in options(name).items() if key == "max_sequence_length"}
        positions = bridge_of(name).words(prompt, **given)[word]
        assert changed[row].nonzero().flatten().tolist() == list(positions)
    with pytest.raises(ShowtellError, match="the prompt 'a dog on the table' has none of the words 'ring'"):
        sampled(name, OptimisedText(DenoisingError(clean()), 2, words=["ring"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_does_not_depend_on_the_others(name: str) -> None:
    together = sampled(name, OptimisedText(DenoisingError(clean()), 3), seed=[7, 8])
    alone = sampled(name, OptimisedText(DenoisingError(clean()[1:]), 3), prompts=PROMPTS[1], seed=[8])
    assert (together[1] - alone[0]).abs().max() < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_denoising_error_knows_the_noise(name: str) -> None:
    """Worked out by hand: a denoiser that answers perfectly has no error, one that answers zero the noise's own."""

    def told(answer: float) -> Any:
        run = bridge_of(name).begin(PROMPTS, **options(name))

        def evaluate(latents: torch.Tensor, text: Any, timestep: Any) -> torch.Tensor:
            alpha, sigma = run.noise_level(timestep)
            noise = (latents - alpha * clean()) / sigma
            return answer * (noise - clean() if name == "sd3" else noise)

        run.evaluate = evaluate
        return DenoisingError(clean(), draws=3)(run, run.text)

    assert told(1.0).abs().max() < 1e-4
    if name == "sd":
        generator = torch.Generator().manual_seed(0)
        torch.randint(3, (3,), generator=generator)
        noises = torch.stack([torch.randn(4, 8, 8, generator=generator) for _ in range(3)])
        assert (told(0.0) - noises.square().mean()).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_word_is_learnt(name: str, tmp_path: Path) -> None:
    pipeline = tiny.make(name)
    bridge: Any = showtell.load(pipeline)
    pixels = np.stack([np.full((32, 32, 3), 0.9, np.float32), np.full((32, 32, 3), 0.6, np.float32)])
    keywords = {**options(name), "num_inference_steps": 10}
    plain = np.stack(bridge.generate(["a red ring"], seed=1, **tiny.keywords(name)))
    encoders = [(part, getattr(pipeline, part)) for part in pipeline.components if part.startswith("text_encoder")]
    rows = {part: encoder.get_input_embeddings().weight.detach().clone() for part, encoder in encoders}
    denoiser = [p.clone() for p in bridge.adapter.denoiser.parameters()]
    prompts = ["a photo of <thing>", "a painting of <thing>"]

    def error() -> float:
        run = bridge.begin(["a photo of <thing>"] * 2, **keywords)
        with torch.no_grad():
            return float(DenoisingError(bridge.to_latents(pixels, 32, 32), draws=10)(run, run.text).mean())

    learn_word(bridge, "<thing>", pixels, prompts, like="ring", steps=0, **keywords)
    begun = error()
    new = bridge.encode("a photo of <thing>").tokens
    assert (new - bridge.encode("a photo of ring").tokens).abs().max() < 1e-5, "it begins as what it is like"
    pipeline = tiny.make(name)
    bridge = showtell.load(pipeline)
    losses = learn_word(bridge, "<thing>", pixels, prompts, like="ring", steps=40, size=0.02, **keywords)
    assert len(losses) == 40 and error() < begun
    # Nothing else has changed.
    for part, before in rows.items():
        weight = getattr(pipeline, part).get_input_embeddings().weight
        assert weight.shape[0] == len(before) + 1 and torch.equal(weight[:-1], before)
    assert all(torch.equal(a, b) for a, b in zip(denoiser, bridge.adapter.denoiser.parameters(), strict=True))
    assert np.abs(np.stack(bridge.generate(["a red ring"], seed=1, **tiny.keywords(name))) - plain).max() < 1e-5
    assert len(bridge.words("a photo of <thing>")["thing"]) == len(bridge.words("a photo of ring")["ring"])
    with pytest.raises(ShowtellError, match="knows '<thing>' already"):
        learn_word(bridge, "<thing>", pixels, prompts, like="ring", steps=1, **keywords)
    # The word is saved with the bridge.
    bridge.save(tmp_path)
    again: Any = showtell.load(tmp_path)
    learnt = bridge.encode(prompts[0]).tokens
    assert (again.encode(prompts[0]).tokens - learnt).abs().max() < 1e-5 and (learnt - new).abs().max() > 1e-2


def test_what_cannot_be_learnt() -> None:
    bridge: Any = showtell.load(tiny.make("sd"))
    picture, call = np.zeros((32, 32, 3), np.float32), options("sd")
    size = len(bridge.pipeline.tokenizer)
    with pytest.raises(ShowtellError, match="like='': give a word"):
        learn_word(bridge, "<cup>", picture, ["a <cup>"], like="", **call)
    with pytest.raises(ShowtellError, match="knows 'a</w>' already"):
        learn_word(bridge, "a</w>", picture, ["a</w>"], like="ring", **call)
    with pytest.raises(ShowtellError, match="'<cup>' is cut off"):
        learn_word(bridge, "<cup>", picture, ["a <cup>", "a dog " * 20 + "<cup>"], like="ring", steps=1, **call)
    assert len(bridge.pipeline.tokenizer) == size, "what is refused leaves the tokenizer as it was"
    with pytest.raises(ShowtellError, match="every prompt must use the word '<cup>'"):
        learn_word(bridge, "<cup>", np.zeros((32, 32, 3), np.float32), ["a cup"], like="ring")
    with pytest.raises(ShowtellError, match="a run is one batch"):
        bridge.begin(PROMPTS, batch_size=1)
