"""The KL autoencoder's recipe and objective, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL

import tiny
from showtell.nets.flow_lm import small_vae
from showtell.train.objectives import autoencoder_objective, reconstruction, reply_loss, word_loss
from showtell.train.recipes import _unit_latents


def test_reconstruction_counts_pixels_and_edges() -> None:
    clean = torch.zeros(1, 1, 2, 2)
    made = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    parts = reconstruction(made, clean)
    assert float(parts["pixels"]) == 0.25  # one of four pixels off by one
    assert float(parts["edges"]) == 1.0  # one of two edges off by one, down and across


def test_divergence_of_a_standard_normal_latent_is_zero() -> None:
    model = AutoencoderKL(**small_vae((8, 8), 2)).requires_grad_(False)
    for part in (model.encoder.conv_out, model.quant_conv):
        part.weight.zero_()
        part.bias.zero_()
    batch = {"image": torch.zeros(1, 16, 16, 3, dtype=torch.uint8)}
    assert float(autoencoder_objective(model, batch, None)[1]["kl"]) == 0.0
    model.quant_conv.bias[2:] = math.log(4.0)  # a variance of 4
    expected = 0.5 * (4 - 1 - math.log(4))
    assert float(autoencoder_objective(model, batch, None)[1]["kl"]) == pytest.approx(expected, abs=1e-5)


def test_words_are_predicted_only_where_wanted() -> None:
    ids = torch.tensor([[0, 1, 2, 0], [0, 2, 0, 0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    logits = torch.zeros(2, 4, 3)
    logits[0, 1, 2] = 50.0  # right, so it costs nothing
    logits[:, 3] = float("nan")  # predicts nothing
    seen: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return states

    loss = word_loss(logits, ids, valid, torch.tensor([2, 1]), head)
    assert seen == [3]  # two words of the first row, one of the second
    assert float(loss) == pytest.approx(2 / 3 * math.log(3), abs=1e-5)


def test_a_short_reply_counts_as_much_as_a_long_one() -> None:
    """Two words at log 3 in the first row, one at log 9 in the second: the mean of the two rows' means."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 0]])
    wanted = torch.tensor([[False, True, True], [False, True, False]])
    logits = torch.zeros(2, 3, 3)
    logits[1, 0, 1] = -math.log(4)  # 1/4 against 1 and 1: a ninth
    assert float(reply_loss(logits, ids, wanted)) == pytest.approx((math.log(3) + math.log(9)) / 2, abs=1e-5)


def test_latents_become_unit_variance() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(**small_vae((8, 8, 8), 2)).eval()
    _unit_latents(model)
    import numpy as np

    from showtell.data.signal import to_signal
    from showtell.train.recipes import _pictures

    images = _pictures("scenes,emoji")(np.random.default_rng(7), 64)["image"]
    with torch.no_grad():
        z = model.encode(to_signal(torch.from_numpy(images))).latent_dist.mean
    scaled = (z - model.config.shift_factor) * model.config.scaling_factor
    assert abs(float(scaled.mean())) < 0.15 and abs(float(scaled.std()) - 1) < 0.15


def test_a_run_starts_from_what_fits(tmp_path) -> None:
    """A closer look starts from a parser without one; a parser of another width is refused."""
    from showtell.errors import ShowtellError
    from showtell.nets.scene_parser import SceneParser, SceneParserConfig
    from showtell.train.starting import start_from

    plain, wider = (SceneParser(SceneParserConfig(width=width, depth=1)) for width in (16, 32))
    looking = SceneParser(SceneParserConfig(width=16, depth=1, closer=(8, 8))).requires_grad_(False)
    looking.closer.requires_grad_(True)
    for name, model in (("plain", plain), ("wider", wider)):
        model.save_pretrained(tmp_path / name)
    start_from(looking, tmp_path / "plain")
    weights = looking.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
    with pytest.raises(ShowtellError, match="it holds another model"):
        start_from(looking, tmp_path / "wider")


def test_a_run_starts_from_a_pipeline_s_parts(tmp_path) -> None:
    from showtell.errors import ShowtellError
    from showtell.train.bases.diffusion import trained_unet
    from showtell.train.starting import start_from

    """Whose tokenizer may number its words otherwise: a word's vector goes with the word."""
    from showtell.train.bases import text

    known, pipeline = tiny.make("sd"), tiny.make("sd")
    for one, words in ((known, ["star", "ring"]), (pipeline, ["a", "ring", "square"])):
        one.tokenizer = text.made_of(text.joined(words))
        one.text_encoder.resize_token_embeddings(len(one.tokenizer))
    known.save_pretrained(tmp_path / "first")
    model = trained_unet(pipeline)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
    start_from(model, tmp_path / "first")
    for part in ("unet", "text_encoder"):
        for name, value in getattr(known, part).state_dict().items():
            if "token_embedding" not in name:
                assert torch.equal(model.parts[part].state_dict()[name], value), name
    before, now = (one.text_encoder.get_input_embeddings().weight for one in (known, pipeline))
    number = [one.tokenizer.convert_tokens_to_ids("ring</w>") for one in (known, pipeline)]
    assert number[0] != number[1] and torch.equal(now[number[1]], before[number[0]])
    with pytest.raises(ShowtellError, match="cannot start from"):
        start_from(model, tmp_path / "nowhere")
    with pytest.raises(ShowtellError, match="it holds another model"):
        start_from(torch.nn.Linear(2, 2), tmp_path / "first")
