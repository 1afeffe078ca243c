"""The networks of showtell: what must be equal, what must not leak, what a hand can compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from showtell.data.targets import found, targets
from showtell.nets.flow_lm import FlowLM, FlowLMConfig, Grounding, Lookup, Relating, Things
from showtell.nets.image_encoder import ImageEncoder, ImageEncoderConfig, discriminant
from showtell.nets.scene_parser import (
    OBJECT_HEADS,
    POSSIBLE,
    SceneParser,
    SceneParserConfig,
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
    half = segment_mask(2, torch.tensor([[True, True, False]]), torch.tensor([[False, True]]))[0, 0].int().tolist()
    assert half == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], *([0, *row[1:]] for row in expected[2:])]
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
    lay = Grounding(6, 8, 3, 5)
    thing = torch.randn(1, 1, 6)
    left, right = (lay(thing, torch.tensor([[[x, 0.5]]]))[0] for x in (0.25, 0.5))
    assert left.shape == (3, 8, 8)
    assert torch.allclose(left[:, :, :6], right[:, :, 2:], atol=1e-5) and not torch.allclose(left, right, atol=1e-2)
    assert not lay(thing, torch.full((1, 1, 2), torch.nan)).any()
    low, high = (lay(thing, torch.tensor([[[0.25, y]]]))[0] for y in (0.75, 0.25))
    assert torch.allclose(low[:, 4:, :4], high[:, :4, :4], atol=1e-5)


def test_what_is_laid_depends_on_how_many_things_lie_before_it() -> None:
    torch.manual_seed(0)
    lay, things, places = Grounding(6, 8, 3, 5), torch.randn(1, 3, 6), torch.rand(1, 3, 2)
    flipped = things.flip(1), places.flip(1)
    torch.testing.assert_close(lay(things, places), lay(*flipped))  # as it begins
    torch.nn.init.normal_(lay.before.weight)
    assert not torch.allclose(lay(things, places), lay(*flipped), atol=1e-2)
    nothing = torch.full((1, 2, 2), torch.nan)
    padded = torch.cat([things, torch.randn(1, 2, 6)], dim=1), torch.cat([places, nothing], dim=1)
    torch.testing.assert_close(lay(*padded), lay(things, places))  # places that hold nothing do not count
    nearest = torch.cat([torch.full((1, 2, 2), torch.nan), places[:, 2:]], dim=1)
    torch.testing.assert_close(
        lay(things, nearest), lay(things[:, 2:], places[:, 2:])
    )  # nothing before it, alone or not


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


def things() -> Things:
    """Two objects in the first picture, of two words and one; one object in the second."""
    words = torch.tensor([[[5, 6], [7, 0], [0, 0]], [[8, 9], [0, 0], [0, 0]]])
    places = torch.full((2, 3, 3), torch.nan)
    places[0, 0], places[0, 1] = torch.tensor([0.2, 0.3, 0.0]), torch.tensor([0.6, 0.9, 0.2])
    places[1, 0] = torch.tensor([0.5, 0.5, 0.0])
    return Things(words, places)


def test_things_are_read_as_the_sum_of_what_they_are(flow: FlowLM) -> None:
    """Words in any order, no more objects than there are, and places that count."""
    found = things()
    read = flow(IDS, VALID, found)[1][VALID]
    swapped = flow(IDS, VALID, Things(found.words.flip(-1), found.places))[1][VALID]
    assert torch.allclose(read, swapped, atol=1e-5)
    more = Things(torch.cat([found.words, torch.full((2, 1, 2), 3)], 1),
                  torch.cat([found.places, torch.full((2, 1, 3), torch.nan)], 1))  # fmt: skip
    shifted = flow.embed_things(more)
    assert torch.allclose(shifted[:, :3][found.there], flow.embed_things(found)[found.there])
    other = Things(found.words, found.places + 0.1)
    assert not torch.allclose(flow(IDS, VALID, other)[1][VALID], read, atol=1e-4)
    nothing = Things(found.words.clone().fill_(3), found.places * torch.nan)
    again = Things(found.words, found.places * torch.nan)
    assert torch.allclose(flow(IDS, VALID, nothing)[1][VALID], flow(IDS, VALID, again)[1][VALID], atol=1e-6)


def test_a_word_is_told_of_the_things_that_go_by_it() -> None:
    """At the start: of those that have this very word, as they are and by number; of nothing otherwise."""
    torch.manual_seed(0)
    lookup, book = Lookup(32, 3), torch.randn(9, 32)
    ids = torch.tensor([[[4, 5, 0], [6, 5, 0], [7, 0, 0]]])  # two things of word 5; the third is not there
    there = (ids > 0) & torch.tensor([True, True, False])[:, None]
    things = torch.randn(1, 3, 32)
    told = lookup(book[torch.tensor([[5, 4, 7, 8]])], book[ids], there, things)[0].detach()
    one, two = (things[0] + lookup.slot)[:2].detach()
    for got, wanted in zip(told, (one + two, one, 0 * one, 0 * one), strict=True):
        assert torch.allclose(got, wanted, atol=0.1)


@pytest.mark.parametrize("seen", ["picture", "things"])
def test_plain_and_fused_attention_agree(flow: FlowLM, seen: str) -> None:
    source = torch.randn(2, 3, 64, 64) if seen == "picture" else things()
    fused = flow(IDS, VALID, source)[1][VALID]
    flow.backbone.config._attn_implementation = "eager"
    assert torch.allclose(flow(IDS, VALID, source)[1][VALID], fused, atol=1e-5)


@pytest.mark.parametrize("seen", ["picture", "things"])
def test_telling_with_a_cache_is_greedy_decoding(flow: FlowLM, seen: str) -> None:
    torch.manual_seed(1)
    source = torch.randn(2, 3, 64, 64) if seen == "picture" else things()
    told = flow.tell(IDS, VALID, source, stop=49, length=6)
    for i, words in enumerate(told):
        row = IDS[i : i + 1, : int(VALID[i].sum())]
        for _ in range(6):
            own = source[i : i + 1] if seen == "picture" else source.rows(torch.tensor([i]))
            hidden = flow(row, torch.ones_like(row, dtype=torch.bool), own)[1]
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


def test_a_closer_look_is_learned_and_leaves_the_first_alone() -> None:
    """What the closer look is taught reaches no weight of the first network."""
    images, truth = lesson(sample(4, 3, objects=2))
    model = looking_parser()
    names = {*(f"{name} closer" for name in OBJECT_HEADS), *(f"{name} alone" for name in OBJECT_HEADS)}

    def lost() -> torch.Tensor:
        parts = parser_loss(model, images, truth, torch.Generator().manual_seed(0))[1]
        assert names < set(parts)
        return torch.stack([parts[name] for name in names]).sum()

    before = float(lost().detach())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        lost().backward()
        optimizer.step()
    assert float(lost().detach()) < 0.3 * before
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


def test_things_are_told_how_the_others_lie_to_them() -> None:
    """Of every other thing that is there, by its place as seen from them; of themselves nothing."""
    torch.manual_seed(0)
    relating, places = Relating(32, hidden=16), torch.full((1, 4, 3), torch.nan)
    places[0, :3] = torch.rand(3, 3)
    things = torch.randn(1, 4, 32)
    told = relating(things, Things(torch.ones(1, 4, 1).long(), places))
    moved = relating(things, Things(torch.ones(1, 4, 1).long(), places + 0.1))
    assert torch.allclose(told[:, :3], moved[:, :3], atol=1e-3)  # only differences of places count
    alone = relating(things[:, :1], Things(torch.ones(1, 1, 1).long(), places[:, :1]))
    assert not alone.any() and told[0, 0].abs().sum() > 0
    pairs = [relating(things[:, [0, j]], Things(torch.ones(1, 2, 1).long(), places[:, [0, j]]))[0, 0] for j in (1, 2)]
    assert torch.allclose(told[0, 0], sum(pairs), atol=1e-5)


def claims(*held: tuple[int, float, float, float]) -> dict[str, np.ndarray]:
    """What a parser says of one picture: (size class, probability, x, y) of a few slots, nothing of the others."""
    present, place = np.zeros(3 * 256, np.float32), np.zeros((3 * 256, 2), np.float32)
    for number, (size, probability, x, y) in enumerate(held):
        present[256 * size + number], place[256 * size + number] = probability, (x, y)
    return {"present": present, "place": place}


def test_claims_to_one_object_count_together() -> None:
    """On the border of two cells, or of two sizes; but not of things apart, nor a small one inside a large one."""
    halves = claims((1, 0.42, 0.5, 0.5), (1, 0.4, 0.51, 0.5))
    assert found(halves, least=0) == [256]  # the likelier says where
    sizes = claims((1, 0.3, 0.5, 0.5), (2, 0.35, 0.5, 0.52))
    assert found(sizes, least=0) == [2 * 256 + 1]
    assert found(claims((1, 0.42, 0.2, 0.5), (1, 0.4, 0.5, 0.5)), least=0) == []
    assert found(claims((0, 0.95, 0.5, 0.5), (2, 0.9, 0.5, 0.5)), least=0) == [0, 2 * 256 + 1]
    assert found(claims((1, 0.1, 0.5, 0.5))) == [256] and found(claims((1, 0.1, 0.5, 0.5)), least=0) == []
    many = claims(*((0, 0.9 - 0.01 * i, 0.1 + 0.1 * i, 0.5) for i in range(7)))
    assert len(found(many, least=0)) == 5
