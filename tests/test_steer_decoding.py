"""Decoding rules by hand, and the distribution that speculative acceptance gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from showtell.errors import ShowtellError
from showtell.steer.decoding import TokenControl, accepted, constrained, drawn, guided, residual, shaped, uniform

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def probabilities(logits: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in logits.softmax(-1)[0].tolist()]


def test_shaping_by_hand() -> None:
    assert shaped(LOGITS) is LOGITS
    assert probabilities(shaped(LOGITS, top_k=2)) == [0.625, 0.375, 0, 0]
    assert probabilities(shaped(LOGITS, top_p=0.7)) == [0.625, 0.375, 0, 0]
    squares = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    assert torch.allclose(shaped(LOGITS, temperature=0.5).softmax(-1)[0], squares / squares.sum())
    assert shaped(LOGITS.expand(2, 3, 4), top_k=1).isfinite().sum() == 6
    with pytest.raises(ShowtellError, match="temperature"):
        shaped(LOGITS, temperature=0.0)
    with pytest.raises(ShowtellError, match="top_p"):
        TokenControl(top_p=2.0)


def test_guidance_and_constraints_by_hand() -> None:
    flat = torch.zeros(1, 4)
    assert guided(LOGITS, flat, 1.0) is LOGITS
    assert probabilities(guided(LOGITS, flat, 0.0)) == [0.25] * 4
    squares = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    assert torch.allclose(guided(LOGITS, flat, 2.0).softmax(-1)[0], squares / squares.sum())
    assert probabilities(constrained(LOGITS, [1, 2])) == [0, 0.6667, 0.3333, 0]
    assert probabilities(constrained(LOGITS, torch.tensor([True, False, False, False]))) == [1, 0, 0, 0]
    with pytest.raises(ShowtellError, match="no token"):
        constrained(LOGITS, [])


def test_control_constrains_first() -> None:
    kept = TokenControl(top_k=1, allowed=[1, 2]).logits(None, LOGITS)  # type: ignore[arg-type]
    assert probabilities(kept) == [0, 1, 0, 0]
    assert TokenControl().logits(None, LOGITS) is LOGITS  # type: ignore[arg-type]


def test_random_numbers_are_a_sample_s_own() -> None:
    def run(*seeds: int) -> SimpleNamespace:
        return SimpleNamespace(prompts=[""] * len(seeds), generators=[torch.Generator().manual_seed(s) for s in seeds])

    both = uniform(run(3, 4), 5)
    assert both.shape == (2, 5) and torch.equal(uniform(run(4), 5), both[1:]) and not torch.equal(both[0], both[1])
    one = SimpleNamespace(prompts=[""] * 2, generators=torch.Generator().manual_seed(3))
    assert uniform(one, 5).shape == (2, 5) and uniform(one, 5).max() < 1


def test_residual_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    assert torch.allclose(residual(p, q), torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(residual(p, p), p)


def test_speculative_acceptance_reproduces_the_target() -> None:
    n, generator = 200_000, torch.Generator().manual_seed(0)
    q = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    p = torch.tensor([[0.2, 0.4, 0.3, 0.1], [0.1, 0.0, 0.8, 0.1], [0.05, 0.05, 0.1, 0.8]])
    tokens = drawn(q.expand(n, 2, 4), generator)
    count, result = accepted(tokens, p.expand(n, 3, 4), q.expand(n, 2, 4), generator)
    for place in range(3):
        there = result[:, place][count >= place]
        assert (there >= 0).all()
        got = torch.bincount(there, minlength=4) / len(there)
        assert (got - p[place]).abs().max() < 0.006, place
    # A token is kept with probability sum_x min(p, q).
    rate = torch.minimum(p[0], q[0]).sum()
    assert (count >= 1).float().mean() == pytest.approx(float(rate), abs=0.005)
    assert ((result >= 0).sum(dim=1) == count + 1).all()
    kept = count == 2
    assert torch.equal(result[kept, :2], tokens[kept])


def test_a_perfect_draft_is_always_kept() -> None:
    p = torch.rand(500, 4, 8, generator=torch.Generator().manual_seed(1)).softmax(-1)
    tokens = drawn(p[:, :3], torch.Generator().manual_seed(2))
    count, result = accepted(tokens, p, p[:, :3], torch.Generator().manual_seed(3))
    assert (count == 3).all() and torch.equal(result[:, :3], tokens)
