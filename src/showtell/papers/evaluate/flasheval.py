"""FlashEval: Towards Fast and Accurate Evaluation of Text-to-image Diffusion Generative Models.
Zhao, Wang, Chu, Zhang, Gu, Li, Ning, Wang, 2024, arXiv 2403.16379

Which few prompts rank generators as all of them do? Random sets that rank well are searched again and again within the
prompts that occur in them most, until few are left; only some of the models take part in the search.

Faithful: mean scores, Kendall's tau-b with a margin for ties, the rounds (draw, rank, keep the best, count, shrink) and
the best set over all of them; prompts drawn twice are replaced from the pool. `CODE` holds the settings of the authors'
code, which are also the defaults, cut to the number of prompts at hand. Deviation: the set is chosen on the models of
the search, where the released script looks at those held out.
Clustering by text features is not among the baselines. Scaled down: 24 variants of two miniature generators instead of
78, by steps and guidance alone; 250 prompts instead of 40,504; 20,000 draws a round, of which as large a share is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.statistics import kendall

EXAMPLE = """
import showtell
from showtell.papers.evaluate.flasheval import flasheval, score_matrix

judge = showtell.load("openai/clip-vit-base-patch32")
bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
prompts = ["a red ring", "a blue star", "a cat", "a dog on the table"]
settings = [{"num_inference_steps": steps, "guidance_scale": scale} for steps in (2, 4) for scale in (1.0, 5.0)]
models = [lambda texts, call=call: bridge.generate(texts, seed=0, **call) for call in settings]
score = lambda images, texts: (judge.embed(images) * judge.embed(texts=texts)).sum(-1)
print([prompts[i] for i in flasheval(score_matrix(models, prompts, score), size=2, draws=1000)])
"""

CODE = {"draws": 3_000_000, "best": 100_000}
POOLS = (30000, 20000, 15000, 12000, 10000, 8000, 5000, 3000, 1000, 500, 100)


def flasheval(
    scores: np.ndarray, size: int, *, draws: int = CODE["draws"], best: int = CODE["best"],
    pools: Sequence[int] = POOLS, margin: float = 0.0, reference: np.ndarray | None = None, seed: int = 0,
    chunk: int = 20_000,
) -> np.ndarray:  # fmt: skip
    """Indices of `size` prompts, (size,) sorted, that rank the models of the search as all prompts do.

    scores: (models, prompts), those of the search alone. draws: sets a round; best: of them that are counted; pools: to
    how many of the prompts that occur in them most the search is cut after each round. margin: see `kendall`.
    reference: (models,), what ranks them, by default their mean over all prompts. Raises ShowtellError for more prompts
    than there are.
    """
    models, prompts = scores.shape
    if not 0 < size < prompts or models < 3:
        raise ShowtellError(f"cannot choose {size} of {prompts} prompts by {models} models; give fewer, by 3 or more.")
    rng, goal = np.random.default_rng(seed), scores.mean(1) if reference is None else reference
    pool, winner, top = np.arange(prompts), np.arange(size), -np.inf
    table = scores.T.astype(np.float32)
    for limit in [*(limit for limit in pools if size < limit < prompts), 0]:
        kept, marks = np.empty((0, size), dtype=np.int64), np.empty(0)
        for start in range(0, draws, chunk):
            sets = distinct_sets(rng, pool, min(chunk, draws - start), size)
            ranks = kendall(table[sets].mean(1), goal, margin)
            kept, marks = np.concatenate([kept, sets]), np.concatenate([marks, ranks])
            order = np.argsort(-marks, kind="stable")[:best]
            kept, marks = kept[order], marks[order]
        if marks[0] > top:
            winner, top = kept[0], marks[0]
        counts = np.bincount(kept.ravel(), minlength=prompts)[pool]
        pool = pool[np.sort(np.argsort(-counts, kind="stable")[:limit])]
    return np.sort(winner)


def distinct_sets(rng: np.random.Generator, pool: np.ndarray, count: int, size: int) -> np.ndarray:
    """Sets of different prompts of the pool, (count, size)."""
    if len(pool) <= 512:
        return pool[rng.random((count, len(pool))).argpartition(size - 1, axis=1)[:, :size]]
    sets = rng.integers(len(pool), size=(count, size))
    ordered = np.sort(sets, axis=1)
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1)):
        sets[row] = rng.choice(len(pool), size, replace=False)
    return pool[sets]


def score_matrix(
    models: Sequence[Callable[[list[str]], Any]], prompts: list[str], score: Callable[[Any, list[str]], Any]
) -> np.ndarray:
    """(models, prompts): each model's images for all prompts, scored."""
    return np.stack([np.asarray(score(make(prompts), prompts), dtype=float) for make in models])


