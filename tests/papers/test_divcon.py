"""DivCon: what a layout must satisfy, the losses and masks by hand, a second round that keeps what was good."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hosts import LEFT, PROMPTS, RIGHT, UNET, bridge_of, hosts, keywords, sampled
from laboratory import Laboratory, run_example

from showtell.errors import ShowtellError
from showtell.language.facts import Facts, Thing, wrong
from showtell.language.results import Layout, Placed
from showtell.language.rules import Rules
from showtell.measure import verifying
from showtell.papers.compose import divcon as paper
from showtell.papers.compose.divcon import crops, failed, first_round, free, plan, second_round
from showtell.steer.boxes import boxes_of
from showtell.steer.refocusing import Refocus, cross_loss, self_loss

LAYOUTS = [
    Layout(PROMPTS[0], (Placed("a red ring", "a red ring", LEFT, 0), Placed("a blue star", "a blue star", RIGHT, 1))),
    Layout(PROMPTS[1], (Placed("a dog", "a dog", LEFT, 0), Placed("table", "a table", RIGHT, 1))),
]
BOXES = [boxes_of(layout) for layout in LAYOUTS]


class Watched(Refocus):
    """Notes the losses of every gradient step."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: list[torch.Tensor] = []

    def gradient(self, run: Any, latents: torch.Tensor) -> Any:
        found = super().gradient(run, latents)
        self.seen.append(found[0])
        return found


def short(name: str, **more: Any) -> dict[str, Any]:
    return {key: value for key, value in keywords(name, **more).items() if key != "seed"}


@pytest.mark.parametrize("name", hosts("divcon", *UNET))
def test_two_rounds(name: str) -> None:
    images, kept = first_round(bridge_of(name), PROMPTS, LAYOUTS, 3, **short(name))
    assert len(kept) == 4 and not torch.equal(torch.stack(images), sampled(name))
    hard = [[False, True], [True, True]]
    again = second_round(bridge_of(name), PROMPTS, LAYOUTS, (images, kept), hard, 3, **short(name))
    assert again[1] is images[1], "all are hard: no second round"
    width = images[0].shape[-1]
    # The last step is free; before it the left half is what it was, but for the soft border.
    assert not torch.equal(again[0], images[0])
    changed = (again[0] - images[0]).abs().mean(dim=(0, 1))
    assert changed[: width // 4].mean() < changed[-width // 4 :].mean() / 2
    assert second_round(bridge_of(name), PROMPTS, LAYOUTS, (images, kept), [[False] * 2] * 2, 3) == images


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_refocusing_lowers_the_loss_of_every_sample(name: str) -> None:
    technique = Watched(BOXES, scale=(0.3, 0.3), until=0.3, iterations=4, enough=0.0)
    together = sampled(name, technique)
    assert len(technique.seen) == 4 and (technique.seen[-1] < technique.seen[0]).all()
    alone = sampled(name, Refocus(BOXES[:1], (0.3, 0.3), iterations=4, enough=0.0), prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    plain = sampled(name)
    assert torch.equal(sampled(name, Refocus(BOXES, iterations=0)), plain)
    assert torch.equal(sampled(name, Refocus({"cat": [LEFT]})), plain), "nothing that the prompts name"


def test_losses_by_hand() -> None:
    maps = torch.tensor([[[0.8, 0.3, 0.4]], [[0.2, 0.1, 0.6]]])  # two words, three cells in a row
    first, last = torch.tensor([[[True, False, False]]]), torch.tensor([[[False, False, True]]])
    ring = (1 - 0.8) + 0.3 / 2 + 0.4  # its box, the background, the other's box
    star = (1 - 0.6) + 0.1 / 2 + 0.2
    assert float(cross_loss(maps, [[0], [1]], [first, last])) == pytest.approx((ring + star) / 2)
    assert float(cross_loss(maps, [], [])) == 0
    attention = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.0, 0.1, 0.9]])
    assert float(self_loss(attention, [first, last])) == pytest.approx((0.5 + 0.1) / 2)


