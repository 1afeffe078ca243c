"""STAR: Scale-wise Text-conditioned AutoRegressive image generation.
Ma, Zhou, Liang, Bai, Zhao, Li, Chen, Jin, 2024, arXiv 2406.10797

Next-scale prediction (VAR) told by text: its pooled vector begins and leads, its words are attended to in every block.
Places of all scales are turned on one common grid, so that a place of the image has one phase at every scale. And what
is drawn at once within a scale does not fit together, so that part is drawn first and heard before the rest is.

Faithful, to the published code where the paper could not be read: pooled text as start token alone, cross-attention to
words, two-dimensional rotary positions from 0 to the side of the finest grid at every scale, a learnt embedding of the
scale instead of a table of places, 10 % empty prompts, guidance that grows from 0 at the first scale to 4 at the last.
Ours: how sampling hears what was drawn. The published code trains three more blocks over the finished transformer and
draws 8 to 15 times, the first 5 at random places. Here, so that it works on any scale-wise model, the surest tokens are
kept first and added to the map that their scale is predicted from; training adds a random part of a scale's own tokens
for half of the rows, with the loss on the others.
Scaled down: 64x64 pictures of one thing of four shapes, scales 1-2-4-8-16 of which the last is read in patches of 2x2,
256 codes, 4 blocks, Muon; a text encoder learnt along in place of a pre-trained one; one resolution; three groups at
the last two scales, 9 passes instead of 5. The baseline is VAR told by pooled text alone: it begins, and leads every
norm, with learnt places and all tokens of a scale at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.base import Technique, apply_hooks, overriding
from showtell.bridges.decoding import DecodingBridge, steered
from showtell.bridges.scalewise import ScaleDecoder
from showtell.errors import ShowtellError
from showtell.measure import scores
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.narrow import others
from showtell.measure.prompts import PromptSet
from showtell.nets.star import Star, StarConfig, per_code, per_token
from showtell.train.bases import text
from showtell.train.bases.attention import plain_attention
from showtell.train.bases.codes import SCALES, fit_scales, to_scales
from showtell.train.bases.tokens import settings
from showtell.train.batches import Batch, Stream
from showtell.train.samples import ONE_THING, encoded, prompted
from showtell.train.trainer import QUICK, fit
from showtell.world import sample

EXAMPLE = """
import showtell
from showtell.papers.generate.star_var import StableSampling

bridge = showtell.load("runs/scalewise")            # what `showtell train scalewise --out runs/scalewise` makes
[image] = bridge.generate("a red ring", using=[StableSampling(groups=2)], seed=0)
"""


class StarDecoder(ScaleDecoder):
    """A ScaleDecoder whose guidance grows with the scale: none at the first, all of it at the last."""

    scale = 5.0  # 1 + the paper's 4

    def guide(self, run: Any, conditional: Tensor, unconditional: Tensor) -> Tensor:
        grown = (run.guidance - 1) * run.step / (run.steps - 1)
        return conditional + grown * (conditional - unconditional)


class StableSampling(Technique):
    """Tokens of a scale drawn in groups, the surest first; each group is heard before the next is drawn.

    groups: passes over each scale of at least `least` tokens; 1 is plain sampling. heard: "own", or "another" for the
    control in which every sample hears what was drawn for its neighbour in the batch.
    """

    def __init__(self, groups: int = 2, least: int = 16, heard: str = "own") -> None:
        if groups < 1 or least < 2 or heard not in ("own", "another"):
            raise ShowtellError(f"groups={groups}, least={least}, heard={heard!r}: use 1, 2 or more, own or another.")
        self.groups, self.least, self.heard = groups, least, heard

    def decode(self, run: Any, decoder: Any) -> Tensor:
        if not isinstance(decoder, ScaleDecoder):
            raise ShowtellError(f"{run.bridge.name} does not decode scale by scale; take a bridge that does.")
        if overriding(run.techniques, "attention"):
            raise ShowtellError("stable sampling cannot be combined with attention hooks.")
        model: Any = decoder.model
        branches = {"text": run.text} if run.negative is None else {"negative": run.negative, "text": run.text}
        for scale, side in enumerate(model.grids):
            run.step, before, count = scale, run.own["latents"], side * side
            passes, codes = self.groups if count >= self.least else 1, torch.zeros(0)
            done = torch.zeros(len(run.prompts), count, dtype=torch.bool, device=decoder.device)
            for turn in range(passes):
                fixed = per_code(done, model.config.scales[scale])
                if turn:
                    whose = int(self.heard == "another")
                    run.own["cache"].crop(-count)
                    run.own["latents"] = before + model.residual(scale, codes.roll(whose, 0), fixed.roll(whose, 0))
                parts = decoder.predict(run, branches).chunk(len(branches))
                logits = steered(run, decoder, parts[-1], parts[0] if len(parts) > 1 else None)
                drawn = decoder.choose(run, logits)
                codes = torch.where(fixed, codes, drawn) if turn else drawn
                sure = logits.log_softmax(dim=-1).gather(-1, codes[..., None])[..., 0]
                sure = per_token(sure, side).masked_fill(done, torch.inf)
                done = sure.argsort(dim=1, descending=True).argsort(dim=1) < -(-count * (turn + 1) // passes)
            run.own["latents"] = before
            decoder.keep(run, apply_hooks(run, "tokens", codes))
        return run.tokens


def star_loss(
    model: Star, batch: Batch, generator: torch.Generator | None, least: int = 16
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of the codes of all scales that are not shown, of {latents (n, c, h, h), ids, real (n, length)}."""
    scales, device = model.config.scales, batch["ids"].device
    with torch.no_grad():
        codes = to_scales(batch["latents"].float(), model.books.float(), scales)
        rows, kept = len(codes[0]), list[Tensor]()
        share = torch.rand(rows, 1, generator=generator, device=device)
        share = share * (torch.rand(rows, 1, generator=generator, device=device) < 0.5)
        for side, grid in zip(scales, model.grids, strict=True):
            chosen = torch.rand(rows, grid * grid, generator=generator, device=device) < share
            kept.append(per_code(chosen & (grid * grid >= least), side))
    with plain_attention():
        found = model(batch["ids"], batch["real"], codes, kept)
    hidden = ~torch.cat(kept, dim=1)
    loss = F.cross_entropy(torch.cat(found, dim=1)[hidden].float(), torch.cat(codes, dim=1)[hidden])
    return loss, {}


