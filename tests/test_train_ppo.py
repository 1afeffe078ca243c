"""PPO: what is rewarded becomes likelier, a strong penalty keeps the writer, kinds of picks that are left out stay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from showtell.train import policy
from showtell.train.policy import Drawn
from showtell.train.ppo import ppo

PROMPTS, COLOURS = ["a ring", "a star"], ["red", "blue"]


class Small(nn.Module):
    """Writes a colour for each prompt, and picks one of two sides at every token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = policy.word_tokenizer([*PROMPTS, *COLOURS])
        self.model = policy.small_writer(self.tokenizer, width=16, layers=1)
        self.sides = nn.Linear(16, 2, bias=False)
        nn.init.zeros_(self.sides.weight)
        pairs = [(prompt, colour) for prompt in PROMPTS for colour in COLOURS]
        policy.imitate(self.model, self.tokenizer, pairs, steps=60, batch_size=4, lr=1e-2)

    def logits(self, drawn: Drawn) -> dict[str, Tensor]:
        logits, hidden = policy.states(self.model, drawn)
        return {"words": logits, "sides": self.sides(hidden)}

    def draw(self, prompts: Sequence[str], *, seed: int) -> dict[str, Tensor]:
        drawn = policy.write(self.model, self.tokenizer, prompts, max_tokens=2, seed=seed)
        with torch.no_grad():
            logits = self.logits(drawn)
        sides = policy.picked(logits["sides"], 1.0, torch.Generator().manual_seed(seed))
        picks = {"words": drawn.ids, "sides": sides}
        old = {f"log {name}": policy.chosen(logits[name], pick, drawn.said) for name, pick in picks.items()}
        return {**drawn.arrays(), **picks, **old}

    def rewarded(self, drawn: dict[str, Tensor]) -> Tensor:
        """1 for a blue answer, 1 more for the second side on its first token."""
        said = policy.texts_of(self.tokenizer, Drawn(drawn["ids"], drawn["mask"], drawn["said"]))
        first = drawn["said"].float().argmax(1, keepdim=True)
        return torch.tensor([float("blue" in text) for text in said]) + drawn["sides"].gather(1, first)[:, 0]


def trained(**more: float | list[str]) -> tuple[Small, float, float]:
    """The writer, and the shares of blue and of second sides that it draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        writer = Small()
    settings = {"rounds": 60, "batch": 16, "lr": 1e-2, **more}
    ppo(writer, PROMPTS, lambda prompts, drawn: writer.rewarded(drawn), **settings)  # type: ignore[arg-type]
    drawn = writer.draw(PROMPTS * 32, seed=7)
    blue = [
        "blue" in text for text in policy.texts_of(writer.tokenizer, Drawn(drawn["ids"], drawn["mask"], drawn["said"]))
    ]
    return writer, sum(blue) / 64, float(writer.rewarded(drawn).mean()) - sum(blue) / 64


def test_what_is_rewarded_becomes_likelier() -> None:
    _, blue, second = trained()
    assert blue > 0.8 and second > 0.8


def test_a_strong_penalty_keeps_the_writer() -> None:
    _, blue, second = trained(kl=50.0, lr=3e-3)
    assert blue < 0.75 and second < 0.8


def test_picks_that_are_left_out_stay() -> None:
    writer, blue, second = trained(only=["words"])
    assert blue > 0.8 and (writer.sides.weight == 0).all() and second == pytest.approx(0.5, abs=0.2)
