"""Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding.
Teng, Shi, Liu, Ning, Dai, Wang, Li, Liu, 2024, arXiv 2410.01699

A window of draft tokens passes through the model at once. Each draft is kept with the probability that makes what is
kept a sample of the model itself, the proposal being the model's own distribution of one pass before; what follows the
first refusal is drawn again and serves as the next drafts. Several tokens a pass, and the same images in distribution.

Faithful: window, acceptance min(1, p / q), residual after a refusal, redrawing, uniform start with the uniform as q,
start from a neighbour, guidance and the model's own temperature, top-k and top-p before all that. Greedy decoding is
the special case of plain Jacobi decoding. Deviations: a neighbour is copied, its distribution not drawn from again;
samples of a batch advance on their own, so that one does not depend on the others (the cache forgets per row). `logits`
hooks of other techniques see the rows that stand at one place; `tokens` and `attention` hooks are refused.
In the experiment speed is image tokens per pass: wall time, which other work on the machine decides, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from showtell.bridges.base import Run, Technique, overriding
from showtell.bridges.decoding import steered
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.nets.segments import picked
from showtell.steer.decoding import residual, uniform

EXAMPLE = """
import showtell
from showtell.papers.accelerate.speculative_jacobi import SpeculativeJacobi

bridge = showtell.load("deepseek-community/Janus-Pro-1B")
using = [SpeculativeJacobi(window=32, report=lambda run, passes: print(passes.tolist(), "passes"))]
[image] = bridge.generate("a red ring", using=using, do_sample=True, seed=0)
"""

STARTS = ("uniform", "left", "above")
RULES = ("ratio", "match", "always", "shuffled")


class SpeculativeJacobi(Technique):
    """Decodes the image tokens of an autoregressive bridge, several a pass.

    window: draft tokens a pass, 16 to 96 by image size. start: of fresh drafts, "uniform", or a copy of the neighbour
    "left" or "above", for images with large even areas. report: called at the end with the passes of each sample, (n,).
    rule: "ratio" is the paper's; "match" keeps a draft that a new draw repeats (Jacobi decoding: exact, but slow where
    tokens are sampled), "always" keeps every draft that the model made, "shuffled" uses the q of other tokens.
    """

    def __init__(
        self, window: int = 16, start: str = "uniform", rule: str = "ratio",
        report: Callable[[Run, torch.Tensor], None] | None = None,
    ) -> None:  # fmt: skip
        if window < 1 or start not in STARTS or rule not in RULES:
            raise ShowtellError(
                f"window={window}, start={start!r}, rule={rule!r}: use a window of 1 or more, a start of "
                f"{', '.join(STARTS)}, a rule of {', '.join(RULES)}."
            )
        self.window, self.drafting, self.rule, self.report = window, start, rule, report

    def decode(self, run: Any, decoder: Any) -> torch.Tensor:
        if not hasattr(decoder, "several"):
            raise ShowtellError(f"{run.bridge.name} does not decode one token after the other; take one that does.")
        if any(overriding(run.techniques, hook) for hook in ("attention", "tokens")):
            raise ShowtellError("speculative decoding cannot be combined with attention or token hooks.")
        n, total, count = len(run.prompts), run.steps, self.window
        branches = ["text"] if run.negative is None else ["negative", "text"]
        tokens = torch.zeros(n, total + count, dtype=torch.long, device=decoder.device)
        done, passes = torch.zeros(n, dtype=torch.long, device=tokens.device), torch.zeros(n, dtype=torch.long)
        rows, places = torch.arange(n, device=tokens.device), torch.arange(count, device=tokens.device)
        fresh = torch.ones(n, count, dtype=torch.bool, device=tokens.device)
        drafts, proposal = self._begun(run, decoder, tokens, done[:, None] + places, fresh)
        while int(done.min()) < total:
            inputs = [decoder.embed(run, drafts[:, j]) for j in range(count - 1)]
            logits = decoder.several(run, branches, torch.cat([run.own["next"], *inputs], dim=1))
            chances = self._chances(run, decoder, logits, done)
            drawn = picked(chances, uniform(run, count).to(chances)[..., None])
            kept = self._keeps(run, drafts, drawn, chances, proposal, fresh).long().cumprod(dim=1).sum(dim=1)
            first = kept.clamp(max=count - 1)  # the first refusal, if there is one
            instead = drawn[rows, first]
            if self.rule != "match":
                rest = residual(chances[rows, first], proposal[rows, first])
                instead = picked(rest, uniform(run, 1).to(chances))
            chosen = torch.where(places < kept[:, None], drafts, drawn)
            chosen = torch.where(places == kept[:, None], instead[:, None], chosen)
            advance = torch.minimum((kept + 1).clamp(max=count), total - done)
            passes += (done < total).cpu()
            tokens.scatter_(1, done[:, None] + places, chosen)  # beyond `advance` these are the next drafts
            cached = torch.ones_like(run.own["mask"], dtype=torch.bool)
            cached[:, -count:] = (places < advance[:, None]).repeat(len(branches), 1)
            decoder.forget(run, cached)
            done = done + advance
            run.own["next"] = decoder.embed(run, tokens[rows, done - 1])
            moved = places + advance[:, None]
            fresh, source = moved >= count, moved.clamp(max=count - 1)
            drafts, begun = self._begun(run, decoder, tokens, done[:, None] + places, fresh)
            proposal = torch.where(fresh[..., None], begun, chances[rows[:, None], source])
        if self.report is not None:
            self.report(run, passes)
        return tokens[:, :total]

    def _keeps(
        self, run: Any, drafts: torch.Tensor, drawn: torch.Tensor, chances: torch.Tensor, proposal: torch.Tensor,
        fresh: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Which drafts pass, (n, window), should all before them."""
        if self.rule == "match":
            return drafts == drawn
        q = proposal.roll(1, dims=-1) if self.rule == "shuffled" else proposal
        p, q = (x.gather(-1, drafts[..., None])[..., 0] for x in (chances, q))
        passing = uniform(run, drafts.shape[1]).to(p) * q < p
        return passing | ~fresh if self.rule == "always" else passing

    def _chances(self, run: Any, decoder: Any, logits: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Probabilities of the window's tokens, (n, window, vocabulary), as one-by-one decoding would have them."""
        parts = logits.chunk(1 if run.negative is None else 2)
        at = done[:, None] + torch.arange(logits.shape[1], device=done.device)
        chances = torch.empty_like(parts[-1])
        for step in at.unique().tolist():
            run.step, here = min(step, run.steps - 1), at == step
            negative = parts[0][here] if len(parts) > 1 else None
            chances[here] = decoder.chances(run, steered(run, decoder, parts[-1][here], negative))
        return chances

    def _begun(
        self, run: Any, decoder: Any, tokens: torch.Tensor, at: torch.Tensor, fresh: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The window at places `at`, (n, window): what `tokens` holds there, or a start where it is fresh, and the
        distributions that starts are drawn from.
        """
        size = decoder.head(run.own["next"][:, -1]).shape[-1]
        begun = torch.zeros(*at.shape, size, device=at.device)
        for step in at.unique().tolist():
            run.step = min(step, run.steps - 1)
            free = decoder.allowed(run, torch.zeros(1, size, device=at.device)).isfinite().float()
            begun[at == step] = free / free.sum()
        start = picked(begun, uniform(run, at.shape[1]).to(begun)[..., None])
        drafts = torch.where(fresh, start, tokens.gather(1, at))
        back = 1 if self.drafting == "left" else run.steps // run.grid[0]
        for j in range(at.shape[1] if self.drafting != "uniform" else 0):  # from the left: a neighbour may be fresh too
            tokens.scatter_(1, at[:, j : j + 1], drafts[:, j : j + 1])
            beside = at[:, j] - back
            copied = tokens.gather(1, beside.clamp(min=0)[:, None])
            fits = fresh[:, j] & (beside >= 0) & (begun[:, j].gather(-1, copied)[:, 0] > 0)
            drafts[:, j] = torch.where(fits, copied[:, 0], drafts[:, j])
            begun[:, j] = torch.where(fits[:, None], F.one_hot(copied[:, 0], size).to(begun), begun[:, j])
            tokens.scatter_(1, at[:, j : j + 1], drafts[:, j : j + 1])
        return drafts, begun


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts, taken = lab.base("ar"), lab.prompts("pairs"), dict[tuple[str, int], np.ndarray]()
    rules = {"speculative": "ratio", "token by token": "", "exact match": "match", "always accept": "always",
             "shuffled q": "shuffled"}  # fmt: skip

    @cache
    def made(name: str, seed: int) -> list[Any]:
        def note(run: Any, passes: torch.Tensor) -> None:
            taken[name, seed] = run.steps / passes.numpy()

        using = [SpeculativeJacobi(rule=rules[name], report=note)] if rules[name] else []
        return bridge.generate(prompts.texts, using=using, seed=seed, do_sample=True)

    def speed(name: str, seed: int) -> np.ndarray:
        """Image tokens per pass through the model."""
        made(name, seed)
        return taken.get((name, seed), np.ones(len(prompts.texts)))

    fast = {name: partial(speed, name) for name in ("speculative", "token by token", "exact match", "shuffled q")}
    right = {name: partial(made, name) for name in ("speculative", "token by token", "always accept")}
    return [
        lab.compare(fast, expect="speculative >= 1.5 * token by token", control="exact match", name="tokens per pass"),
        # That keeping every draft harms is expected here; a control of its own would say it twice.
        lab.compare(right, metric=prompts.whole, expect="speculative ~ token by token, speculative > always accept"),
    ]