SCENES, BOOK_ROWS, STEPS, BATCH, WIDTH, LENGTH, CODES = 3000, 1000, 300, 32, 96, 12, 256
GROUPS, LEAST = 3, 64  # at most twice the passes of plain sampling
ARMS: dict[str, dict[str, Any]] = {
    "star": {},
    "baseline": {"positions": "learnt", "words": False},
    "raw indices": {"positions": "raw"},
}


def bridge_of(model: Star, tokenizer: Any) -> DecodingBridge:
    return DecodingBridge(StarDecoder(model, tokenizer), "STAR", frozenset({"generate"}))


def miniature(vae: Any, seed: int, **more: Any) -> Star:
    """Random weights around an AutoencoderKL, and empty codebooks."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Star(
            StarConfig(
                text_vocab=len(text.clip_tokenizer(LENGTH)), text_length=LENGTH, scales=SCALES, codes=CODES,
                channels=vae.config.latent_channels, vae=settings(vae), **{**sizes, **more},
            )
        )  # fmt: skip
    model.vae.load_state_dict(vae.state_dict())
    return model


def experiment(lab: Lab) -> list[Comparison]:
    vae, tokenizer = lab.base("vae"), text.clip_tokenizer(LENGTH)

    @cache
    def data() -> tuple[Tensor, Stream]:
        scenes = sample(SCENES, 0, "train", **ONE_THING)
        latents, captions = encoded(vae, scenes), [scene.caption() for scene in scenes]
        return fit_scales(latents[:BOOK_ROWS], CODES), prompted(captions, tokenizer, BATCH, latents=latents.numpy())

    @cache
    def model(name: str, seed: int) -> Star:
        def learn(made: Star, seed: int) -> None:
            books, batches = data()
            made.books.copy_(books)
            fit(made, star_loss, batches, steps=STEPS, seed=seed, **QUICK)

        made: Star = lab.network(name, partial(miniature, vae, **ARMS[name]), learn, seed, shared=True)
        return made

    scenes = sample(lab.n, lab.seed, lab.split, **ONE_THING)
    prompts = PromptSet.of("one thing", scenes, lab.seed, lab.split)
    texts = prompts.texts

    @cache
    def shown(name: str, seed: int, heard: str = "", astray: bool = False) -> list[Any]:
        using = [StableSampling(GROUPS, LEAST, heard)] if heard else []
        bridge = bridge_of(model(name, seed), tokenizer)
        return bridge.generate(others(texts) if astray else texts, using=using, seed=seed)

    def surprise(name: str, seed: int) -> np.ndarray:
        """Cross entropy of the codes of the prompts' own pictures, a mean for each."""
        net = model(name, seed)
        codes = to_scales(encoded(vae, scenes), net.books, net.config.scales)
        ids, real = (torch.from_numpy(part) for part in text.ids_of(tokenizer, texts))
        with torch.no_grad():
            found = torch.cat(net(ids.long(), real, codes), dim=1).float()
        return F.cross_entropy(found.transpose(1, 2), torch.cat(codes, dim=1), reduction="none").mean(dim=1).numpy()

    arms: dict[str, Callable[[int], Any]] = {
        "star": partial(shown, "star", heard="own"),
        "baseline": partial(shown, "baseline"),
        "one shot": partial(shown, "star"),
        "another's words": partial(shown, "star", heard="own", astray=True),
        "another's tokens": partial(shown, "star", heard="another"),
    }

    def of(*names: str) -> dict[str, Callable[[int], Any]]:
        return {name: arms[name] for name in names}

    return [
        lab.compare(of("star", "baseline", "another's words"), prompts.true_facts, expect="star > baseline",
                    control="another's words", texts=texts),
        lab.compare({name: partial(surprise, name) for name in ARMS}, expect="star < baseline",
                    control="raw indices", name="cross entropy"),
        lab.compare(of("star", "one shot", "another's tokens"), scores.legibility, expect="star > one shot",
                    control="another's tokens", texts=texts),
    ]  # fmt: skip
