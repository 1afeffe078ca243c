"""UniTok: codes by hand, chunks and ties, the way there and back, both ends for language models, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples import run_example
from hosts import hosts
from laboratory import Laboratory
from torch import Tensor

from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.nets.cell_codes import CellEmbed, DepthHead
from showtell.nets.contrastive_tokenizer import AttentionFactor, ContrastiveTokenizer
from showtell.nets.multi_codebook import MultiCodebook, usage
from showtell.papers.represent import unitok as module
from showtell.papers.represent.unitok import unitok, unitok_loss
from showtell.train.trainer import fit
from test_bridges_clip import make
from test_bridges_vlm import MAKERS


def made(name: str = "clip", **more: Any) -> ContrastiveTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(name)[0]
        return unitok(model.vision_model, model, **{"books": 2, "codes": 8, "chunk": 4, "layers": 1, **more})


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def texts(n: int = 3) -> Tensor:
    return torch.randint(3, 40, (n, 5), generator=torch.Generator().manual_seed(1))


def test_each_chunk_has_its_own_nearest_code() -> None:
    """Codes along the axes: a chunk goes to the axis it lies nearest to, whatever its length."""
    quantiser = MultiCodebook(2, 3, 3)
    quantiser.books.data = torch.stack([torch.eye(3), torch.eye(3).roll(1, dims=0)])
    features = torch.tensor([[[5.0, 1.0, 0.0, 0.1, 0.9, 0.2]]])
    quantised, codes, _ = quantiser(features)
    assert codes.tolist() == [[[0, 2]]], "the second book is in another order"
    assert torch.allclose(quantised, torch.tensor([[[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]]]), atol=1e-6)
    assert torch.allclose(quantiser.vectors(codes).flatten(2), quantised, atol=1e-6)


def test_the_loss_by_hand() -> None:
    """One book of two opposite codes, features on the first code and between both: pull 1.25 times the square."""
    quantiser = MultiCodebook(1, 2, 2)
    quantiser.books.data = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    features = torch.tensor([[[2.0, 0.0], [-3.0, 0.0]]])
    *_, loss = quantiser(features, sharpness=50.0)
    assert loss.item() == pytest.approx(-0.1 * 0.6931, abs=1e-3), "exact, sure, and both codes used alike"
    *_, loss = quantiser(features[:, :1], sharpness=50.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-3), "one code alone is used"
    *_, loss = quantiser(torch.tensor([[[0.6, 0.8]]]), sharpness=50.0)
    assert loss.item() == pytest.approx(1.25 * (0.4**2 + 0.8**2) / 2, abs=1e-3)


def test_gradients_pass_straight_through() -> None:
    quantiser = MultiCodebook(2, 4, 4)
    features = torch.randn(2, 3, 8, requires_grad=True)
    quantised, _, _ = quantiser(features)
    weight = torch.randn(2, 3, 8)
    straight = torch.autograd.grad((quantised * weight).sum(), features)[0]
    exact = torch.autograd.grad((quantiser.chunks(features).flatten(2) * weight).sum(), features)[0]
    assert torch.allclose(straight, exact, atol=1e-6) and straight.abs().max() > 0


def test_tied_books_see_the_first_chunk_alone() -> None:
    torch.manual_seed(0)
    tied, free = MultiCodebook(3, 16, 4, tied=True), MultiCodebook(3, 16, 4)
    features = torch.randn(2, 5, 12)
    other = torch.cat([features[..., :4], torch.randn(2, 5, 8)], dim=-1)
    assert torch.equal(tied(features)[1], tied(other)[1]) and not torch.equal(free(features)[1], free(other)[1])
    assert torch.equal(free(features)[1][..., 0], free(other)[1][..., 0])


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 8)])
def test_attention_factor_is_causal_and_changes_the_width(before: int, after: int) -> None:
    factor, x = AttentionFactor(before, after), torch.randn(2, 5, before)
    later = x.clone()
    later[:, 3:] = torch.randn(2, 2, before)
    assert factor(x).shape == (2, 5, after)
    assert torch.allclose(factor(x)[:, :3], factor(later)[:, :3], atol=1e-6)
    assert not torch.allclose(factor(x)[:, 3:], factor(later)[:, 3:])
    other = x.clone()
    other[:, 0] = torch.randn(2, before)
    assert not torch.allclose(factor(x)[:, 4], factor(other)[:, 4]), "attention, not one linear layer"


def test_heads_are_averaged_on_the_way_down() -> None:
    """Alone in its row a cell sees its own values: the mean of the halves that the heads hold."""
    factor, x = AttentionFactor(4, 2), torch.randn(1, 1, 4)
    torch.nn.init.zeros_(factor.mlp[2].weight)
    torch.nn.init.zeros_(factor.mlp[2].bias)
    values = factor.within(factor.first(x))[..., 8:]
    wanted = factor.along(factor.straight(x)) + factor.out((values[..., :2] + values[..., 2:]) / 2)
    assert torch.allclose(factor(x), wanted, atol=1e-6)


@pytest.mark.parametrize("name", hosts("unitok", "clip", "siglip"))
def test_hosts_there_and_back(name: str) -> None:
    """Encoding and decoding is what training sees; features are comparable with texts; it trains."""
    model = made(name)
    x = images()
    codes = model.encode(x)
    again, vectors, _ = model(x)
    assert codes.shape == (3, 4, 2) and again.shape == x.shape and codes.max() < 8
    assert torch.allclose(model.decode(codes), again, atol=1e-5)
    assert torch.allclose(model.features(codes), vectors, atol=1e-5)
    assert vectors.shape == model.of_texts(texts()).shape and torch.allclose(vectors.norm(dim=-1), torch.ones(3))
    assert usage(torch.tensor([[[0, 1], [3, 1]]]), 8).tolist() == [0.25, 0.125]

    def now() -> dict[str, float]:
        return {key: value.item() for key, value in unitok_loss(model, {"pixels": x, "ids": texts()}, None)[1].items()}

    before = now()
    always = {"pixels": x, "ids": texts()}
    fit(model, unitok_loss, lambda index, seed: always, steps=60, lr=3e-3, ema=None, precision="no", progress=False)
    after = now()
    assert after["pixels"] < before["pixels"] and after["contrast"] < 0.6 * before["contrast"]


def test_pixels_come_back_where_they_were() -> None:
    """Each cell is drawn by its own token: a head that says the cell's number gives a picture of numbers."""
    model = made()
    model.decoder = torch.nn.Identity()  # type: ignore[assignment]
    model.up = torch.nn.Identity()  # type: ignore[assignment]
    model.place = torch.nn.Parameter(torch.zeros(4, 8))
    model.pixels = torch.nn.Linear(8, 3 * 64)
    model.pixels.weight.data, model.pixels.bias.data = torch.zeros(192, 8), torch.zeros(192)
    model.pixels.weight.data[:, 0] = 1
    model.project = torch.nn.Linear(8, 8)
    cells = torch.arange(4.0)[None, :, None].expand(1, 4, 8)
    shown, _ = model.shown(cells)
    assert shown[0, :, 0, 0].tolist() == [0.0] * 3 and shown[0, 0, 3, 12] == 1 and shown[0, 2, 12, 3] == 2
    assert shown[0, 1, 8:, 8:].unique().tolist() == [3.0]


