"""Techniques see and edit the attention of models that read an image and write text about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import test_bridges_chameleon
import test_bridges_emu3
import test_bridges_janus
import test_bridges_vlm
from showtell.bridges.base import Technique
from showtell.bridges.vlm import VisionLanguageBridge
from showtell.errors import ShowtellError

MAKERS: dict[str, Callable[[], Any]] = {
    **{name: lambda make=make: VisionLanguageBridge(*make()) for name, make in test_bridges_vlm.MAKERS.items()},
    "janus": test_bridges_janus.bridge,
    "emu3": test_bridges_emu3.bridge,
    "chameleon": test_bridges_chameleon.bridge,
}
# Grid of the image's tokens: Qwen2-VL keeps its shape, Emu3 ends its rows with a token.
GRIDS = {
    "llava": (2, 2), "qwen2_vl": (1, 2), "blip2-opt": (1, 3), "blip2-t5": (1, 3), "janus": (4, 4), "emu3": (2, 4),
    "chameleon": (4, 4),
}  # fmt: skip
QUESTION = "a red ring above the dog"


@pytest.fixture(scope="module", params=MAKERS)
def named(request: Any) -> tuple[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bridge = MAKERS[request.param]()
    if request.param in test_bridges_vlm.MAKERS:
        for parameter in bridge.model.parameters():
            if parameter.ndim > 1:
                parameter.data *= 6
    return request.param, bridge


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


class At(Technique):
    """Calls a function at every site, and keeps the logits that follow."""

    def __init__(self, act: Callable[[Any, Any], Any], kinds: tuple[str, ...] = ("told", "joint")) -> None:
        self.act, self.kinds, self.scores = act, kinds, list[torch.Tensor]()

    def wants(self, run: Any, place: Any) -> bool:
        return place.kind in self.kinds

    def attention(self, run: Any, site: Any) -> None:
        self.act(run, site)

    def logits(self, run: Any, logits: torch.Tensor) -> None:
        self.scores.append(logits.clone())


def asked(bridge: Any, act: Any, questions: Any = QUESTION, count: int = 2, **more: Any) -> torch.Tensor:
    """The logits of every step, (steps, n, vocabulary), with a function at every site."""
    technique = At(act, **more)
    bridge.answer(pixels(count), questions, max_new_tokens=3, min_new_tokens=3, using=[technique])
    return torch.stack(technique.scores)


def test_every_call_of_the_language_model_is_placed(named: Any) -> None:
    name, bridge = named
    places: list[Any] = []
    asked(bridge, lambda run, site: places.append(site.place))
    assert {place.grid for place in places} == {GRIDS[name]}
    told = [(place.step, place.name) for place in places if place.kind == "told"]
    names = list(dict.fromkeys(name for _, name in told))
    assert told == [(step, each) for step in range(3) for each in names] and len(names) == 2
    assert [place.name for place in places if place.kind == "joint"] == (
        [f"encoder.block.{i}.layer.0.SelfAttention" for i in range(2)] if name == "blip2-t5" else []
    )


def test_maps_are_probabilities(named: Any) -> None:
    _, bridge = named

    def check(run: Any, site: Any) -> None:
        maps, whole = site.maps(), site.probabilities("text")
        height, width = site.grid
        assert maps.shape[:3] == (2, site.query.shape[1], height * width)
        assert (whole.sum(-1) - 1).abs().max() < 1e-5
        output = whole @ site.value.repeat_interleave(whole.shape[1] // site.value.shape[1], dim=1)
        assert (output - site.output).abs().max() < 1e-4
        if site.kind == "told":
            own = whole[:, :, site.told][..., site.image_keys].transpose(-1, -2)
            assert (maps - own).abs().max() < 1e-6
            assert (site.maps(over="image").sum(-2) - 1).abs().max() < 1e-5
            with pytest.raises(ShowtellError, match="no image among its queries"):
                site.probabilities("text", "image")
        spread.append(maps.std().item())

    spread: list[float] = []
    asked(bridge, check)
    assert spread and max(spread) > 1e-4


IDENTITIES: dict[str, Callable[[Any], Any]] = {
    "read": lambda site: site.maps(),
    "edit": lambda site: site.edit(lambda maps: maps * 1.0),
    "rescale": lambda site: site.rescale(torch.ones(1)),
    "rescale logits": lambda site: site.rescale(torch.ones(1), on="logits"),
    "bias": lambda site: site.bias(torch.zeros(1)),
    "mask": lambda site: site.mask(torch.ones(1, dtype=torch.bool)),
    "take": lambda site: site.take([0, 1]),
    "output": lambda site: setattr(site, "output", site.output),
}


def test_identity_edits_change_no_bit(named: Any) -> None:
    name, bridge = named
    plain = asked(bridge, lambda run, site: None)
    for identity, act in IDENTITIES.items():
        edited = asked(bridge, lambda run, site, act=act: act(site))
        if name == "emu3" and identity in ("edit", "rescale", "take", "output"):
            # One query per key head: touched, it leaves the library's packed kernel, which rounds its own way.
            assert (edited - plain)[plain.isfinite()].abs().max() < 1e-3, identity
        else:
            assert torch.equal(edited, plain), identity


def test_masking_the_image_removes_it_from_the_softmax(named: Any) -> None:
    name, bridge = named

    def hide(run: Any, site: Any) -> None:
        count = site.image_keys.stop - site.image_keys.start
        logits = site.logits("text", "all")
        site.mask(torch.zeros(count, dtype=torch.bool), queries="all", keys="image")
        now, kept = site.probabilities("text"), torch.ones(logits.shape[-1], dtype=torch.bool)
        kept[site.image_keys] = False
        seen.append(1)
        if site.kind == "told":
            assert site.maps().abs().max() == 0
            rows = site.told  # all see something besides the image
            if site.image_keys.start == 0 and now.shape[-2] > 1 and not kept[: site.told.start + 1].any():
                return
            removed = logits[:, :, rows][..., kept].softmax(-1)
            assert (now[:, :, rows][..., kept] - removed).abs().max() < 1e-6

    seen: list[int] = []
    plain, hidden = asked(bridge, lambda run, site: None), asked(bridge, hide)
    assert seen and (hidden - plain)[plain.isfinite()].abs().max() > 1e-4
    # With the image gone the two samples are told apart by nothing.
    if name not in ("blip2-t5", "chameleon", "emu3"):
        finite = hidden[0].isfinite().all(0)
        assert (hidden[0, 0] - hidden[0, 1])[finite].abs().max() < 1e-4
        assert (plain[0, 0] - plain[0, 1])[finite].abs().max() > 1e-4


def test_masking_a_word_is_the_word_s_column(named: Any) -> None:
    _, bridge = named

    def hide(run: Any, site: Any) -> None:
        logits = site.logits("text", "all")
        keep = torch.ones(site.text.stop - site.text.start, dtype=torch.bool)
        keep[list(run.words(QUESTION)["ring"])] = False
        site.mask(keep, queries="all", keys="text")
        columns = torch.ones(logits.shape[-1], dtype=torch.bool)
        columns[site.text] = keep
        now = site.probabilities("text")[:, :, -1]
        assert now[..., ~columns].abs().max() == 0
        assert (now[..., columns] - logits[:, :, -1][..., columns].softmax(-1)).abs().max() < 1e-6
        seen.append(1)

    seen: list[int] = []
    plain, hidden = asked(bridge, lambda run, site: None), asked(bridge, hide)
    assert seen and (hidden - plain)[plain.isfinite()].abs().max() > 1e-5


def test_words_are_where_the_model_reads_them(named: Any) -> None:
    """Another word in the question changes exactly the keys that `words` names, at the first layer."""
    _, bridge = named
    keys: list[torch.Tensor] = []

    def keep(run: Any, site: Any) -> None:
        if site.step == 0 and site.depth == 0:
            keys.append(site.key[:, :, site.text].clone())
            places.append(run.words(run.prompts[0]))

    places: list[Any] = []
    for question in (QUESTION, "a red ring above the cat"):
        asked(bridge, keep, question, count=1)
    change = (keys[0] - keys[1]).abs().amax(dim=(0, 1, 3))
    words = places[0]
    assert (change > 1e-6).nonzero().flatten().tolist() == list(words["dog"])
    assert list(places[1]["cat"]) == list(words["dog"]) and max(words["red"]) < min(words["ring"])
    whole = bridge.words(QUESTION, to="answer")
    assert whole.as_dict() == words.as_dict()


def test_samples_of_different_length_are_each_as_alone(named: Any) -> None:
    _, bridge = named
    questions = ["a dog", "a big red ring on the green table", "a cat"]

    def hide(run: Any, site: Any) -> None:
        keep = torch.zeros(site.image_keys.stop - site.image_keys.start)
        site.mask(keep, queries="all", keys="image")
        sizes.append(len(run.prompts))

    sizes: list[int] = []
    together = bridge.answer(pixels(3), questions, max_new_tokens=4, using=[At(hide)])
    assert set(sizes) == {1, 2}, "the two short ones share a batch"
    alone = [
        bridge.answer(image, text, max_new_tokens=4, using=[At(hide)])[0]
        for image, text in zip(pixels(3), questions, strict=True)
    ]
    assert together == alone
    assert together != bridge.answer(pixels(3), questions, max_new_tokens=4)


def test_captions_too_and_nothing_is_left_behind(named: Any) -> None:
    _, bridge = named

    def hooks() -> int:
        # The library leaves hooks of its own, on the vision tower.
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in bridge.teller.model.modules())

    plain, before = bridge.caption(pixels(), max_new_tokens=3), hooks()
    seen: list[int] = []
    assert bridge.caption(pixels(), max_new_tokens=3, using=[At(lambda run, site: seen.append(hooks()))]) == plain
    assert seen and min(seen) > before == hooks() and "attend" in bridge.can


def test_prompts_that_a_technique_makes_unequal() -> None:
    class Longer(At):
        def prompt(self, run: Any, prompts: list[str]) -> list[str]:
            return [prompts[0], prompts[1] + " and the big cat"]

    bridge = test_bridges_janus.bridge()
    with pytest.raises(ShowtellError, match=r"prompts of one length in a batch.*pass batch_size=1"):
        bridge.answer(pixels(), "a dog", max_new_tokens=2, using=[Longer(lambda run, site: None)])


def test_attention_that_cannot_be_seen_is_an_error() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bridge = VisionLanguageBridge(*test_bridges_vlm.llava())
    bridge.model.set_attn_implementation("eager")
    with pytest.raises(ShowtellError, match="set_attn_implementation"):
        bridge.answer(pixels(1), "a dog", max_new_tokens=2, using=[At(lambda run, site: None)])
