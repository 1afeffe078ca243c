"""The things that a prompt names: which words, and which tokens they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from showtell.bridges.base import Technique, Text
from showtell.bridges.layout import Place
from showtell.bridges.words import Piece, find_words
from showtell.steer.embeddings import null_tokens, weighted
from showtell.steer.maps import near, smoothed
from showtell.steer.phrases import noun_chunks, nouns_and_modifiers, phrases, things_of, tokens_of
from steering import FAMILIES, sampled


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red ring left of a blue star", ["red ring", "blue star"]),
        ("two large red rings and a dotted green drop on a sand background", ["large red rings", "dotted green drop"]),
        ("A brown dog sitting on the table, a white cat", ["brown dog", "table", "white cat"]),
        ("a photo of a hundred cats", ["hundred cats"]),
        ("red, green", ["red", "green"]),
        ("", []),
    ],
)
def test_phrases(prompt: str, expected: list[str]) -> None:
    words = find_words(prompt, [Piece(tiny.clip_tokenizer(77), 77)])
    found = phrases(words)
    assert [one.text for one in found] == expected
    assert all(one.noun.text == text.split()[-1] for one, text in zip(found, expected, strict=True))
    assert all(one.positions == words[one.text] for one in found)


def test_repeated_nouns_keep_their_own_tokens() -> None:
    words = find_words("a red ring and a blue ring", [Piece(tiny.clip_tokenizer(), 16)])
    first, second = phrases(words)
    assert (first.noun.positions, second.noun.positions) == ((3,), (7,))
    assert [word.text for word in second.modifiers] == ["blue"]


def test_tokens_of_a_thing_are_in_order_and_named_once() -> None:
    assert tokens_of(((7, 8), [(6,), (4, 5), (6,)])) == [4, 5, 6, 7, 8] and tokens_of(((3,), [])) == [3]


class Look(Technique):
    def before(self, run: Any, latents: torch.Tensor) -> None:
        self.found = things_of(run)
        self.given = things_of(run, {"star": ["blue", "green"], "cat": []})
        self.grids = run.grids
        sides = [max(grid) for grid in run.grids]
        layout = run.adapter.layout(run)
        count = {max(grid): tokens for tokens, grid in layout.grids.items()}
        depth = next(i for i, (_, kind) in enumerate(layout.calls) if kind in ("cross", "joint"))
        text = run.text.tokens.shape[1]
        keys = {side: text if layout.calls[depth][1] == "cross" else tokens + text for side, tokens in count.items()}
        spans = {side: (keys[side] if keys[side] > text else count[side], keys[side]) for side in sides}
        places = {side: layout.place(depth, *spans[side], text, 0, 1) for side in sides}
        self.nearest = [side for side in sides if near(run, places[side], 5)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_things_and_grids_of_a_run(name: str) -> None:
    look = Look()
    sampled(name, look)
    shift = {"sd": [0], "sd3": [0, 16 - 1]}[name]  # T5 has no start token
    assert look.found[0] == [(tuple(3 + s for s in shift), [tuple(2 + s for s in shift)]),
                             (tuple(8 + s for s in shift), [tuple(7 + s for s in shift)])]  # fmt: skip
    assert look.given == [[([8 + s for s in shift], [[7 + s for s in shift]])], []]
    assert look.grids == {"sd": [(8, 8), (4, 4)], "sd3": [(4, 4)]}[name] and look.nearest == [4]


def test_chunks_keep_their_articles() -> None:
    """As spaCy's noun chunks do; a phrase without an article is its words alone."""
    words, bare = (
        find_words(prompt, [Piece(tiny.clip_tokenizer(77), 77)])
        for prompt in ("a red ring left of a blue star", "red ring, two dogs")
    )
    assert [text for text, _ in noun_chunks(words)] == ["a red ring", "a blue star"]
    assert all(tuple(words[text]) == positions for text, positions in noun_chunks(words))
    assert [text for text, _ in noun_chunks(bare)] == ["red ring", "dogs"]