@pytest.mark.parametrize("name", hosts("unitok", "llava"))
def test_language_models_read_and_write_cells(name: str) -> None:
    """A language model's own layers, cells in by their vectors and out over depth, learn a picture's codes."""
    tokenizer, model = made(), MAKERS[name]()[0]
    inner = model.model.language_model
    width, codes = inner.config.hidden_size, tokenizer.encode(images(1))
    inward, outward = CellEmbed(tokenizer.quantiser, width), DepthHead(2, 8, width)
    parts = torch.nn.ModuleDict({"in": inward, "out": outward, "lm": inner})

    def loss(net: Any, batch: Any, generator: Any) -> tuple[Tensor, dict[str, Tensor]]:
        start = torch.zeros(1, 1, width)
        hidden = net["lm"](inputs_embeds=torch.cat([start, net["in"](codes[:, :-1])], dim=1)).last_hidden_state
        logits = net["out"](hidden.flatten(0, 1), codes.flatten(0, 1))
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten()), {}

    fit(
        parts,
        loss,
        lambda index, seed: {"x": torch.zeros(1)},
        steps=60,
        lr=1e-2,
        ema=None,
        precision="no",
        progress=False,
    )
    with torch.no_grad():
        assert loss(parts, None, None)[0] < 0.3
    assert not any(p.grad is not None for p in tokenizer.parameters())


def test_depth_says_one_book_after_the_other() -> None:
    """Logits of a book depend on the codes of books before it alone; draws follow them."""
    torch.manual_seed(0)
    head = DepthHead(3, 4, 8).eval()
    hidden, codes = torch.randn(2, 8), torch.tensor([[0, 1, 2], [3, 2, 1]])
    other = codes.clone()
    other[:, 1] = (other[:, 1] + 1) % 4
    a, b = head(hidden, codes), head(hidden, other)
    assert torch.allclose(a[:, :2], b[:, :2]) and not torch.allclose(a[:, 2], b[:, 2])
    head.out.data[0] *= 100
    first = head(hidden, codes)[:, 0].argmax(dim=-1)
    drawn = head.draw(hidden, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 3) and torch.equal(drawn[:, 0], first)


def test_bad_calls() -> None:
    with pytest.raises(ShowtellError, match="1 or more"):
        MultiCodebook(0, 8)
    with pytest.raises(ShowtellError, match="a multiple of the other"):
        AttentionFactor(6, 4)


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 8, "STEPS": 1, "BATCH": 4}.items():
        monkeypatch.setattr(module, name, value)
    lab: Any = Laboratory(seeds=1)
    told, rebuilt = module.experiment(lab)
    assert told.scores["multi"].shape == (1, 2) and (rebuilt.scores["multi"] > 0).all()  # type: ignore[attr-defined]
    assert told.control == rebuilt.control == "tied"


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    small = module.EXAMPLE.replace("codes=4096", "codes=16").replace("(0, 300", "(3, 40").replace("# ", "#")
    found = run_example(small, monkeypatch, {"clip": ClipBridge(*make("clip"))})
    assert found["codes"].shape == (2, 4, 8) and found["again"].shape == (2, 3, 16, 16)
