"""What prompts demand, fact by fact."""

from __future__ import annotations

from showtell import language
from showtell.language.demands import demands


def test_demands_by_hand() -> None:
    lm = language.load()
    found = demands(lm.split("a red ring left of a blue star"))
    assert [(one.kind, [span.text for span in one.words], one.question) for one in found] == [
        ("thing", ["ring"], "is there a ring?"),
        ("thing", ["star"], "is there a star?"),
        ("attribute", ["red", "ring"], "is there a red ring?"),
        ("attribute", ["blue", "star"], "is there a blue star?"),
        ("left of", ["ring", "star"], "is the ring left of the star?"),
        ("apart", ["ring", "star"], ""),
    ]
    assert [one.kind for one in demands(lm.split("an orange frame"))] == ["thing", "attribute"], (
        "one cannot be mixed up"
    )
    assert "is there an orange frame?" in [one.question for one in demands(lm.split("an orange frame"))]
    kinds = [one.kind for one in demands(lm.split("a ring inside a star"))]
    assert kinds == ["thing", "thing", "apart"], "no side"