def test_tokens_of_nouns_and_of_modifiers() -> None:
    nouns, modifiers = nouns_and_modifiers([[([2], [[0], [1]]), ([4, 5], [])], []], 6)
    assert nouns.int().tolist() == [[[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]], [[0] * 6] * 2]
    assert modifiers.int().tolist() == [[[1, 1, 0, 0, 0, 0], [0] * 6], [[0] * 6] * 2]


def test_where_one_grid_is_all_there_is_it_is_near() -> None:
    place = Place(0, 1, "", "self", (64, 64), 0, 1, slice(0, 4096), None, slice(0, 4096))
    assert near(object(), place)


def test_smoothing_keeps_what_is_flat_and_spreads_a_peak() -> None:
    flat = torch.full((2, 3, 4, 5), 0.25)
    assert torch.allclose(smoothed(flat), flat)
    peak = torch.zeros(1, 1, 5, 5)
    peak[..., 2, 2] = 1.0
    spread = smoothed(peak)[0, 0]
    side = torch.exp(torch.tensor(-2.0))  # one cell away with sigma 0.5
    assert torch.isclose(spread[2, 2], 1 / (1 + 2 * side) ** 2) and torch.isclose(spread[1, 2] / spread[2, 2], side)
    assert torch.isclose(spread.sum(), torch.tensor(1.0))
    assert smoothed(torch.rand(1, 2, 1, 1)).shape == (1, 2, 1, 1)


def test_null_tokens_fit_any_length() -> None:
    def null(length: int) -> list[float]:
        text = Text(torch.zeros(1, length, 1), make_empty=lambda: torch.tensor([[[1.0], [2.0], [3.0]]]))
        return null_tokens(text).flatten().tolist()

    assert null(2) == [1, 2] and null(3) == [1, 2, 3] and null(5) == [1, 2, 3, 3, 3]


def test_weights_of_one_are_exact_and_have_a_slope() -> None:
    text = Text(torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)))
    factors = torch.ones(1, 3, requires_grad=True)
    pivot = torch.ones(1, 3, 4)
    tokens = weighted(text, factors, pivot)
    assert torch.equal(tokens, text.tokens)
    [slope] = torch.autograd.grad(tokens.sum(), factors)
    assert torch.allclose(slope, (text.tokens - pivot).sum(-1))


class Recorded(Technique):
    """Differentiates the first step's prediction by the latents."""

    def __init__(self) -> None:
        self.slopes: list[torch.Tensor] = []
        self.recorded: list[bool] = []

    def differentiates(self, run: Any) -> bool:
        return bool(run.step == 0)

    def before(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        self.leaf = latents.detach().requires_grad_()
        return self.leaf

    def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> None:
        self.recorded.append(guided.requires_grad)
        if guided.requires_grad:
            self.slopes.append(torch.autograd.grad(guided.sum(), self.leaf)[0])

    def latents(self, run: Any, latents: torch.Tensor) -> None:
        assert not latents.requires_grad and not torch.is_grad_enabled()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prediction_is_recorded_where_it_is_asked_for(name: str) -> None:
    technique = Recorded()
    recorded = sampled(name, technique)
    assert technique.recorded == [True, False, False] and float(technique.slopes[0].abs().sum()) > 0
    assert torch.equal(recorded, sampled(name))


def test_levels_without_attention_are_no_grids() -> None:
    """Like SDXL, whose largest level is convolutions: what is nearest is where there is attention."""
    from diffusers import UNet2DConditionModel

    import showtell

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = tiny.sd()
        pipeline.unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
    found = []

    class Look(Technique):
        def wants(self, run: Any, place: Place) -> bool:
            found.append((run.grids, place.grid, near(run, place)))
            return False

        def attention(self, run: Any, site: Any) -> None:
            """Never called."""

    showtell.load(pipeline).generate("a red ring", using=[Look()], num_inference_steps=1, output_type="latent")
    assert found and all(one == ([(4, 4)], (4, 4), True) for one in found)
