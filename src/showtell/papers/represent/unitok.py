"""UniTok: A Unified Tokenizer for Visual Generation and Understanding.
Ma, Jiang, Wu, Yang, Yu, Yuan, Peng, Qi, 2025, arXiv 2502.20321

Reconstructing images and matching them with captions do not disturb each other in one tokenizer; what both want is more
room in its tokens. A feature is therefore cut into chunks, each with a small codebook of its own, and attention instead
of one linear layer brings it down to the bottleneck and up again.

Faithful: chunks of 8 numbers, codes of unit length, straight-through gradients, codebook, commitment and entropy terms
for each chunk (`nets.multi_codebook`), attention factorisation as in figure 4, contrast of the pooled quantised
features with a text tower at weight 1 (`nets.contrastive_tokenizer`); for language models, cells that enter by an MLP
over their codes and leave by a small transformer over depth (`nets.cell_codes`).
Scaled down: 32x32 pictures, 64 cells, 4 codebooks of 256 against one of 1024 over the same 32 numbers; absolute error
with edges in the place of squared, perceptual and adversarial error; the entropy term estimated from some cells, its
weight and sharpness ours; a plain MLP for a gated one. Not measured: the language model on top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell.data.signal import to_pixels, to_signal
from showtell.measure.classes import ShapeClasses
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN
from showtell.measure.scores import psnr
from showtell.nets.contrastive_tokenizer import AttentionFactor, ContrastiveTokenizer
from showtell.nets.multi_codebook import MultiCodebook
from showtell.train.bases import text
from showtell.train.batches import Batch, Pool
from showtell.train.narrow_models import narrow_clip
from showtell.train.objectives import contrastive_loss, reconstruction
from showtell.train.trainer import fit
from showtell.world import draw, sample
from showtell.world.scene import SHAPES

EXAMPLE = """
import torch
import showtell
from showtell.papers.represent.unitok import unitok, unitok_loss

clip = showtell.load("openai/clip-vit-base-patch32").model                   # its towers are where it begins
tokenizer = unitok(clip.vision_model, clip, books=8, codes=4096)
side = clip.config.vision_config.image_size
images, ids = torch.rand(2, 3, side, side) * 2 - 1, torch.randint(0, 300, (2, 8))
loss, parts = unitok_loss(tokenizer, {"pixels": images, "ids": ids}, None)   # for `showtell.train.fit`
codes = tokenizer.encode(images)                                             # (2, cells, 8)
again, features = tokenizer.decode(codes), tokenizer.features(codes)
"""


def unitok(
    vision: Any, words: Any, books: int = 8, codes: int = 4096, chunk: int = 8, layers: int = 2, tied: bool = False
) -> ContrastiveTokenizer:  # fmt: skip
    """The tokenizer between CLIP's towers, for `ContrastiveTokenizer`'s and `MultiCodebook`'s parameters."""
    width = vision.config.hidden_size
    down, up = AttentionFactor(width, books * chunk), AttentionFactor(books * chunk, width)
    return ContrastiveTokenizer(vision, words, down, MultiCodebook(books, codes, chunk, tied), up, layers)


def unitok_loss(
    model: ContrastiveTokenizer, batch: Batch, generator: torch.Generator | None, contrast: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction, quantisation and contrast of {pixels (n, 3, h, w), ids (n, length)}."""
    made, vectors, quantised = model(batch["pixels"])
    parts = reconstruction(made, batch["pixels"])
    loss = parts["pixels"] + parts["edges"] + quantised
    if contrast:
        parts["contrast"] = contrastive_loss(vectors, model.of_texts(batch["ids"]), model.scale)
        loss = loss + contrast * parts["contrast"]
    return loss, {name: value.detach() for name, value in parts.items()}


SIDE, WIDTH, SCENES, STEPS, BATCH = 32, 64, 8000, 300, 64
WORLD = PLAIN | {"shape": SHAPES[::2], "objects": 1}
ARMS: dict[str, tuple[dict[str, Any], float]] = {  # how it is made, and the weight of the contrast
    "multi": ({"books": 4, "codes": 256}, 1.0),
    "single": ({"books": 1, "codes": 1024, "chunk": 32}, 1.0),
    "tied": ({"books": 4, "codes": 256, "tied": True}, 1.0),
    "reconstruction alone": ({"books": 4, "codes": 256}, 0.0),
    "single alone": ({"books": 1, "codes": 1024, "chunk": 32}, 0.0),
}


def miniature(seed: int, **more: Any) -> ContrastiveTokenizer:
    """Random weights: CLIP towers of two layers over 32x32 pictures, 8x8 cells."""
    clip = narrow_clip(seed, WIDTH, 2, SIDE // 8)
    clip.visual_projection, clip.logit_scale = nn.Identity(), nn.Parameter(torch.zeros(()), requires_grad=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return unitok(clip.vision_model, clip, **more)


def experiment(lab: Lab) -> list[Comparison]:
    def ids_of(texts: Sequence[str]) -> np.ndarray:
        found, real = text.ids_of(text.clip_tokenizer(), texts)
        return found[:, : int(real.sum(axis=1).max())].astype(np.int64)

    @cache
    def pool() -> Pool:
        scenes = sample(SCENES, 0, "train", **WORLD)
        styles = [("plain", "terse", "paraphrase-1", "paraphrase-3")[i % 4] for i in range(SCENES)]
        texts = [scene.caption("en", style) for scene, style in zip(scenes, styles, strict=True)]
        return Pool({"pixels": to_signal(torch.from_numpy(draw(scenes, SIDE))).numpy(), "ids": ids_of(texts)}, BATCH)

    @cache
    def tokenizer(name: str, seed: int) -> ContrastiveTokenizer:
        sizes, contrast = ARMS[name]

        def learn(model: ContrastiveTokenizer, seed: int) -> None:
            fit(model, partial(unitok_loss, contrast=contrast), pool(), steps=STEPS, lr=1e-3, ema=None, precision="no",
                seed=seed, progress=False)  # fmt: skip

        made: ContrastiveTokenizer = lab.network(name, partial(miniature, **sizes), learn, seed, shared=True)
        return made

    scenes = sample(lab.n, lab.seed, lab.split, **WORLD)
    pictures, classes = draw(scenes, SIDE), ShapeClasses(WORLD["shape"])
    names, wanted = ids_of(classes.names), torch.from_numpy(classes.of(scenes))

    def classified(name: str, seed: int) -> np.ndarray:
        """Whether the name nearest to what the tokens hold is the right one of 96."""
        model = tokenizer(name, seed)
        found = model.features(model.encode(to_signal(torch.from_numpy(pictures))))
        with torch.no_grad():
            nearest = (found @ model.of_texts(torch.from_numpy(names)).T).argmax(dim=1)
        return (nearest == wanted).numpy().astype(float)

    def rebuilt(name: str, seed: int) -> np.ndarray:
        """PSNR in dB of the pictures after a way through the tokens."""
        model = tokenizer(name, seed)
        made = model.decode(model.encode(to_signal(torch.from_numpy(pictures))))
        return np.array([psnr(a, b) for a, b in zip(pictures, to_pixels(made), strict=True)])

    def arms(measure: Callable[[str, int], np.ndarray]) -> dict[str, Callable[[int], np.ndarray]]:
        return {name: partial(measure, name) for name in ARMS}

    return [
        lab.compare(arms(classified), expect="multi > single, multi > reconstruction alone", control="tied",
                    name="zero-shot accuracy"),
        lab.compare(arms(rebuilt), expect="multi > single, multi > reconstruction alone - 1", control="tied",
                    name="PSNR"),
    ]  # fmt: skip