def test_what_may_change() -> None:
    mask = free(LAYOUTS[0], [False, True], 64)
    assert mask[:, :23].max() == 0 and mask[:, 25:].min() == 1, "the hard box, grown, is cut out of the good one's"
    apart = Layout("", (Placed("", "", (0, 0, 0.25, 0.25), 0), Placed("", "", (0.75, 0.75, 1, 1), 1)))
    soft = free(apart, [False, True], 64)
    assert soft[0, 0] == 0 and 0 < soft[10, 23] < 1 and soft[40, 40] == 1
    assert (free(apart, [True, True]) == 1).all()


def test_failed_objects_are_told_from_their_crops() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 200
    image = __import__("PIL.Image").Image.fromarray(picture)
    assert [one.size for one in crops(image, LAYOUTS[0])] == [(34, 64), (34, 64)]
    asked: list[Any] = []

    def score(pictures: Any, texts: Any) -> list[float]:
        asked.append(texts)
        return [np.asarray(one).mean() / 255 for one in pictures]

    assert failed([image], LAYOUTS[:1], score, 0.25) == [[True, False]] and asked == [["a red ring", "a blue star"]]


def test_layouts_are_checked_against_the_reasoning() -> None:
    facts = Facts([Thing("two dogs", "a dog", 2), Thing("a cat", "a cat")], [(0, "left of", 1)])
    left, middle, right = (0.0, 0.0, 0.2, 0.2), (0.4, 0.0, 0.6, 0.2), (0.8, 0.0, 1.0, 0.2)
    assert wrong(facts, [[left, middle], [right]]) == ""
    assert wrong(facts, [[left], [right]]) == "the counts"
    assert wrong(facts, [[left, right], [middle]]) == "two dogs left of a cat"
    layout = plan("three small red circles left of a blue star", seed=1)
    assert [one.prompt for one in layout.placed].count("a small red circle") == 3 and len(layout.placed) == 4
    star = layout.placed[-1].box
    assert all(one.box[2] <= star[2] for one in layout.placed[:3])


def test_a_model_that_errs_is_asked_again() -> None:
    """Told everything at once it would put the star anywhere; the first request leaves the second only boxes."""
    asked: list[int] = []

    def draw(seed: int, **given: Any) -> Any:
        asked.append(seed)
        sides = [LEFT, RIGHT] if seed == 2 else [RIGHT, LEFT]
        return [[side] for side in sides]

    things = [{"phrase": "a ring", "one": "a ring", "count": 1}, {"phrase": "a star", "one": "a star", "count": 1}]
    lm = Rules({"reason": lambda prompt: {"objects": things, "relations": [[0, "left of", 1]]}, "draw": draw})
    assert plan("a ring left of a star", lm).boxes == [LEFT, RIGHT] and asked == [0, 1, 2]
    with pytest.raises(ShowtellError, match="a ring left of a star"):
        plan("a ring left of a star", lm, tries=2)


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="boxes: got 1"):
        sampled("sd", Refocus(BOXES[:1]))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimpleNamespace(objects=[SimpleNamespace(shape="ring", colour="red")])
    monkeypatch.setattr(verifying, "read", lambda images, judge: [whole] * len(images))
    complete, count, relations = paper.experiment(Laboratory())
    assert list(complete.scores) == list(count.scores) == list(relations.scores)
    assert next(iter(complete.scores)) == "two rounds"
    assert "judge" not in inspect.signature(complete.metric).parameters, "the second judge chose what to draw again"
    made = bridge_of("sdxl")
    monkeypatch.setattr(type(made), "embed", lambda self, images=None, texts=None: torch.ones(len(images or texts), 2))
    assert run_example(paper.EXAMPLE, monkeypatch, "sdxl")["image"].size == (32, 32)
