"""Gradient steps on the latents lower their loss, alone for each sample; without size they change no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.errors import ShowtellError
from showtell.steer.gradients import AttentionGradient, excite, falling, inside
from showtell.steer.maps import RecordMaps, TokenMaps, among_words, averaged, places
from steering import FAMILIES, PROMPTS, sampled

LEFT = (0.0, 0.0, 0.5, 1.0)
BOXES = {"red ring": LEFT, "dog": LEFT}


class Watched(AttentionGradient):
    """Also keeps the loss before and after the gradient steps of each sampling step."""

    def before(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        changed = super().before(run, latents)
        if changed is not None:
            LOSSES.append((self.gradient(run, latents)[0], self.gradient(run, changed)[0]))
        return changed


LOSSES: list[Any] = []


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("loss", [inside(BOXES), excite("ring", "star", "dog")], ids=["inside", "excite"])
def test_steps_lower_the_loss_of_every_sample(name: str, loss: Any) -> None:
    LOSSES.clear()
    plain = sampled(name)
    changed = sampled(name, Watched(loss, size=0.02, until=0.5, refinements=2, normalised=True))
    assert len(LOSSES) == 2  # progress 0 and 1/3 of three steps
    for before, after in LOSSES:
        assert before.shape == (2,) and (after < before).all()
    assert not torch.equal(changed, plain)
    assert torch.equal(sampled(name, AttentionGradient(loss, size=0.0)), plain)
    assert torch.equal(sampled(name, AttentionGradient(loss, until=0.0)), plain)
    assert torch.equal(sampled(name, AttentionGradient(loss, enough=1e9)), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_independent(name: str) -> None:
    technique = AttentionGradient(inside(BOXES), size=0.05, normalised=True)
    together = sampled(name, technique)
    alone = sampled(name, technique, prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-3)


def test_a_sample_without_the_words_is_left_alone() -> None:
    changed, plain = sampled("sd", AttentionGradient(inside({"dog": LEFT}), size=5.0)), sampled("sd")
    assert torch.equal(changed[0], plain[0]) and not torch.equal(changed[1], plain[1])


def test_schedules() -> None:
    sizes, counts = [], []

    def size(progress: float) -> float:
        sizes.append(progress)
        return 0.01

    def refinements(step: int) -> int:
        counts.append(step)
        return 0

    plain = sampled("sd")
    technique = AttentionGradient(inside(BOXES), size=size, until=1.0, refinements=refinements)
    assert torch.equal(sampled("sd", technique), plain)
    assert sizes == [0, 1 / 3, 2 / 3] and counts == [0, 1, 2]


def test_falling_sizes() -> None:
    assert falling(20)(0.0) == 20 and falling(20)(1.0) == pytest.approx(20 / 2**0.5) and falling(8)(0.875) == 6


def test_no_place_is_an_error() -> None:
    with pytest.raises(ShowtellError, match="where"):
        sampled("sd", AttentionGradient(inside(BOXES), where=lambda place: False))


def test_the_nearest_grid_alone_is_read() -> None:
    grids: list[set[Any]] = []

    def loss(run: Any, maps: list[TokenMaps]) -> torch.Tensor:
        grids.append({max(one.place.grid) for one in maps})
        return averaged(maps).flatten(1).square().sum(1)

    for side in (None, 16, 1):
        sampled("sd", AttentionGradient(loss, until=0.1, nearest=side))
    every, large, small = grids
    assert len(every) > 1 and large == {max(every)} and small == {min(every)}


def test_slopes_of_what_the_text_was_made_from() -> None:
    class Text(AttentionGradient):
        def before(self, run: Any, latents: torch.Tensor) -> None:
            amount, own = torch.zeros(2, 1, 1, requires_grad=True), run.text
            with torch.enable_grad():
                run.text = own.with_tokens(own.tokens * (1 + amount))
                losses, slope = self.slope(run, latents, amount)
                run.text = own.with_tokens(own.tokens * (1 + amount - 1e-2 * slope.sign()))
                lower, _ = self.slope(run, latents, amount)
            found.append((losses, slope, lower))

    found: list[Any] = []
    sampled("sd", Text(excite("ring", "star", "dog")), num_inference_steps=1)
    [(losses, slope, lower)] = found
    assert slope.shape == (2, 1, 1) and slope.all() and (lower < losses).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_maps(name: str) -> None:
    found: list[torch.Tensor] = []
    chosen: list[Any] = []

    def where(place: Any) -> bool:
        chosen.append(place)
        return places(largest=4, depths=(0.0, 0.9))(place)

    changed = sampled(name, RecordMaps(lambda run, maps: found.append(maps), where, over="text"))
    assert torch.equal(changed, sampled(name))
    [maps] = found
    assert maps.shape[0] == 2 and maps.shape[2:] == (4, 4)
    assert (maps.sum(dim=1) - 1).abs().max() < 1e-5  # every image token spends all its attention on the text


def test_words_are_compared_without_the_start_token() -> None:
    maps = torch.tensor([0.9, 0.03, 0.02, 0.05]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    weights = torch.tensor([3.0, 2.0, 5.0]).exp()
    expected = torch.cat([torch.tensor([0.9]), weights / weights.sum()])
    torch.testing.assert_close(among_words(maps)[0, :, 1, 0], expected)
    inner = among_words(maps, 1, -1, sharpness=10.0)[0, :, 0, 0]
    torch.testing.assert_close(inner[[0, 3]], torch.tensor([0.9, 0.05]))
    torch.testing.assert_close(inner[1:3], torch.tensor([0.3, 0.2]).softmax(0))
    peak = torch.zeros(1, 3, 5, 5)
    peak[0, 1, 2, 2] = 1.0  # a softmax of (1, 0) there and of (1/2, 1/2) around
    seen, side = among_words(peak)[0, 1], torch.exp(torch.tensor(-2.0))
    torch.testing.assert_close(seen[2, 2], 0.5 + 0.5 / (1 + 2 * side) ** 2, msg="smoothed by a Gaussian of half a cell")


def test_average_over_places() -> None:
    class At:
        grid = (1, 2)

    class Fine:
        grid = (2, 4)

    coarse = TokenMaps(At, torch.tensor([[[[0.0, 1.0]]]]))  # type: ignore[arg-type]
    fine = TokenMaps(Fine, torch.zeros(1, 1, 2, 4))  # type: ignore[arg-type]
    assert averaged([coarse, fine]).shape == (1, 1, 2, 4)
    assert torch.allclose(averaged([coarse, fine], (1, 2)), torch.tensor([[[[0.0, 0.5]]]]))
