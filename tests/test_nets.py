"""The networks of showtell: what must be equal, what must not leak, what a hand can compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from showtell.data.targets import targets
from showtell.nets.flow_lm import FlowLM, FlowLMConfig, Grounding
from showtell.nets.image_encoder import ImageEncoder, ImageEncoderConfig, discriminant
from showtell.nets.scene_parser import (
    OBJECT_HEADS,
    POSSIBLE,
    SceneParser,
    SceneParserConfig,
    closer_loss,
    parser_loss,
)
from showtell.nets.segments import segment_mask
from showtell.world import Scene, sample

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def flow() -> FlowLM:
    torch.manual_seed(0)
    return FlowLM(FlowLMConfig(vocab_size=50, **SMALL)).eval()


IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
VALID = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def test_mask_of_two_words_after_two_source_tokens() -> None:
    mask = segment_mask(2, torch.tensor([[True, True, False]]))[0, 0]
    expected = [
        [1, 1, 0, 0, 0],  # the source sees itself, both ways
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # words see the source and earlier words
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],  # padding is seen by nobody
    ]
    assert mask.int().tolist() == expected
    assert segment_mask(0, torch.ones(1, 3, dtype=torch.bool))[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_plan_is_read_from_its_tokens(flow: FlowLM) -> None:
    """<sep> a b <2><5> c <63><0>: with 64 places from token 10 on, words from 74 on."""
    model = FlowLM(FlowLMConfig(vocab_size=90, **SMALL))
    ids = torch.tensor([[1, 80, 12, 15, 3, 81, 82, 12, 15, 83, 73, 10, 4], [1, 80, 3, 81, 12, 4, 0, 0, 0, 0, 0, 0, 0]])
    things, places = model.plan_of(ids)
    words = model.backbone.embed_tokens.weight
    assert things.shape == (2, 5, 32) and torch.allclose(things[0, 0], (words[81] + words[82]) / 2)
    assert torch.allclose(things[0, 1], words[83])
    assert torch.allclose(places[0, :2], torch.tensor([[2.5, 5.5], [63.5, 0.5]]) / 64)
    assert places[0, 2:].isnan().all() and places[1].isnan().all()  # half a pair is no place


def test_a_thing_is_laid_where_its_place_is() -> None:
    """The same offset gives the same addition, wherever the object is; no object adds nothing."""
    torch.manual_seed(0)
    lay = Grounding(6, 8, 3)
    thing = torch.randn(1, 1, 6)
    left, right = (lay(thing, torch.tensor([[[x, 0.5]]]))[0] for x in (0.25, 0.5))
    assert left.shape == (3, 8, 8)
    assert torch.allclose(left[:, :, :6], right[:, :, 2:], atol=1e-5) and not torch.allclose(left, right, atol=1e-2)
    assert not lay(thing, torch.full((1, 1, 2), torch.nan)).any()
    low, high = (lay(thing, torch.tensor([[[0.25, y]]]))[0] for y in (0.75, 0.25))
    assert torch.allclose(low[:, 4:, :4], high[:, :4, :4], atol=1e-5)


def test_beside_the_latents_lie_the_image_to_edit_and_the_plan_or_a_sketch(flow: FlowLM) -> None:
    model = FlowLM(FlowLMConfig(vocab_size=90, **SMALL)).eval()
    ids = torch.tensor([[1, 3, 81, 12, 15, 4], [1, 80, 3, 4, 0, 0], [1, 3, 4, 0, 0, 0]])
    valid = ids > 0
    before = torch.randn(3, 4, 16, 16)
    hidden = model(ids, valid)[1]
    edited, shown = model.beside(ids, valid, hidden, before), model.beside(ids, valid, hidden)
    assert edited.shape == (3, 4 + 24 + 3, 16, 16) and torch.equal(edited[:, :4], before) and not shown[:, :4].any()
    assert edited[0, 4:28].any() and not edited[1:, 4:28].any()  # only the first row plans
    assert not edited[:, 28:].any()  # who edits need not sketch
    assert not shown[0, 28:].any() and not shown[2].any()  # nor who has a plan, or nothing to draw
    assert torch.equal(shown[1, 28:], model.sketch(hidden, torch.tensor([5, 3, 2]))[1])


def draw(model: FlowLM, ids: torch.Tensor, valid: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor):
    hidden = model(ids, valid)[1]
    return model.draw(noisy, time, hidden, valid, model.beside(ids, valid, hidden))


def test_padding_changes_nothing(flow: FlowLM) -> None:
    noisy, time = torch.randn(2, 4, 16, 16), torch.tensor([0.3, 0.7])
    padded = draw(flow, IDS, VALID, noisy, time)[1]
    exact = draw(flow, IDS[1:, :3], VALID[1:, :3], noisy[1:], time[1:])[0]
    assert torch.allclose(padded, exact, atol=1e-5)
    other = IDS.clone()
    other[1, 2] = 20
    assert not torch.allclose(draw(flow, other, VALID, noisy, time)[1], exact, atol=1e-5)  # but words do


def test_words_do_not_see_what_follows(flow: FlowLM) -> None:
    source = torch.randn(2, 3, 64, 64)
    changed = IDS.clone()
    changed[0, 4] = 20
    before, after = (flow(ids, VALID, source)[1][0, :4] for ids in (IDS, changed))
    assert torch.allclose(before, after, atol=1e-6)
    assert not torch.allclose(flow(IDS, VALID, -source)[1][0, :4], before, atol=1e-3)  # they do see the image


def test_plain_and_fused_attention_agree(flow: FlowLM) -> None:
    source = torch.randn(2, 3, 64, 64)
    fused = flow(IDS, VALID, source)[1][VALID]
    flow.backbone.config._attn_implementation = "eager"
    assert torch.allclose(flow(IDS, VALID, source)[1][VALID], fused, atol=1e-5)


def test_telling_with_a_cache_is_greedy_decoding(flow: FlowLM) -> None:
    torch.manual_seed(1)
    source = torch.randn(2, 3, 64, 64)
    told = flow.tell(IDS, VALID, source, stop=49, length=6)
    for i, words in enumerate(told):
        row = IDS[i : i + 1, : int(VALID[i].sum())]
        for _ in range(6):
            hidden = flow(row, torch.ones_like(row, dtype=torch.bool), source[i : i + 1])[1]
            row = torch.cat([row, flow.logits(hidden[:, -1]).argmax(-1, keepdim=True)], dim=1)
        greedy = row[0, int(VALID[i].sum()) :].tolist()
        assert words == (greedy[: greedy.index(49)] if 49 in greedy else greedy)


@pytest.mark.parametrize("trunk", ["conv", "unet"])
def test_slots_of_the_parser_hold_their_objects(trunk: str) -> None:
    model = SceneParser(SceneParserConfig(trunk=trunk, width=32, depth=1)).eval()
    out = model(torch.zeros(1, 3, 64, 64))
    place = torch.tensor([[0.03, 0.97], [0.5, 0.5], [0.9, 0.1]])
    for size in range(3):
        slots = model.slot(place, torch.full((3,), size))
        near = out["place"][0, slots]
        assert ((near - place).abs() <= 1.5 / model.grid).all()
        assert (slots // model.grid**2 == size).all()


def lesson(scenes: list[Scene]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Pictures of scenes, (n, 3, 64, 64) in [-1, 1], and what is to be found in them."""
    from showtell.world import draw

    images = torch.from_numpy(draw(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, {name: torch.from_numpy(value) for name, value in targets(scenes).items()}


def test_parser_loss_is_small_only_for_the_right_scene() -> None:
    """One small scene is learned by heart; another scene's truth then costs more."""
    torch.manual_seed(0)
    images, truth = lesson(sample(2, 3, objects=1, texture="solid", style="flat"))
    one = {name: value[:1] for name, value in truth.items()}
    model = SceneParser(SceneParserConfig(width=16, depth=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss, _ = parser_loss(model, images[:1], one)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wrong, _ = parser_loss(model, images[:1], {name: value[1:] for name, value in truth.items()})
    assert float(loss.detach()) < 0.5 < 5 < float(wrong.detach())


def looking_parser() -> SceneParser:
    torch.manual_seed(0)
    return SceneParser(SceneParserConfig(width=16, depth=1, closer=(8, 8))).eval()


def test_a_closer_look_corrects_what_may_be_there_and_nothing_else() -> None:
    model, images = looking_parser(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.object_head[-1].bias.view(3, -1)[:, 0] = -5.5  # here and there just above what deserves a look
        model.object_head[-1].weight.mul_(3)
    plain = [out["shape"] for out in model.probabilities(images)]
    with torch.no_grad():
        model.closer.out.bias[0] = 3.0
    looked = list(model.probabilities(images))
    for before, out in zip(plain, looked, strict=True):
        seen = out["present"] > POSSIBLE
        assert 0 < seen.sum() < len(seen)
        np.testing.assert_array_equal(out["shape"][~seen], before[~seen])
        odds = np.log(out["shape"][seen, 0] / (1 - out["shape"][seen, 0]))
        was = np.log(before[seen, 0] / (1 - before[seen, 0]))
        np.testing.assert_allclose(odds - was, 3, atol=1e-3)


def test_crops_lie_around_their_objects() -> None:
    """On a picture whose brightness is its column, a crop shows its own columns: 0.45 of the canvas for a medium object
    (one and a half times 0.3), centred."""
    column = (torch.arange(64) + 0.5).expand(1, 3, 64, 64) / 64
    crops = looking_parser().closer.crops(column, torch.tensor([0]), torch.tensor([[0.5, 0.3]]), torch.tensor([1]))
    assert crops.shape == (1, 3, 32, 32)
    wanted = 0.5 + 0.45 * ((torch.arange(32) + 0.5) / 32 - 0.5)
    torch.testing.assert_close(crops[0, 0, 7], wanted, atol=1e-4, rtol=0)
    rows = looking_parser().closer.crops(
        column.transpose(2, 3), torch.tensor([0]), torch.tensor([[0.5, 0.3]]), torch.tensor([1])
    )
    torch.testing.assert_close(rows[0, 0, :, 7], wanted - 0.2, atol=1e-4, rtol=0)


def test_a_closer_look_is_learned_while_the_first_stays() -> None:
    images, truth = lesson(sample(4, 3, objects=2))
    model = looking_parser()
    before, _ = closer_loss(model, images, truth, None, apart=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        loss, _ = closer_loss(model, images, truth, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, parts = closer_loss(model, images, truth, None, apart=0.0)
    assert float(after.detach()) < 0.3 * float(before.detach())
    assert set(parts) == {*OBJECT_HEADS, *(f"{name} alone" for name in OBJECT_HEADS)}
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("closer."))


@pytest.mark.parametrize("make", [lambda: FlowLM(FlowLMConfig(vocab_size=50, **SMALL)),
                                  lambda: SceneParser(SceneParserConfig(width=32, depth=1, closer=(8, 16))),
                                  lambda: ImageEncoder(ImageEncoderConfig(side=4, embedding_size=8))])  # fmt: skip
def test_saved_models_load_again(make, tmp_path) -> None:
    model = make().eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not list(tmp_path.glob("*.bin"))
    for name, value in again.named_buffers():  # those that are not saved are made again
        assert torch.equal(value, dict(model.named_buffers())[name]), name


def test_discriminant_by_hand() -> None:
    """Classes differ along x and a little along y, noise is large along x: y separates better, and comes first."""
    import numpy as np

    means = np.array([[3.0, 1.0], [-3.0, -1.0], [3.0, -1.0], [-3.0, 1.0]])
    vectors = discriminant(means, np.diag([100.0, 0.01]), size=2, ridge=0.0)
    assert abs(vectors[1, 0]) > 100 * abs(vectors[0, 0])
    assert np.allclose(vectors.T @ np.diag([100.0, 0.01]) @ vectors, np.eye(2))
