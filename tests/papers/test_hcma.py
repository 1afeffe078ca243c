"""HCMA: boxes and contrast by hand, steps that lower their own loss, an aligner that learns, every host."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import pytest
import torch
from hosts import DIT, LEFT, PROMPTS, RIGHT, UNET, bridge_of, hosts, sampled
from laboratory import Laboratory, run_example

from showtell.errors import ShowtellError
from showtell.nets.aligner import cover
from showtell.papers.compose import hcma
from showtell.papers.compose.hcma import Aligner, Hcma, aligned, contrast, misfit, sentences

BOXES = [{"red ring": LEFT, "blue star": RIGHT}, {"dog": LEFT}]


@cache
def aligner_of(name: str) -> Aligner:
    shape, text = sampled(name, num_inference_steps=1).shape, sentences(bridge_of(name), ["a dog"]).shape[1]
    torch.manual_seed(0)
    return Aligner(shape[1], shape[2:], text, patch=1, width=16, layers=1).eval().requires_grad_(False)


class Watched(Hcma):
    """Notes both losses at every step, before and after the latents moved."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def before(self, run: Any, latents: torch.Tensor) -> Any:
        moved = super().before(run, latents)
        self.seen.append((*self.losses(run, latents), *self.losses(run, latents if moved is None else moved)))
        return moved


def test_what_boxes_cover() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 1.0, 0.75]]])
    assert torch.allclose(cover(boxes, (2, 2)), torch.tensor([[[1.0, 0, 1, 0], [0, 0, 0.25, 0.5]]]))


def test_the_losses_by_hand() -> None:
    red, blue = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert misfit(torch.stack([red, blue, -red]), red.expand(3, 2)).tolist() == pytest.approx([0, 1, 2])
    scale, told = torch.tensor(2.0).log(), torch.stack([red, blue])
    right = math.log(1 + math.exp(-2))  # logits 2 and 0
    assert contrast(told, told, scale).item() == pytest.approx(right, abs=1e-5)
    assert contrast(told.flip(0), told, scale).item() == pytest.approx(right + 2, abs=1e-5)
    assert contrast(torch.stack([red, red]), torch.stack([red, red]), scale).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", hosts("hcma", *UNET, *DIT))
def test_it_attaches_and_lowers_both_losses(name: str) -> None:
    plain, aligner = sampled(name, num_inference_steps=2), aligner_of(name)
    technique = Watched(aligner, BOXES, sizes=(0.005, 0.005), until=0.5)
    changed = sampled(name, technique, num_inference_steps=2)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    first, second = technique.seen
    assert (first[2] + first[3] < first[0] + first[1]).all(), "together they fall"
    assert torch.equal(torch.stack(second[:2]), torch.stack(second[2:])), "nothing moves after `until`"
    assert torch.equal(sampled(name, Hcma(aligner, BOXES, sizes=(0, 0)), num_inference_steps=2), plain)


def test_each_step_lowers_its_own_loss_by_its_share() -> None:
    call: dict[str, Any] = {"num_inference_steps": 1}
    for part in (0, 1):
        sizes = (0.005, 0.0) if part == 0 else (0.0, 0.005)
        technique = Watched(aligner_of("sd"), BOXES, sizes=sizes)
        sampled("sd", technique, **call)
        assert (technique.seen[0][2 + part] < technique.seen[0][part]).all()

    class Moved(Hcma):
        def before(self, run: Any, latents: torch.Tensor) -> Any:
            moved: Any = super().before(run, latents)
            self.share = (moved - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
            return moved

    technique_of = Moved(aligner_of("sd"), BOXES, sizes=(0.0, 0.1))
    sampled("sd", technique_of, **call)
    assert technique_of.share.tolist() == pytest.approx([0.1, 0.1], rel=1e-3)
    # Without boxes there is no local loss, so that its step is none.
    assert torch.equal(sampled("sd", Hcma(aligner_of("sd"), {}, sizes=(0.0, 0.1)), **call), sampled("sd", **call))


def test_samples_alone_and_without_guidance() -> None:
    technique = Hcma(aligner_of("sd"), BOXES)
    together = sampled("sd", technique, guidance_scale=1.0)
    alone = sampled("sd", Hcma(aligner_of("sd"), BOXES[0]), prompts=PROMPTS[:1], guidance_scale=1.0)
    assert torch.allclose(together[0], alone[0], atol=1e-4)
    assert not torch.allclose(together, sampled("sd", guidance_scale=1.0), atol=1e-3)


def test_the_aligner_learns_what_lies_in_which_box() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    latents = (4 * signs[:, None, None, None] * torch.ones(16, 4, 4, 4)).clone()
    latents[..., 2:] *= -1  # the right half is the left one's opposite
    names = ("red ring", "blue star")
    boxes = [{names[s < 0]: LEFT, names[s > 0]: RIGHT} for s in signs.tolist()]
    captions = ["a red ring left of a blue star" if s > 0 else "a blue star left of a red ring" for s in signs.tolist()]
    small: dict[str, Any] = {"patch": 1, "width": 32, "layers": 1}
    model = aligned(bridge_of("sd"), latents, captions, boxes, steps=60, batch_size=16, lr=1e-2, **small)
    _, parts = model(latents[:1] / 4, torch.tensor([[LEFT, RIGHT]]))
    ring, star = (misfit(parts[0], one.expand_as(parts[0])) for one in sentences(bridge_of("sd"), names))
    assert ring[0] < star[0] and star[1] < ring[1]


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="2 latents, 1 captions"):
        aligned(bridge_of("sd"), torch.zeros(2, 4, 4, 4), ["a dog"], BOXES)
    with pytest.raises(ShowtellError, match="no words"):
        sentences(bridge_of("sd"), ["a dog", "..."])
    with pytest.raises(ShowtellError, match="boxes: got 3"):
        sampled("sd", Hcma(aligner_of("sd"), [{}] * 3))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hcma, "PICTURES", 8), monkeypatch.setattr(hcma, "STEPS", 1)
    monkeypatch.setattr(hcma, "SIZES", {"patch": 2, "width": 16, "layers": 1})
    placed, complete = hcma.experiment(Laboratory(seeds=1))
    assert list(placed.scores) == list(complete.scores) and next(iter(placed.scores)) == "hcma"
    short = partial(aligned, width=16, layers=1)
    monkeypatch.setattr(hcma, "aligned", lambda *args, **more: short(*args, **{**more, "steps": 1}))
    assert run_example(hcma.EXAMPLE, monkeypatch)["image"].size == (32, 32)
