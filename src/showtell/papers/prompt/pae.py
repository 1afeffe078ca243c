"""Dynamic Prompt Optimizing for Text-to-Image Generation (Prompt Auto-Editing).
Mo, Zhang, Bai, Su, Wen, Yang, 2024, arXiv 2404.04095

A language model appends modifiers to a short prompt and says of each how strongly and when it acts, as in "a red horse,
[anime style:0-0.5:1.5]". It learns modifiers from prompts that made good images, then words, weights and times by PPO.

Faithful, after the released code: the grids; times from 1 (noise) to 0 (image), so that 0.5-1 is the first half;
inactive modifiers leave the prompt, weighted embeddings keep their mean; heads on the states that give the words, a
phrase taking what most of its tokens pick; one clipped update per batch with three advantages, a penalty of 0.02 KL
each, a critic begun as the actor; CLIP counted only below a threshold. Deviations: the probabilities of what was picked
are trained (the code takes those of weight 1 at all times), the critic values the request alone, a mean near zero is
left alone, and commas go with the modifier they precede.
Scaled down: a 3-layer writer instead of GPT-2, six steps of sampling in rewards, one look (watercolour) to prefer. The
aesthetic score is CLIP's for that look, the preference CLIP's for the prompt with it; the judge scores, nothing else.
The threshold is 0.28 for the paper's CLIP, near what its images reach, and here what those of the short prompts reach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell import language
from showtell.bridges.base import Run, Technique
from showtell.language.timed import parse, shown
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, SIDES
from showtell.measure.scores import read
from showtell.steer.embeddings import completed, renormalised
from showtell.steer.regions import words_of
from showtell.train import policy
from showtell.train.policy import Drawn
from showtell.train.ppo import ppo
from showtell.world import sample

WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5)
RANGES = ((0.0, 0.5), (0.0, 1.0), (0.5, 1.0))

EXAMPLE = """
import showtell
from showtell.papers.prompt.pae import DynamicPrompts

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
prompt = "a red horse on the yellow grass, [anime style:0-0.5:1.5], [detailed:0.85-1:1]"
[image] = bridge.generate(prompt, using=[DynamicPrompts()], seed=0)
"""


class DynamicPrompts(Technique):
    """Reads [modifier:start-stop:weight] in prompts. A prompt without brackets is sampled as ever."""

    def prompt(self, run: Run, prompts: list[str]) -> list[str]:
        run.state(self).parts = [parse(prompt) for prompt in prompts]
        return ["".join(part.text for part in parts) for parts in run.state(self).parts]

    def start(self, run: Run, latents: Tensor) -> None:
        state = run.state(self)
        state.own, state.now = run.text, [(prompt, []) for prompt in run.prompts]

    def before(self, run: Run, latents: Tensor) -> None:
        state = run.state(self)
        wanted = [shown(parts, run.step, run.steps) for parts in state.parts]
        if wanted == state.now:
            return
        state.now, text = wanted, completed(run.encode([prompt for prompt, _ in wanted]), state.own)
        factors = torch.ones(text.tokens.shape[:2])
        for row, (prompt, weighted) in enumerate(wanted):
            for span, weight in weighted:
                factors[row, list(span.positions(words_of(run, prompt)))] = weight
        run.text = text if bool((factors == 1).all()) else text.with_tokens(renormalised(text.tokens, factors))


class Editor(nn.Module):
    """A causal language model with two more heads: what each token weighs, and when it acts. At first every weight and
    every range is equally likely."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.weights = nn.Linear(model.config.hidden_size, len(WEIGHTS), bias=False)
        self.ranges = nn.Linear(model.config.hidden_size, len(RANGES), bias=False)
        for head in (self.weights, self.ranges):
            nn.init.zeros_(head.weight)

    def logits(self, drawn: Drawn) -> dict[str, Tensor]:
        """Of words, weights and ranges, (n, length, k) each; a place speaks of the next one."""
        logits, hidden = policy.states(self.model, drawn)
        return {"words": logits, "weights": self.weights(hidden), "ranges": self.ranges(hidden)}

    def draw(self, prompts: Sequence[str], temperature: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
        """Words, weights and ranges for every prompt, with the log-probabilities of each."""
        asked = [f"{prompt}," for prompt in prompts]
        drawn = policy.write(self.model, self.tokenizer, asked, temperature, max_tokens=32, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            logits = self.logits(drawn)
        picks = {name: policy.picked(logits[name], temperature, generator) for name in ("weights", "ranges")}
        picks["words"] = drawn.ids
        old = {f"log {name}": policy.chosen(logits[name], pick, drawn.said) for name, pick in picks.items()}
        return {**drawn.arrays(), **picks, **old}

    def prompts(self, prompts: Sequence[str], drawn: dict[str, Tensor], dynamic: bool = True) -> list[str]:
        """The dynamic prompts that were drawn; without weights and ranges if not `dynamic`."""
        found = []
        for row, prompt in enumerate(prompts):
            phrases = policy.phrases(self.tokenizer, drawn["ids"][row], drawn["said"][row])
            written = [self._phrase(text, drawn, row, at, dynamic) for text, at in phrases]
            found.append(", ".join([prompt, *written]))
        return found

    def _phrase(self, text: str, drawn: dict[str, Tensor], row: int, at: list[int], dynamic: bool) -> str:
        weight = WEIGHTS[int(drawn["weights"][row, at].mode().values)]
        start, stop = RANGES[int(drawn["ranges"][row, at].mode().values)]
        neutral = not dynamic or (weight, start, stop) == (1.0, 0.0, 1.0) or set("[]:") & set(text)
        return text if neutral else f"[{text}:{start:g}-{stop:g}:{weight:g}]"

    def edit(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0, dynamic: bool = True) -> list[str]:
        """A dynamic prompt for every short prompt."""
        return self.prompts(prompts, self.draw(prompts, temperature, seed), dynamic)


def reward(clip: Tensor, looks: Tensor, likes: Tensor, threshold: float = 0.28) -> Tensor:
    """min(0, 5.6 (clip / threshold - 1)) + looks + likes: how well the image fits the short prompt, and by how much its
    aesthetic and preference scores exceed those of the short prompt's own image, (n,). At the paper's threshold the
    first is its min(0, 20 clip - 5.6)."""
    return (5.6 * (clip / threshold - 1)).clamp(max=0) + looks + likes


def optimise(
    editor: Editor, prompts: Sequence[str], score: Callable[[list[str], list[str]], Tensor], dynamic: bool = True,
    **settings: Any,
) -> Editor:  # fmt: skip
    """PPO, in place. score(dynamic prompts, short prompts) -> rewards (n,). dynamic: False trains words alone.

    settings: of `showtell.train.ppo.ppo`, whose defaults are the paper's.
    """

    def reward_of(short: list[str], drawn: dict[str, Tensor]) -> Tensor:
        return score(editor.prompts(short, drawn, dynamic), short)

    return ppo(editor, prompts, reward_of, only=None if dynamic else ["words"], **settings)


LOOK, PAIRS, IMITATION, ROUNDS, BATCH = "watercolour", 256, 300, 60, 16  # of the experiment


def experiment(lab: Lab) -> Comparison:
    bridge, clip, test = lab.base("unet"), lab.base("clip"), lab.prompts("pairs")
    scenes = sample(PAIRS, lab.seed, "train", 2, distinct=("shape", "colour"), relation=SIDES, **PLAIN)
    short, lm = [scene.caption() for scene in scenes], language.load()  # with modifiers still within 32 tokens
    full = [f"{text}, {', '.join(lm.suggest(text, 2, seed=i))}" for i, text in enumerate(short)]
    tokenizer = policy.word_tokenizer([*full, *test.texts, ","])
    looks = clip.embed(texts=[f"a picture in {style} style" for style in (LOOK, "flat", "outline", "mosaic")])

    def scores(prompts: list[str], plain: list[str]) -> Tensor:
        """(n, 3): CLIP, aesthetic and preference scores of the images of dynamic prompts."""
        images: list[Any] = []
        for start in range(0, len(prompts), 32):
            part = prompts[start : start + 32]
            images += bridge.generate(part, using=[DynamicPrompts()], seed=[1] * len(part), num_inference_steps=6)
        found, liked = clip.embed(images=images), clip.embed(texts=[f"{text}, in {LOOK} style" for text in plain])
        look, fits = found @ looks.T, (found * clip.embed(texts=plain)).sum(-1)
        return torch.stack([fits, look[:, 0] - look[:, 1:].mean(1), (found * liked).sum(-1)], dim=1)

    @cache
    def known() -> dict[str, Tensor]:
        """The scores (3,) of the short prompts' own images, which the noise and the prompt settle."""
        return dict(zip(short, scores(short, short), strict=True))

    def gain(prompts: list[str], plain: list[str]) -> Tensor:
        new, old = scores(prompts, plain), torch.stack([known()[text] for text in plain])
        # This CLIP gives all pictures more than 0.28, so what fits is what images of short prompts reach.
        usual = float(torch.stack([*known().values()])[:, 0].mean())
        return reward(new[:, 0], 10 * (new[:, 1] - old[:, 1]), 10 * (new[:, 2] - old[:, 2]), usual)

    def first(seed: int) -> Editor:
        """Stage 1: words alone, from the better half of the pairs."""
        best = gain(full, short).argsort(descending=True)[: (len(full) + 1) // 2].tolist()
        pairs = [(f"{short[i]},", full[i].removeprefix(short[i] + ",")) for i in best]
        editor = Editor(policy.small_writer(tokenizer, seed=seed), tokenizer)
        policy.imitate(editor.model, tokenizer, pairs, IMITATION, seed=seed)
        return editor

    def second(seed: int, dynamic: bool) -> Editor:
        sizes = {"rounds": ROUNDS, "batch": BATCH, "lr": 5e-4}  # the rate is that of a model a hundred times smaller
        return optimise(stage("first", seed), short, gain, dynamic, seed=seed, **sizes)

    def stage(name: str, seed: int) -> Editor:
        make: Any = {"first": first, "pae": partial(second, dynamic=True), "words": partial(second, dynamic=False)}
        editor = Editor(policy.small_writer(tokenizer), tokenizer)
        editor.load_state_dict(lab.trained(name, make[name], seed), strict=False)
        return editor

    @cache
    def images(name: str, dynamic: bool, seed: int) -> list[Any]:
        edited = stage(name, seed).edit(test.texts, dynamic=dynamic)
        return bridge.generate(edited, using=[DynamicPrompts()], seed=seed)

    def dressed(images: Any, judge: str = "first") -> np.ndarray:
        """Share of the objects that are right, where the look is the wanted one."""
        seen = read(images, judge)
        return test.complete(images, judge=judge) * np.array([scene.style == LOOK for scene in seen])

    arms = {
        "pae": partial(images, "pae", True),
        "stage 1": partial(images, "first", False),
        "words only": partial(images, "words", False),
        "weights 1 and ranges 0 to 1": partial(images, "pae", False),
    }
    return lab.compare(arms, dressed, expect="pae > stage 1, pae > words only", control="weights 1 and ranges 0 to 1")
