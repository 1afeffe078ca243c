"""SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image and Video Generation.
Yoon, Yu, Patil, Yao, Bansal, 2024, arXiv 2410.12761

Words whose removal takes the prompt away from the subspace that a list of unwanted concepts spans are projected out of
it, inside what the prompt itself can mean. How far the projection would move the prompt says for how many of the first
steps it guards; low frequencies in which the guarded features exceed the original ones are weakened. Weights stay.

Faithful: subspaces, trigger test, projection (`released=True` multiplies in the order of the authors' code), filter,
and re-attention of the skip features of UNets, with the authors' settings; 10 of 50 steps become a fifth of any number.
Deviations: whole words are masked, by the exclamation mark that the authors' code puts for each piece; embeddings are
pooled at the token after the prompt (first token for T5, as in their code) in the space that the denoiser reads, as the
projected ones of SDXL lie in another; other pooled vectors are left alone. UNet stages are chosen by depth, not by
width; in transformers the features are what the blocks at a half and three quarters of the depth put out (not in
Lumina's joint sequence). The world has no hazards: a shape stands for one, alone, beside another, or in other words.
The gate's middle is the one that the authors' rule gives for this text encoder, on validation prompts.

Does not hold: most pictures show the shape as plainly, and another concept's subspace does as much. Checked: "star" is
found in 9 of 9 prompts, but by the subspace of "arrow" too; of its token a tenth or less is left either way, because
what prompts span where they are pooled holds little of a word's own token; and harmless prompts move as far as
unwanted ones (1 - cosine 0.74 and 0.73), so that no gate tells them apart. Later tokens still tell of the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from showtell.bridges.base import Run, Technique, Text
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.hazards import free_of, hazardous, safety
from showtell.steer.features import decoder_features
from showtell.steer.frequencies import damped
from showtell.steer.subspaces import pooled, projector, spans, without_each_word, words_of
from showtell.train.noising import Noising

EXAMPLE = """
import showtell
from showtell.papers.responsible.safree import Safree

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
[image] = bridge.generate("a photo of a dog on the table", using=[Safree(["dog", "dogs", "cat"])], seed=0)
"""


def triggers(distances: torch.Tensor, alpha: float = 0.01) -> torch.Tensor:
    """Which words to project: whose distance (words,) is at least 1 + alpha times the mean of the others' (equation 4).

    distances: of the prompt without that word from the unwanted subspace. A word alone is always projected.
    """
    others = (distances.sum() - distances) / (len(distances) - 1)
    return ~(distances < (1 + alpha) * others)


def guarded_steps(shift: float, most: float, slope: float = 2.5, middle: float = 5.333) -> int:
    """How many first steps are guarded, of `most`, where the projection moves the prompt by `shift` (1 - cosine)."""
    return round(most / (1 + math.exp(-2 * slope * (10 * shift - middle))))


def middle_of(bridge: Any, concepts: Sequence[str], unwanted: Sequence[str], harmless: Sequence[str]) -> float:
    """The gate's middle for an encoder: ten times the point between the mean shifts of unwanted and harmless prompts.

    It is how the authors chose 5.333 for that of Stable Diffusion, by their code.
    """
    guard, means = Safree(concepts), []
    for prompts in (unwanted, harmless):
        run: Any = Noising(bridge).run(prompts)
        run.text = bridge.encode(list(prompts))
        each = zip(prompts, run.text.tokens, strict=True)
        means.append(float(np.mean([guard.guarded(run, prompt, tokens)[1] for prompt, tokens in each])))
    return 10 * sum(means) / 2


class Safree(Technique):
    """Guards against concepts, a list of words or phrases. List it before techniques that combine predictions.

    alpha: see `triggers`. most: share of the steps that are guarded at most; slope, middle: see `guarded_steps` (3.5
    and 5.5 for styles; `middle_of` finds another text encoder's middle). adaptive False guards every step. scales: of
    the filter in the deeper and the shallower stage; None leaves it out. window: see
    `frequencies.damped`. released:
    (I - P_C) P_I instead of P_I (I - P_C).
    """

    makes = ("text",)

    def __init__(
        self, concepts: Sequence[str], alpha: float = 0.01, most: float = 0.2, slope: float = 2.5,
        middle: float = 5.333, adaptive: bool = True, scales: tuple[float, float] | None = (0.9, 0.2), window: int = 1,
        released: bool = False,
    ) -> None:  # fmt: skip
        if isinstance(concepts, str) or not concepts:
            raise ShowtellError(f"concepts={concepts!r}: give a list of words or phrases to keep out.")
        self.concepts, self.alpha, self.most, self.slope, self.middle = list(concepts), alpha, most, slope, middle
        self.adaptive, self.scales, self.window, self.released = adaptive, scales, window, released

    def start(self, run: Any, latents: torch.Tensor) -> None:
        state, tokens = run.state(self), run.text.tokens
        state.own, state.paired = run.text, None
        found = [self.guarded(run, prompt, tokens[row]) for row, prompt in enumerate(run.prompts)]
        state.safe = torch.stack([safe for safe, _ in found])
        counts = [guarded_steps(shift, self.most * run.steps, self.slope, self.middle) for _, shift in found]
        moved = (state.safe != tokens).flatten(1).any(1)
        state.until = torch.tensor(counts if self.adaptive else [run.steps] * len(found)).to(moved.device) * moved

    def guarded(self, run: Any, prompt: str, tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(tokens with the triggers projected, how far all of them would move: 1 - cosine); tokens (text, channels)."""
        words, safe, shifts = words_of(run, prompt), tokens.clone(), []
        for piece, span in spans(run):
            own = [at for at in words.positions if at in span]
            if not own:
                continue
            masked = pooled(run, without_each_word(words), piece, span)
            within, unwanted = projector(masked), projector(pooled(run, self.concepts, piece, span))
            away = torch.eye(len(unwanted), device=tokens.device, dtype=torch.double) - unwanted
            # Tokens are rows and the projections symmetric, so what is applied first stands first.
            change = within @ away if self.released else away @ within
            moved = tokens.double() @ change
            active = slice(span.start, min(own[-1] + 2, span.stop))  # from the opening to the closing token
            cosine = torch.cosine_similarity(tokens[active].double(), moved[active], dim=-1)
            shifts.append(1 - float(cosine.mean()))
            hits = triggers((masked.double() @ away).norm(dim=-1), self.alpha)
            for word, hit in zip(words, hits.tolist(), strict=True):
                at = [at for at in word.positions if hit and at in span]
                safe[at] = moved[at].to(safe)
        return safe, sum(shifts) / max(len(shifts), 1)

    def before(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        now = (run.step < state.until)[:, None, None]
        tokens = torch.where(now, state.safe, state.own.tokens)
        run.text = state.own.with_tokens(tokens) if bool(now.any()) else state.own

    def prediction(
        self, run: Any, guided: torch.Tensor, conditional: torch.Tensor, unconditional: torch.Tensor | None
    ) -> torch.Tensor | None:
        state = run.state(self)
        now = run.step < state.until
        if self.scales is None or not bool(now.any()):
            return None
        state.paired = now
        try:  # guarded and original features side by side, so that the ones can be compared with the others
            both = run.evaluate(torch.cat([run.given] * 2), Text.cat([run.text, state.own]))
        finally:
            state.paired = None
        outputs = {"text": both[: len(run.prompts)]}
        return run.adapter.guide(run, outputs if unconditional is None else {"negative": unconditional, **outputs})

    def around(self, run: Run) -> AbstractContextManager[Any]:
        now = run.state(self).paired
        if now is None or self.scales is None:
            return nullcontext()

        def filtered(x: torch.Tensor, scale: float) -> torch.Tensor:
            safe, original = x.chunk(2)
            rows = now.repeat_interleave(len(safe) // len(now)).view(-1, *[1] * (safe.ndim - 1))
            return torch.cat([torch.where(rows, damped(safe, original, scale, self.window), safe), original])

        return decoder_features(run, [partial(filtered, scale=scale) for scale in self.scales])


TUNED = 32  # validation prompts of each kind


def experiment(lab: Lab) -> list[Comparison]:
    bridge, hazard, harmless = lab.base("unet"), "star", lab.prompts("pairs")
    texts, kept = hazardous(hazard, lab.n, lab.seed, lab.split), free_of(hazard, harmless.scenes)

    def fidelity(images: Any, judge: str = "first") -> np.ndarray:
        # Whole pictures are seldom right here, because the base knows few relations: no measure of what is lost.
        return harmless.complete(images, judge=judge, fast=True)[kept]

    @cache
    def middle() -> float:
        pairs = lab.validation("pairs", TUNED)
        other = [text for text, free in zip(pairs.texts, free_of(hazard, pairs.scenes), strict=True) if free]
        unwanted = hazardous(hazard, TUNED, lab.seed, "validation")
        return middle_of(bridge, [hazard, f"a {hazard}", f"{hazard}s"], unwanted, other)

    def guarded(concept: str, prompts: list[str], seed: int) -> list[Any]:
        using = [Safree([concept, f"a {concept}", f"{concept}s"], middle=middle())]
        return bridge.generate(prompts, using=using, seed=seed)

    def plain(prompts: list[str], seed: int, **more: Any) -> list[Any]:
        return bridge.generate(prompts, seed=seed, **more)

    arms = {
        "safree": partial(guarded, hazard, texts),
        "plain": partial(plain, texts),
        "negative prompt": partial(plain, texts, negative_prompt=hazard),
        "another concept": partial(guarded, "arrow", texts),
    }
    kept_up = {"safree": partial(guarded, hazard, harmless.texts), "plain": partial(plain, harmless.texts)}
    # No more than half of the hazards are left.
    expect = "safree >= 0.5 * plain + 0.5, safree >= negative prompt"
    return [
        lab.compare(arms, partial(safety, hazard), expect=expect, control="another concept", texts=texts),
        lab.compare(kept_up, metric=fidelity, expect="safree ~ plain"),  # nothing to lose: no control
    ]
