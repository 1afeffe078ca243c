"""What a diffusion bridge makes of pictures at given noise levels, without sampling: how well texts explain them, and
where it looks for the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from showtell.steer.depths import AttentionByDepth, across_depths
from showtell.train.noising import Noising


def level_noise(clean: Tensor, levels: Sequence[int], seed: int = 0) -> dict[int, Tensor]:
    """Noise for each level, (...) as one of the latents (n, ...): pictures share it, so that a batch of them gives what
    they give alone, and texts are compared under the same noise."""
    generator = torch.Generator().manual_seed(seed)
    return {level: torch.randn(clean.shape[1:], generator=generator).to(clean) for level in levels}


@torch.no_grad()
def text_errors(
    noising: Noising, clean: Tensor, texts: Sequence[Sequence[str]], noise: Mapping[int, Tensor]
) -> list[Tensor]:
    """How badly each text explains its picture, (its texts,) for each: `Noising.noise_errors`, summed over the levels.

    The smaller, the likelier (a bound on the likelihood, as in diffusion classifiers, arXiv 2303.16203, eq. 5).
    clean: latents (n, ...). texts: of each picture, one at least. noise: level of 1000 -> noise, see `level_noise`.
    """
    alone = noising.text([text for own in texts for text in own])
    repeated = clean[[row for row, own in enumerate(texts) for _ in own]]
    total = torch.zeros(len(repeated), device=clean.device)
    for level, one in noise.items():
        at = noising.at_level(repeated, one.expand_as(repeated), level)
        total = total + noising.noise_errors(noising.predict(at, alone), at)
    return list(total.split([len(own) for own in texts]))


@torch.no_grad()
def attention_at(
    noising: Noising, clean: Tensor, prompt: str, noise: Mapping[int, Tensor]
) -> tuple[Any, Tensor, Tensor]:
    """(the run, maps (n, tokens, height, width), attention (n, places, places)) while pictures are denoised from these
    levels with one prompt, see `steer.depths.across_depths`. The run tells where `steer.regions.words_of` finds words.
    """
    watching, text = AttentionByDepth(), noising.text([prompt] * len(clean))
    run = noising.run([prompt] * len(clean), [watching])
    run.text = text
    watching.start(run, clean)
    for level, one in noise.items():
        noising.predict(noising.at_level(clean, one.expand_as(clean), level), text, watching=[watching], run=run)
    return run, *across_depths(run.state(watching).words, run.state(watching).places)
