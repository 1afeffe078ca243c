"""Speculative Jacobi Decoding: what it decodes follows the model's own distribution, in fewer passes; every host."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from examples import run_example
from hosts import hosts
from laboratory import Laboratory

import showtell
import test_bridges_amused
from bridge_family import shared
from showtell.errors import ShowtellError
from showtell.papers.accelerate import speculative_jacobi as module
from showtell.papers.accelerate.speculative_jacobi import SpeculativeJacobi
from showtell.steer.decoding import TokenControl

PROMPTS = ["a red ring left of a blue star", "a dog on the table", "a big cat"]


class Table:
    """A language model of three tokens whose next depends on the two before, with a cache that can be cut."""

    device, steps, codes = torch.device("cpu"), 4, 3
    # Near to certain after some pairs, near to even after others; [before last, last, next].
    chance = torch.distributions.Dirichlet(torch.full((4, 4, 3), 0.6))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        table = chance.sample()

    def run(self, n: int, seed: int = 0) -> Any:
        """At the start the token 3 opens the image."""
        own = {"next": torch.full((n, 1, 1), 3.0), "mask": torch.ones(n, 0), "seen": torch.zeros(n, 0)}
        return SimpleNamespace(
            prompts=[""] * n, steps=self.steps, negative=None, guidance=1.0, own=own, techniques=[], grid=(2, 2),
            generators=torch.Generator().manual_seed(seed), bridge=SimpleNamespace(name="the table"),
        )  # fmt: skip

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(hidden), self.codes)

    def embed(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()[:, None, None]

    def allowed(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def chances(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def several(self, run: Any, branches: Any, inputs: torch.Tensor) -> torch.Tensor:
        own = run.own
        before = own["mask"].sum(1).long()
        own["seen"] = torch.cat([own["seen"], inputs[..., 0]], dim=1)
        own["mask"] = torch.cat([own["mask"], torch.ones_like(inputs[..., 0])], dim=1)
        order = own["mask"].argsort(dim=1, descending=True, stable=True)  # what is masked is not seen
        seen = torch.nn.functional.pad(own["seen"].gather(1, order), (1, 0), value=3.0).long()
        at = before[:, None] + torch.arange(inputs.shape[1])
        return self.table[seen.gather(1, at), seen.gather(1, at + 1)].log()

    def forget(self, run: Any, keep: torch.Tensor) -> None:
        run.own["mask"] = run.own["mask"] * keep

    def joint(self) -> torch.Tensor:
        """The exact probability of every sequence, in the order of itertools.product."""
        found = []
        for tokens in itertools.product(range(self.codes), repeat=self.steps):
            line = [3, 3, *tokens]
            found.append(np.prod([float(self.table[line[i], line[i + 1], line[i + 2]]) for i in range(self.steps)]))
        return torch.tensor(found)


def sequences(rule: str, window: int, start: str = "uniform", n: int = 30_000) -> tuple[torch.Tensor, torch.Tensor]:
    """(shares of every sequence, passes of every sample)."""
    passes: list[torch.Tensor] = []
    run = Table().run(n)
    technique = SpeculativeJacobi(window, start, rule, report=lambda run, count: passes.append(count))
    tokens = technique.decode(run, Table())
    index = (tokens * 3 ** torch.arange(3, -1, -1)).sum(1)
    return torch.bincount(index, minlength=81) / n, passes[0].float()


@pytest.mark.parametrize(
    ("window", "start"), [(1, "uniform"), (2, "uniform"), (6, "uniform"), (3, "left"), (3, "above")]
)
def test_what_is_decoded_follows_plain_sampling(window: int, start: str) -> None:
    exact = Table().joint()
    assert exact.sum() == pytest.approx(1.0, abs=1e-5) and exact.max() < 0.5
    got, passes = sequences("ratio", window, start)
    # The standard error of a share p is sqrt(p / n); five of them for 81 shares.
    assert ((got - exact).abs() <= 5 * (exact / 30_000).sqrt() + 1e-5).all()
    assert passes.max() <= 4 and (passes.mean() < 3.8) == (window > 1)


def test_repeating_draws_are_exact_too_and_slower() -> None:
    got, slow = sequences("match", 4)
    assert ((got - Table().joint()).abs() <= 5 * (Table().joint() / 30_000).sqrt() + 1e-5).all()
    assert sequences("ratio", 4)[1].mean() < slow.mean()


@pytest.mark.parametrize("rule", ["always", "shuffled"])
def test_other_rules_are_not(rule: str) -> None:
    got, passes = sequences(rule, 4)
    assert (got - Table().joint()).abs().max() > 0.02
    if rule == "always":
        assert passes.mean() < sequences("ratio", 4)[1].mean()


def bridge(name: str) -> Any:
    return __import__(f"test_bridges_{name}").bridge()


SIZE: dict[str, dict[str, int]] = {"janus": {}, "emu3": {"height": 16, "width": 16}}


def made(name: str, *using: Any, prompts: Any = PROMPTS, **more: Any) -> torch.Tensor:
    call = {"output_type": "latent", "do_sample": True, "seed": 3, **SIZE[name], **more}
    return torch.stack(bridge(name).generate(prompts, using=list(using), **call))


@pytest.mark.parametrize("name", hosts("speculative_jacobi", "janus", "emu3"))
@pytest.mark.parametrize("start", ["uniform", "left", "above"])
def test_greedy_tokens_are_those_of_one_by_one_decoding(name: str, start: str) -> None:
    """The cache that forgets, positions, guidance and prompts of different length all have to be right for this."""
    plain = made(name, do_sample=False)
    for window in (1, 5, 40) if start == "uniform" else (5,):
        assert torch.equal(made(name, SpeculativeJacobi(window, start), do_sample=False), plain), window
    assert len(plain.unique()) > 2


@pytest.mark.parametrize("name", hosts("speculative_jacobi", "janus", "emu3"))
def test_sampled_tokens_have_the_model_s_probabilities(name: str) -> None:
    """The first two tokens of many samples, against the probabilities that one-by-one decoding draws from."""
    seen: list[torch.Tensor] = []

    class Note(TokenControl):
        def logits(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
            if run.step == 0:
                seen.append(logits[0].softmax(-1))
            return logits

    n = 400
    call: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0}
    made(name, Note(), prompts=PROMPTS[:1], **call)
    tokens = made(name, SpeculativeJacobi(3), prompts=PROMPTS[:1] * n, **call)[:, 0, 0]
    plain = made(name, prompts=PROMPTS[:1] * n, **call)[:, 0, 0]
    vocabulary = int(max(tokens.max(), plain.max())) + 1
    ours, theirs = (torch.bincount(x, minlength=vocabulary) / n for x in (tokens, plain))
    expected = seen[0][seen[0] > 0].sort().values[-5:]
    assert torch.allclose(ours.sort().values[-5:], expected, atol=0.07)
    assert (ours - theirs).abs().max() < 0.08


@pytest.mark.parametrize("name", ["janus", "emu3"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    together = made(name, SpeculativeJacobi(4))
    assert torch.equal(made(name, SpeculativeJacobi(4), prompts=PROMPTS[:1]), together[:1])
    assert torch.equal(made(name, SpeculativeJacobi(4), batch_size=2), together)
    assert not torch.equal(made(name, SpeculativeJacobi(4), seed=4), together)


def test_other_techniques_edit_the_logits() -> None:
    tokens = made("janus", SpeculativeJacobi(4), TokenControl(allowed=[3, 5]))
    assert set(tokens.unique().tolist()) == {3, 5}


def test_bad_calls() -> None:
    for bad in ({"window": 0}, {"start": "below"}, {"rule": "never"}):
        with pytest.raises(ShowtellError, match="use a window"):
            SpeculativeJacobi(**bad)

    class Tokens(TokenControl):
        def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
            return tokens

    with pytest.raises(ShowtellError, match="token hooks"):
        made("janus", SpeculativeJacobi(), Tokens())
    amused = showtell.load(shared(test_bridges_amused.pipeline))
    with pytest.raises(ShowtellError, match="one token after the other"):
        amused.generate("a red ring", using=[SpeculativeJacobi()], num_inference_steps=2)


def test_experiment_runs_through() -> None:
    speed, whole = module.experiment(Laboratory(bases={"ar": bridge("janus")}))
    assert (speed.scores["token by token"] == 1.0).all() and (speed.scores["speculative"] >= 1.0).all()
    assert speed.control == "exact match" and whole.scores["always accept"].shape == (2, 2)


def test_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_example(module.EXAMPLE, monkeypatch, {"Janus": bridge("janus")})["image"].size == (16, 16)
    assert "passes" in capsys.readouterr().out
