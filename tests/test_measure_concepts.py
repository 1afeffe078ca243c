"""Concepts: unseen looks, prompts that do not give them away, scores worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from showtell.errors import ShowtellError
from showtell.measure import concepts
from showtell.measure.concepts import Concept, ConceptPrompts, concept, shown_by
from showtell.measure.prompts import prompt_set
from showtell.measure.scores import read
from showtell.world import Scene, SceneObject
from showtell.world.sampling import held_out

STAR = Concept(SceneObject("star", "green", texture="dotted"))


def test_concepts_are_unseen_and_seeded() -> None:
    found = [concept(seed) for seed in range(20)]
    assert all(held_out(one.thing.shape, one.thing.colour) and one.thing.texture != "solid" for one in found)
    assert found == [concept(seed) for seed in range(20)] and len({one.thing for one in found}) > 10
    assert all(one.like != one.thing.colour for one in found)


def test_pictures_show_it_alone() -> None:
    for scene in read(STAR.pictures(4), fast=True):
        assert [(one.shape, one.colour) for one in scene.objects] == [("star", "green")]
        assert scene.background not in ("white", "green")


def test_prompts_name_it_by_its_word_and_class() -> None:
    prompts = prompt_set("pairs", 12)
    found = ConceptPrompts(STAR, prompts)
    for text, other, scene in zip(found.texts, found.others, prompts.scenes, strict=True):
        assert text.count("sks star") == 1 and "green star" not in text and "dotted" not in text
        assert other.shape != "star" and f"{other.colour} {other.shape}" in text
        assert other.shape == scene.objects[1].shape or scene.objects[1].shape == "star"
    with pytest.raises(ShowtellError, match="two objects"):
        ConceptPrompts(STAR, prompt_set("objects-3-4", 2))


def test_scores_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ConceptPrompts(STAR, prompt_set("pairs", 1))
    [other] = found.others
    plain, dotted = SceneObject("star", "green"), STAR.thing
    red = SceneObject("star", "red", texture="dotted")

    def scored(*things: Any, background: str = "white") -> tuple[float, ...]:
        monkeypatch.setattr(concepts, "read", lambda images, judge: [Scene(tuple(things), background)])
        return tuple(round(float(getattr(found, name)([None])[0]), 4) for name in ("identity", "rest", "both"))

    assert scored(dotted, other) == (1.0, 1.0, 1.0)
    assert scored(plain, other) == (0.5, 1.0, round(2 * 0.5 / 1.5, 4))
    assert scored(red, plain, other) == (0.5, 1.0, round(2 * 0.5 / 1.5, 4)), "the best of those of its shape"
    assert scored(dotted) == (1.0, round(1 / 3, 4), 0.5)
    assert scored(other, background="sand") == (0.0, round(2 / 3, 4), 0.0)
    # The concept's look has come over the other thing.
    assert scored(dotted, replace(other, texture="dotted"))[1] == round(2 / 3, 4)


def test_metrics_of_prompts_that_differ_from_seed_to_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read_by(images: Any, judge: str) -> list[Scene]:
        asked.append(judge)
        return images

    monkeypatch.setattr(concepts, "read", read_by)
    for thing in (STAR.thing, replace(STAR.thing, colour="red")):
        found = ConceptPrompts(Concept(thing), prompt_set("pairs", 1))
        images = [Scene((STAR.thing, found.others[0]))]
        assert shown_by("identity")((found, images)) == found.identity(images)
        assert shown_by("both")((found, images), judge="second") == found.both(images)
    assert shown_by("rest").__name__ == "rest" and "second" in asked
