"""Caption scores by hand, in three languages, of exact captions and of wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from showtell.errors import ShowtellError
from showtell.measure.captions import caption_exact, caption_f1, caption_scores, hallucination, statements
from showtell.world import Scene, SceneObject, sample
from showtell.world.language import LANGUAGES, STYLES

PAIR = Scene((SceneObject("ring", "red", x=0.2), SceneObject("star", "blue", "large", x=0.8)), background="sky")
# an exact caption states 2 objects, 3 attributes (red, blue, large), 1 relation, 1 background


def one(text: str, scene: Scene = PAIR) -> dict[str, float]:
    return {name: float(value[0]) for name, value in caption_scores(text, scene).items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_exact_captions_are_perfect_in_every_style(language: str) -> None:
    scenes = sample(10, 3, "validation", (1, 4))
    for style in STYLES:
        texts = [scene.caption(language, style) for scene in scenes]
        for name, value in caption_scores(texts, scenes).items():
            assert np.nan_to_num(value, nan=1.0).tolist() == [1.0] * 10, (style, name)
        assert caption_exact(texts, scenes).all() and np.nansum(hallucination(texts, scenes)) == 0


def test_a_wrong_colour_by_hand() -> None:
    got = one("a green ring left of a large blue star on a sky background")
    assert got["objects F1"] == got["relations F1"] == got["setting F1"] == 1
    assert got["attributes precision"] == got["attributes recall"] == pytest.approx(2 / 3)
    assert got["all F1"] == pytest.approx(6 / 7)


def test_a_missing_and_an_imagined_object_by_hand() -> None:
    got = one("a red ring on a sky background")
    assert (got["objects precision"], got["objects recall"]) == (1, 0.5) and got["objects F1"] == pytest.approx(2 / 3)
    assert np.isnan(got["relations precision"]) and got["relations recall"] == got["relations F1"] == 0
    assert got["all precision"] == 1 and got["all recall"] == pytest.approx(3 / 7)
    text = "a red ring left of a large blue star and a pink heart on a sky background"
    assert hallucination(text, PAIR)[0] == pytest.approx(1 / 3)
    assert one(text)["attributes precision"] == pytest.approx(3 / 4)  # an imagined thing's attributes are wrong


def test_relations_may_be_said_the_other_way_round_but_not_wrongly() -> None:
    assert one("a large blue star right of a red ring on a sky background")["relations F1"] == 1
    wrong = one("a red ring right of a large blue star on a sky background")
    assert wrong["relations precision"] == wrong["relations recall"] == 0 and wrong["objects F1"] == 1


def test_what_may_stay_unsaid_is_free_where_true_and_wrong_where_false() -> None:
    assert one("a solid red ring left of a large blue star on a sky background")["attributes F1"] == 1
    assert one("a dotted red ring left of a large blue star on a sky background")["attributes precision"] == 0.75


def test_counts_by_hand() -> None:
    three = Scene(tuple(SceneObject("ring", "red", x=x) for x in (0.2, 0.5, 0.8)))
    assert one("three red rings", three)["all F1"] == 1
    assert one("two red rings", three)["objects recall"] == pytest.approx(2 / 3)
    assert one("four red rings", three)["objects precision"] == 0.75


def test_what_cannot_be_parsed_is_read_as_far_as_it_can_be() -> None:
    text = "well, a lovely red ring sits left of what seems a large blue star star star, on a sky background"
    assert caption_exact(text, PAIR)[0] == 0
    assert one(text)["attributes recall"] == one(text)["relations recall"] == 1 and one(text)["all F1"] > 0.75
    assert len(statements("").things) == len(statements("the of and left of").things) == 0
    nothing = one("hello")
    assert nothing["all F1"] == nothing["all recall"] == 0 and np.isnan(nothing["all precision"])


def test_better_captions_score_higher() -> None:
    scenes = sample(12, 5, "validation", (2, 4))
    good = [scene.caption() for scene in scenes]
    other = good[1:] + good[:1]
    assert caption_f1(good, scenes).mean() == 1 > 0.7 > caption_f1(other, scenes).mean()
    with pytest.raises(ShowtellError, match="one caption per scene"):
        caption_f1(good[:2], scenes)
