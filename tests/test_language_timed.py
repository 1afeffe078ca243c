"""Prompts with parts that act for a while: how they are read, and what is left of them at a step."""

from __future__ import annotations

from showtell.language.timed import Part, parse, shown


def test_parsing_and_what_is_shown() -> None:
    parts = parse("a horse, [anime:0-0.5:1.5] style, [detailed:0.85-1:1]")
    assert parts[::2] == [Part("a horse, "), Part(" style, ")]
    assert parts[1::2] == [Part("anime", 0.0, 0.5, 1.5), Part("detailed", 0.85, 1.0, 1.0)]
    # Times run from noise to image: 0.85-1 is the beginning, 0-0.5 the second half, as in the released code.
    assert [part.active(step, 10) for part in parts[3:] for step in range(10)] == [True] * 2 + [False] * 8
    assert [part.active(step, 10) for part in parts[1:2] for step in range(10)] == [False] * 5 + [True] * 5
    text, weighted = shown(parts, 9, 10)
    assert text == "a horse, anime style" and [(text[s.start : s.stop], w) for s, w in weighted] == [("anime", 1.5)]
    assert shown(parse("a horse, [anime:0-0.5:1], detailed"), 0, 10)[0] == "a horse, detailed"
    assert shown(parse("a [b] c [d:e:f]"), 0, 10) == ("a [b] c [d:e:f]", [])
    # Ranges that meet leave no step out and show none twice.
    halves = [Part("x", *where, 1.0) for where in ((0.0, 0.5), (0.5, 1.0))]
    assert all(sum(half.active(step, 7) for half in halves) == 1 for step in range(7))
