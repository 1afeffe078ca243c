"""Requests read by rule: frames, names, endings."""

from __future__ import annotations

from showtell.language.requests import named, shared_ending, wanted


def test_what_is_wanted() -> None:
    assert wanted("Please draw me a red ring!") == ("instruction", "a red ring")
    assert wanted("I dream of a cat") == ("inspiration", "a cat")
    assert wanted("suppose it rained, there would be a boat.") == ("hypothesis", "a boat")
    assert wanted("a drawing of a cat.") == ("prompt", "a drawing of a cat.")


def test_names_are_whole_words() -> None:
    assert named("a Cat in sepia style", ["sepia", "cat", "style sheet", "at"]) == ["sepia", "cat"]


def test_endings() -> None:
    assert shared_ending(["a cat, in sepia style", "a ring, a star, in sepia style"]) == "in sepia style"
    assert shared_ending(["a cat, in sepia style", "a ring"]) == "" == shared_ending([]) == shared_ending(["a cat"])
