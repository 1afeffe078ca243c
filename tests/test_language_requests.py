"""Requests read by rule: frames, names, endings, tags."""

from __future__ import annotations

from showtell.language.requests import by_tags, named, shared_ending, wanted, with_ending


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


def test_words_in_the_way_of_examples() -> None:
    examples = ["a cat, in sepia style", "a ring, a star, in sepia style"]
    assert with_ending("a dog", examples) == "a dog, in sepia style" and with_ending("a dog", []) == "a dog"
    assert with_ending("a dog, in sepia style", examples) == "a dog, in sepia style"


def test_tags_make_a_tree() -> None:
    found = by_tags({"a": ["cat", "sepia", "old"], "b": ["cat"], "c": [], "d": ["cat", "sepia"]})
    assert found == {"cat": {"sepia": ["a", "d"], "general": ["b"]}, "general": {"general": ["c"]}}
