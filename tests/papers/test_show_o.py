"""Show-o: holes and what lies beside, groups against one by one, hosts; attention and losses: test_unified.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from examples import run_example
from laboratory import Laboratory
from worlds import bright

import small_unified
from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.papers.unify import show_o as module
from showtell.papers.unify.show_o import extend, inpaint, tokens_of
from showtell.steer.boxes import grown
from showtell.steer.decoding import InGroups
from showtell.world import Scene

PROMPTS = ["a red circle", "a blue star"]


@pytest.mark.host("show_o", "image_text_lm")
def test_only_the_hole_is_filled_in() -> None:
    """The right half of the first picture, nothing of the second; the prompt decides what comes there."""
    bridge, images = small_unified.masked(), list(small_unified.pictures().numpy())
    tokens = tokens_of(bridge, images)
    holes = [(0.5, 0.0, 1.0, 1.0), (0.3, 0.3, 0.3, 0.3)]
    call: dict[str, Any] = {"seed": 0, "output_type": "latent"}
    made = torch.stack(inpaint(bridge, images, holes, PROMPTS, **call))
    assert torch.equal(made[0, :, :2], tokens[0, :, :2]) and torch.equal(made[1], tokens[1])
    assert not torch.equal(made[0, :, 2:], tokens[0, :, 2:])
    other = inpaint(bridge, images, holes, ["a green heart", "a cross"], **call)[0]
    assert torch.equal(other[:, :2], tokens[0, :, :2]) and not torch.equal(other, made[0])
    [shown] = inpaint(bridge, images[1:], holes[1:], PROMPTS[1:], seed=0)
    assert np.abs(np.asarray(shown, int) - images[1].astype(int)).max() <= 1
    with pytest.raises(ShowtellError, match="2 pictures but 1 boxes"):
        inpaint(bridge, images, holes[:1], PROMPTS)


def test_what_lies_to_the_right() -> None:
    bridge, images = small_unified.masked(), list(small_unified.pictures().numpy())
    tokens = tokens_of(bridge, images)
    made = torch.stack(extend(bridge, images, PROMPTS, right=0.25, seed=0, output_type="latent"))
    assert torch.equal(made[:, :, :3], tokens[:, :, 1:]) and (made < bridge.decoder.codes_count).all()
    with pytest.raises(ShowtellError, match="columns"):
        extend(bridge, images, PROMPTS, right=0.05)


@pytest.mark.host("show_o", "janus", "it was trained to say the next token, not to fill in any")
def test_models_that_fill_in_nothing_are_refused() -> None:
    import test_bridges_janus

    for bridge in (test_bridges_janus.bridge(), small_unified.bridge()):
        with pytest.raises(ShowtellError, match="does not fill in image tokens"):
            inpaint(bridge, list(small_unified.pictures(1).numpy()), [(0, 0, 1, 1)], ["a"])


def test_groups_of_one_are_token_by_token() -> None:
    bridge = small_unified.bridge()
    call: dict[str, Any] = {"seed": 2, "output_type": "latent"}
    plain = torch.stack(bridge.generate(PROMPTS, **call))
    assert torch.equal(torch.stack(bridge.generate(PROMPTS, using=[InGroups(16)], **call)), plain)
    assert torch.equal(torch.stack(bridge.generate(PROMPTS, using=[InGroups(99)], **call)), plain)
    with pytest.raises(ShowtellError, match="1 or more"):
        InGroups(0)


def test_groups_need_fewer_passes_and_know_the_groups_before() -> None:
    """Four passes; the first token of every group is what it would be after the tokens before it."""
    bridge, seen = small_unified.bridge(), list[int]()
    plain = torch.stack(bridge.generate(PROMPTS, do_sample=False, output_type="latent"))
    decoder = bridge.decoder
    several = decoder.several
    decoder.several = lambda run, names, inputs: seen.append(inputs.shape[1]) or several(run, names, inputs)
    made = torch.stack(bridge.generate(PROMPTS, using=[InGroups(4)], do_sample=False, output_type="latent"))
    assert seen == [4, 7, 7, 7], "what opens the image or the group before, and guesses"
    assert torch.equal(made[:, 0, 0], plain[:, 0, 0]) and not torch.equal(made, plain)

    class Force(Technique):
        def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
            return made.flatten(1)[:, run.step] if run.step < 4 else tokens

    after = torch.stack(bridge.generate(PROMPTS, using=[Force()], do_sample=False, output_type="latent"))
    assert torch.equal(after[:, 1, 0], made[:, 1, 0])


def test_groups_obey_the_hooks_of_every_token() -> None:
    """A technique sees guided logits and the chosen token of each place, in their order, and has the last word."""
    bridge, seen = small_unified.bridge(), list[tuple[str, int]]()

    class Only(Technique):
        def logits(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
            seen.append(("logits", run.step))
            assert torch.allclose(logits, run.unconditional + run.guidance * (run.conditional - run.unconditional))
            return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([run.step]), 0.0)

        def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(("tokens", run.step))
            return tokens + 1

    [made, _] = bridge.generate(PROMPTS, using=[InGroups(4), Only()], output_type="latent", seed=0)
    assert made.flatten().tolist() == list(range(1, 17))
    assert seen == [(hook, step) for step in range(16) for hook in ("logits", "tokens")]


def test_another_thing_in_the_place_of_the_last() -> None:
    scene, other = Scene.parse("a red circle left of a blue star"), Scene.parse("a blue star above a green heart")
    made = module.WORLD.replaced(scene, other)
    assert made.objects[0] == scene.objects[0] and made.objects[1].x == scene.objects[1].x
    assert (made.objects[1].shape, made.objects[1].colour) == ("heart", "green")


def test_holes_take_all_of_a_thing() -> None:
    """In the experiment's world, every token that differs from the blank background lies in its thing's hole."""
    own = module.WORLD
    for scene in own.scenes(20, 3, objects=1):
        hole = grown(tuple(module.boxes(scene)[0].tolist()), module.MARGIN)
        codes = own.codes([scene]).view(8, 8)
        middles = (torch.arange(8) + 0.5) / 8
        rows, columns = (middles >= hole[1]) & (middles <= hole[3]), (middles >= hole[0]) & (middles <= hole[2])
        inside = rows[:, None] & columns
        assert int(inside.sum()) == 9 and len(codes[~inside].unique()) == 1


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 8, "STEPS": 1, "BATCH": 4, "PASSES": 2}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "score_images", lambda score, images, scenes, judge="first": bright(images))
    lab: Any = Laboratory(seeds=1)
    shown, passes, told, filled = module.experiment(lab)
    assert shown.control == "causal images" and filled.control == "no hole"
    assert (passes.scores["token by token"] == 65).all(), "the prompt, then every token"
    assert (passes.scores["show-o"] == 12).all()  # type: ignore[attr-defined]
    assert told.scores["show-o"].shape == (1, 2)  # type: ignore[attr-defined]


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_example(module.EXAMPLE, monkeypatch, {"show-o": small_unified.masked()})
    assert found["other"].size == found["wider"].size == (64, 64) and isinstance(found["answer"], str)