def best_alone(scores: np.ndarray, size: int, margin: float = 0.0) -> np.ndarray:
    """The prompts whose own scores rank the models best, (size,): the greedy baseline."""
    return np.argsort(-kendall(scores.T, scores.mean(1), margin), kind="stable")[:size]


# The experiment's models: every number of steps and guidance scale, on two generators.
STEPS, SCALES = (2, 4, 8, 16), (1.0, 3.0, 7.0)
SPLITS = 8


def experiment(lab: Lab) -> Comparison:
    texts, clip = lab.prompts("pairs", 250).texts, lab.base("clip")
    size = max(1, len(texts) // 25)
    settings = [(lab.base(name), steps, scale) for name in ("unet", "dit") for steps in STEPS for scale in SCALES]

    def bank() -> dict[str, Any]:
        def images(bridge: Any, steps: int, scale: float) -> Callable[[list[str]], Any]:
            call = {"num_inference_steps": steps, "guidance_scale": scale, "batch_size": 64}
            return lambda prompts: bridge.generate(prompts, seed=lab.seed, **call)

        models = [images(*setting) for setting in lab.progress(settings, "models")]
        return {"scores": torch.from_numpy(score_matrix(models, texts, cosine))}

    def cosine(images: Any, prompts: list[str]) -> np.ndarray:
        return (clip.embed(images=images) * clip.embed(texts=prompts)).sum(-1).numpy()

    @cache
    def splits(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(scores of the models of the search, of those held out), half and half."""
        scores = np.asarray(lab.trained("score bank", bank, size=len(texts))["scores"])
        orders = [np.random.default_rng((seed, i)).permutation(len(scores)) for i in range(SPLITS)]
        return [(scores[order[: len(order) // 2]], scores[order[len(order) // 2 :]]) for order in orders]

    def arm(choose: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[int], np.ndarray]:
        """Tau on the models held out between the means over the chosen prompts (sets, size) and over all, (splits,)."""

        def run(seed: int) -> np.ndarray:
            chosen = [(np.atleast_2d(choose(search, seed + i)), rest) for i, (search, rest) in enumerate(splits(seed))]
            return np.array([kendall(rest.T[sets].mean(1), rest.mean(1)).mean() for sets, rest in chosen])

        return run

    def searched(search: np.ndarray, seed: int, reference: np.ndarray | None = None) -> np.ndarray:
        pools = [round(share * len(texts)) for share in (0.74, 0.49, 0.37, 0.25, 0.12, 0.07)]
        return flasheval(search, size, draws=20_000, best=700, pools=pools, reference=reference, seed=seed)

    def permuted(search: np.ndarray, seed: int) -> np.ndarray:
        mixed = np.random.default_rng(seed).permuted(search, axis=0)
        return searched(mixed, seed, search.mean(1))

    def drawn(count: int) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda search, seed: distinct_sets(np.random.default_rng(seed), np.arange(len(texts)), 200, count)

    arms = {
        "flasheval": arm(searched),
        "random": arm(drawn(size)),
        "best alone": arm(lambda search, seed: best_alone(search, size)),
        "five times as many": arm(drawn(min(5 * size, len(texts)))),
        "permuted models": arm(permuted),
    }
    expect = "flasheval > random, flasheval > best alone, flasheval >= five times as many"
    return lab.compare(arms, expect=expect, control="permuted models", name="Kendall's tau")
