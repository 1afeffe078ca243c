"""G-Refine: quality and repair maps by hand, dense features of CLIP, what is repaired and what is left alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from examples import Small
from examples import run_example as run
from hosts import PROMPTS, bridge_of, hosts, keywords
from laboratory import Laboratory

import test_bridges_clip
from showtell import language
from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.measure.dense import Found, alignment, dense
from showtell.papers.compose import g_refine
from showtell.papers.compose.g_refine import learn_quality, quality_of, refine, repair_map
from showtell.pictures import to_pil


@cache
def clip() -> Any:
    return ClipBridge(*test_bridges_clip.make("clip"))


def pictures(count: int = 2, side: int = 32) -> list[Any]:
    return to_pil(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def call(name: str) -> dict[str, Any]:
    return {key: value for key, value in keywords(name).items() if key not in ("output_type", "seed")}


@pytest.mark.host("g_refine", "clip")
def test_dense_features() -> None:
    whole, patches = dense(clip(), pictures())
    assert whole.shape == (2, 8) and patches.shape == (2, 2, 2, 8)
    assert torch.allclose(whole, clip().embed(images=pictures()), atol=1e-5)
    assert torch.allclose(patches.norm(dim=-1), torch.ones(2, 2, 2))
    # Value-value attention by hand, of the first patch of the first picture.
    model = clip().model
    pixels = clip().processor.image_processor(pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][0]
        layer = model.vision_model.encoder.layers[-1]
        values = layer.self_attn.v_proj(layer.layer_norm1(states))
        heads = []
        for part in values.split(values.shape[-1] // 2, dim=-1):
            weights = (part[1] @ part.T / part[1].norm()).softmax(dim=0)
            heads.append(weights @ part)
        mixed = states[1] + layer.self_attn.out_proj(torch.cat(heads))
        wanted = F.normalize(model.visual_projection(model.vision_model.post_layernorm(mixed)), dim=0)
    assert torch.allclose(patches[0, 0, 0], wanted, atol=1e-5)
    siglip = ClipBridge(*test_bridges_clip.make("siglip"))
    with pytest.raises(ShowtellError, match="use a CLIP"):
        dense(siglip, pictures())


def test_the_worst_factor_counts() -> None:
    up = torch.tensor([0.0, 1.0])
    quality = torch.stack([torch.stack([up, -up]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])])
    found = quality_of(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]), quality, scale=1.0)
    assert found[0] == found[1] == 0.5 and found[2].item() == pytest.approx(1 / (1 + np.exp(-1.2)))


def test_quality_is_learnt() -> None:
    good, dark = pictures(6), [one.point(lambda v: v // 8) for one in pictures(6)]
    quality = learn_quality(clip(), good, {"technical": dark})
    scale = float(clip().model.logit_scale.exp())
    fine, poor = (quality_of(dense(clip(), these)[0], quality, scale) for these in (good, dark))
    assert fine.min() > 0.5 > poor.max() and quality.shape == (1, 2, 8)


def test_where_to_repair() -> None:
    left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    ring, star = Found("a red ring", 0.9, 0.8, left), Found("a blue star", 0.9, 0.8, right)
    assert not repair_map([ring, star], 0.5).any(), "all is there"
    faded = Found("a blue star", 0.9, 0.2, right)
    assert torch.equal(repair_map([ring, faded], 0.5), right.bool()), "the attribute is wrong: at its noun"
    gone = Found("a blue star", 0.1, 0.1, left)
    assert torch.equal(repair_map([ring, gone], 0.5), ~left.bool()), "the thing is missing: where no other is"
    assert repair_map([gone], 0.5).all()
    twins = [Found("a ring", 0.9, 0.8, left), Found("a ring", 0.9, 0.2, right)]
    assert torch.equal(repair_map(twins, 0.5), right.bool()), "two things by the same words have maps of their own"


def test_a_noun_is_there_by_a_threshold_of_its_own() -> None:
    """A wrongly coloured star, whose noun scores less than phrases must: drawn anew where it is, not everywhere."""
    left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = [Found("a red ring", 0.8, 0.95, left), Found("a blue star", 0.7, 0.8, right)]
    assert torch.equal(repair_map(found, 0.9, there=0.6), right.bool())
    assert repair_map(found, 0.9, there=0.9).all()


@pytest.mark.host("g_refine", "clip")
def test_phrases_are_scored_by_sigmoid_of_cosines() -> None:
    split = language.load().split(PROMPTS[0])
    [found] = alignment(clip(), pictures(1), [split])
    assert [one.phrase for one in found] == ["a red ring", "a blue star"]
    told = clip().embed(texts=["ring", "a red ring", ""])
    cosines = dense(clip(), pictures(1))[0] @ (told[:2] - told[2:]).T
    assert [found[0].noun, found[0].score] == pytest.approx((10 * cosines[0]).sigmoid().tolist(), abs=1e-5)


@pytest.mark.parametrize("name", hosts("g_refine", "sd", "sdxl", "sd3", "pixart"))
def test_it_repairs_what_fails_and_leaves_the_rest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, images, vectors = bridge_of(name), pictures(), torch.randn(3, 2, 8, generator=torch.manual_seed(0))
    plain = [np.asarray(one) for one in images]
    same = refine(bridge, clip(), images, PROMPTS, vectors, redraw=0.0, touch_up=0.0, **call(name))
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(same, plain, strict=True))
    strengths: list[Any] = []

    class Noted(g_refine.CellStrengths):
        def __init__(self, known: Any, maps: Any) -> None:
            strengths.append(maps)
            super().__init__(known, maps)

    monkeypatch.setattr(g_refine, "CellStrengths", Noted)
    right = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    scores = iter([0.2, 0.9, 0.9])  # of the first picture: before, and at every later look

    def aligned(clip: Any, these: Any, splits: Any) -> Any:
        score = next(scores, 0.9)
        return [[Found("a dog", 0.9, score, right)], [Found("a dog", 0.9, 0.9, right)]]

    monkeypatch.setattr(g_refine, "alignment", aligned)
    monkeypatch.setattr(g_refine, "quality_of", lambda vectors, *more: torch.full(vectors.shape[:-1], 0.95))
    refine(bridge, clip(), images, PROMPTS, vectors, threshold=0.5, **call(name))
    assert len(strengths) == 1, "well enough to look at: no second stage"
    assert torch.equal(strengths[0][0], 0.7 * right) and not strengths[0][1].any()


def test_only_what_scores_higher_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    for worth, kept in ((0.9, False), (0.1, True)):
        looks = iter([0.5, 0.5, worth, worth])  # whole and patches before, what was drawn anew, and the picture again

        def quality(vectors: Any, *more: Any, looks: Any = looks) -> torch.Tensor:
            return torch.full(vectors.shape[:-1], next(looks, 0.5))

        monkeypatch.setattr(g_refine, "quality_of", quality)
        found = refine(bridge_of("sd"), clip(), images, PROMPTS, torch.zeros(1, 2, 8), redraw=0.0, **call("sd"))
        assert all((np.asarray(a) == np.asarray(b)).all() == kept for a, b in zip(found, images, strict=True))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g_refine, "TRAINED", 4)
    accuracy, harm = g_refine.experiment(_Lab(bases={"clip": clip()}, seeds=1))
    assert list(accuracy.scores) == list(harm.scores) and next(iter(accuracy.scores)) == "g_refine"
    call = Small("sd")
    found = run(g_refine.EXAMPLE, monkeypatch, {"stable-diffusion": call, "clip": clip()})
    assert len(found["refined"]) == 2 and found["refined"][0].size == (32, 32)


class _Lab(Laboratory):
    """Where no picture was right before, nothing can be harmed: that is nan for some."""

    def compare(self, arms: Any, metric: Any = None, **more: Any) -> Any:
        return super().compare(arms, lambda images: np.nan_to_num(metric(images)), **more)
