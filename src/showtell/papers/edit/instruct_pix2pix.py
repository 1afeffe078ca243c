"""InstructPix2Pix: Learning to Follow Image Editing Instructions. Brooks, Holynski, Efros, 2022, arXiv 2211.09800

An editor that is told what to change learns from pictures that nobody took: a language model writes an instruction and
the caption after it, a text-to-image model draws both captions with shared attention, and CLIP keeps the pairs in which
the pictures changed as the captions did. The generator then learns to draw the second from the first.

Faithful: candidates with attention shared for a random part of the sampling, p in [0.1, 0.9]; the three thresholds, the
rank by directional similarity, at most 4 a caption; a UNet with channels for the picture that begin at zero; dropping
picture, words and both from 5 % of the rows each. Guidance by picture and by words is the bridge's own. Ours: p is
drawn for a round of candidates instead of for each. Scaled down: the grammar writes the edits, the miniature UNet draws
two candidates each, its CLIP ranks them without thresholds (its cosines lie elsewhere), training is short. SDEdit's
strength is chosen on validation prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell import language
from showtell.bridges.base import Run, Technique
from showtell.bridges.stable_diffusion import with_extra
from showtell.language import LanguageModel
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.likeness import clip_score, directional_likeness, image_likeness
from showtell.steer.inversion import SDEdit
from showtell.steer.maps import places
from showtell.steer.sharing import ShareAttention
from showtell.train.editors import editor_of, fit_editor
from showtell.train.samples import latents_of, training_scenes
from showtell.world.edits import KINDS

EXAMPLE = """
import showtell
from showtell.papers.edit.instruct_pix2pix import best, candidates, edits_of, train_editor
from showtell.train.editors import editor_of

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
clip = showtell.load("openai/clip-vit-base-patch32")
edits = edits_of(["a red ring left of a blue star", "two green squares"])  # lm="openai:gpt-4o-mini" for any captions
triples = best(candidates(bridge, edits, rounds=4), clip)                  # of 100 rounds in the paper
editor = editor_of(bridge)
train_editor(editor, triples, steps=2, batch_size=2)
[image] = editor.edit(bridge.generate("a red ring", seed=0), "make the ring green", seed=0)
"""


@dataclass(frozen=True)
class Triple:
    """An instruction, the captions before and after it, and pictures of both."""

    caption: str
    instruction: str
    edited: str
    before: Any = None
    after: Any = None


def edits_of(captions: Sequence[str], lm: LanguageModel | str | None = None, seed: int = 0) -> list[Triple]:
    """An edit of every caption of which the language model knows one, without pictures."""
    model, found = language.load(lm), []
    for i, caption in enumerate(captions):
        if made := [one for one in model.alter(caption, 1, seed + i, KINDS) if one.instruction]:
            found.append(Triple(caption, made[0].instruction, made[0].text))
    return found


def candidates(bridge: Any, edits: Sequence[Triple], rounds: int = 100, seed: int = 0, **call: Any) -> list[Triple]:
    """Every edit with pictures, `rounds` times, edit by edit. call: keywords of `generate`.

    Both pictures begin with one noise, and the second attends as the first does in the first part of the sampling.
    """
    texts, rng = [[one.caption for one in edits], [one.edited for one in edits]], np.random.default_rng(seed)
    count, drawn = len(edits), list[Any]()
    for number in range(rounds):
        share = float(rng.uniform(0.1, 0.9))
        shared = ShareAttention([*range(count)] * 2, "qk", places(("self", "cross", "joint")), (0, share))
        seeds = [(seed * rounds + number) * count + i for i in range(count)]
        images = bridge.generate([*texts[0], *texts[1]], using=[shared], seed=seeds * 2, **call)
        drawn.append([images[i : i + count] for i in (0, count)])
    return [replace(one, before=made[0][i], after=made[1][i]) for i, one in enumerate(edits) for made in drawn]


def best(
    found: Sequence[Triple], clip: Any, alike: float = 0.75, told: float = 0.2, direction: float = 0.2, most: int = 4
) -> list[Triple]:
    """Those of which a CLIP bridge says enough: cosines of the two pictures, of each with its caption, and of the
    change of the pictures with that of the captions; by the last, best first, at most `most` of one edit."""
    before, after = [one.before for one in found], [one.after for one in found]
    captions, edited = [one.caption for one in found], [one.edited for one in found]
    way = np.nan_to_num(directional_likeness(clip, before, after, captions, edited), nan=-1.0)  # nothing has changed
    fits = np.minimum(clip_score(clip, before, captions, 1.0), clip_score(clip, after, edited, 1.0))
    good = (image_likeness(clip, before, after) >= alike) & (fits >= told) & (way >= direction)
    kept: list[Triple] = []
    for i in np.argsort(-way, kind="stable"):
        same = sum((one.caption, one.instruction) == (found[i].caption, found[i].instruction) for one in kept)
        if good[i] and same < most:
            kept.append(found[i])
    return kept


def train_editor(
    editor: Any, triples: Sequence[Triple], steps: int = 10_000, batch_size: int = 32, lr: float = 1e-4, seed: int = 0,
    **options: Any,
) -> Any:  # fmt: skip
    """Trains the editor's UNet in place to draw what comes after from what was before and the instruction; the UNet.

    options: as for `Noising`.
    """
    before, after = [one.before for one in triples], [one.after for one in triples]
    told = [one.instruction for one in triples]
    return fit_editor(editor, before, told, after, steps, batch_size, lr, seed=seed, **options)


class NotShown(Technique):
    """The control: the editor sees no picture."""

    def start(self, run: Run, latents: Tensor) -> None:
        run.text = with_extra(run.text, "channels", torch.zeros_like(run.text.extra["channels"]))


CAPTIONS, ROUNDS, KEPT, STEPS, BATCH, SAMPLING = 192, 2, 96, 250, 16, 10
STRENGTHS = (0.4, 0.6, 0.8)


def experiment(lab: Lab) -> Comparison:
    base, clip, prompts = lab.base("unet"), lab.base("clip"), lab.prompts("edits")
    edits = edits_of([scene.caption() for scene in training_scenes(CAPTIONS, lab.seed)], seed=lab.seed)
    short = {"num_inference_steps": SAMPLING}

    def pictures() -> dict[str, Tensor]:
        found = candidates(base, edits, ROUNDS, lab.seed, **short)
        sides = {"before": [one.before for one in found], "after": [one.after for one in found]}
        return {side: torch.from_numpy(np.stack([np.asarray(one) for one in each])) for side, each in sides.items()}

    def trained(name: str, seed: int) -> Any:
        drawn = lab.trained("pictures", pictures, rounds=ROUNDS, captions=CAPTIONS, sampling=SAMPLING)
        pairs = zip(drawn["before"].numpy(), drawn["after"].numpy(), strict=True)
        found = [replace(edits[i // ROUNDS], before=one, after=other) for i, (one, other) in enumerate(pairs)]
        kept = best(found, clip, -1, -1, -1, most=1) if name == "filtered" else found[::ROUNDS]
        return train_editor(editor_of(base), kept[:KEPT], STEPS, BATCH, lr=5e-4, seed=seed)

    def edited(name: str, seed: int, using: Sequence[Technique] = ()) -> list[Any]:
        editor = editor_of(base)
        editor.adapter.denoiser.load_state_dict(lab.trained(name, partial(trained, name), seed, steps=STEPS, kept=KEPT))
        return editor.edit(prompts.sources, prompts.texts, using=using, seed=seed, **short)

    def success(images: Any, judge: str = "first", of: Any = prompts) -> np.ndarray:
        """Success of the edit times what is kept of the pixels elsewhere; where all may change, success alone."""
        kept = of.kept_pixels(images)
        return of.success(images, judge=judge) * np.where(np.isnan(kept), 1.0, kept)

    def sdedit(of: Any, strength: float, seed: int = 0) -> list[Any]:
        return base.generate(of.plain, using=[SDEdit(latents_of(base, of.sources), strength)], seed=seed, **short)

    @cache
    def strength() -> float:
        held = lab.validation("edits", max(1, lab.n // 4))
        return max(STRENGTHS, key=lambda one: float(success(sdedit(held, one), of=held).mean()))

    arms: dict[str, Any] = {
        "instruct_pix2pix": partial(edited, "filtered"),
        "sdedit": lambda seed: sdedit(prompts, strength(), seed),
        "unfiltered": partial(edited, "unfiltered"),
        "picture not shown": partial(edited, "filtered", using=[NotShown()]),
    }
    expect = "instruct_pix2pix > sdedit, instruct_pix2pix > unfiltered"
    return lab.compare(arms, metric=success, expect=expect, control="picture not shown")
