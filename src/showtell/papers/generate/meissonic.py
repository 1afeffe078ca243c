"""Meissonic: Revitalizing Masked Generative Transformers for Efficient High-Resolution Text-to-Image Synthesis.
Bai, Ye, Chow, Song, Li, Dong, Zhu, Yan, 2024, arXiv 2410.08261

A transformer that fills in masked image tokens, with what made diffusion transformers good: blocks that first keep text
and image apart and then join them, rotary positions, the masking rate as a condition, size, crop and a score of human
preference as others, and a convolution that halves the token grid before the transformer and one that restores it.

Faithful: one block with two streams to two with one, all of FLUX's kind, as in the published network; rates along a
cosine, cross entropy of the masked tokens, 10 % empty prompts; aMUSEd's conditions, to which the score belongs, and its
sampling, guided, the least sure tokens masked again. The rate is read off the tokens, so that sampling tells the true
one; the published code tells the number of the step there.
Scaled down: 64x64 pictures of one thing of four shapes, 16x16 tokens of the base `vq`, 8x8 inside, 1 + 2 blocks, a
text encoder learnt along, all by Muon. Half of the training pictures are spoilt by noise or blur and carry a low
score, in place of a model of preference. One stage of training instead of four; guidance 3 and aMUSEd's 12 steps
instead of 9 and 48. The arm without compression gets half of the updates, which take it as long. How clean an image
is, is how near it comes to the drawing of what the judge reads in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AmusedPipeline, AmusedScheduler
from torch import Tensor

from showtell.bridges.amused import Amused
from showtell.bridges.decoding import DecodingBridge
from showtell.data.degrade import degrade
from showtell.data.signal import to_signal
from showtell.errors import ShowtellError
from showtell.measure import scores
from showtell.measure.cost import operations
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PromptSet
from showtell.nets.meissonic import Meissonic
from showtell.train.bases import text
from showtell.train.bases.attention import plain_attention
from showtell.train.bases.codes import to_codes, unit_range
from showtell.train.bases.tokens import Masked, hidden_tokens
from showtell.train.batches import Batch, Stream
from showtell.train.samples import ONE_THING, prompted
from showtell.train.trainer import QUICK, fit
from showtell.world import draw, sample

EXAMPLE = """
import showtell
from showtell.papers.generate.meissonic import meissonic

bridge = showtell.load("amused/amused-256")         # its text encoder, image tokens and schedule are where it begins
model = meissonic(bridge, num_layers=14, num_single_layers=28, num_attention_heads=16)    # to be trained
[image] = model.generate("a red ring", guidance_scale=9, num_inference_steps=48, micro_conditioning_aesthetic_score=6)
"""


def meissonic(bridge: Any, **sizes: Any) -> DecodingBridge:
    """A Meissonic with random weights in place of an aMUSEd bridge's transformer; all else is shared with it.

    sizes: keywords of `Meissonic`. Raises ShowtellError for another bridge.
    """
    if not isinstance(getattr(bridge, "decoder", None), Amused):
        raise ShowtellError(f"{bridge.name} fills in no masked tokens; take an aMUSEd bridge.")
    parts = dict(bridge.decoder.pipeline.components)
    old = parts.pop("transformer").config
    same = {"vocab_size": old.vocab_size, "codebook_size": old.codebook_size, "sample_size": old.sample_size,
            "joint_attention_dim": old.encoder_hidden_size, "pooled_projection_dim": old.cond_embed_dim}  # fmt: skip
    return bridge_of(AmusedPipeline(**parts, transformer=Meissonic(**{**same, **sizes}).eval()))


def bridge_of(pipeline: Any) -> DecodingBridge:
    return DecodingBridge(Amused(pipeline), "Meissonic", frozenset({"generate"}))


def meissonic_loss(model: Masked, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of masked tokens, of {codes (n, h, w), ids (n, length), micro (n, 5)}."""
    codes, hidden = batch["codes"], hidden_tokens(batch["codes"], generator)
    with plain_attention():
        told = model.text_encoder(batch["ids"], output_hidden_states=True)
        tokens = torch.where(hidden, model.transformer.config.vocab_size - 1, codes)
        logits = model.transformer(tokens, told.hidden_states[-2], told.text_embeds, batch["micro"])
    found = logits.permute(0, 2, 3, 1)[hidden].float()
    right = (found.argmax(dim=-1) == codes[hidden]).float().mean()
    return F.cross_entropy(found, codes[hidden]), {"right": right}


SCENES, STEPS, BATCH, WIDTH, LENGTH, GOOD, BAD, GUIDANCE = 3000, 280, 48, 96, 12, 7, 3, 3.0
ARMS: dict[str, tuple[dict[str, Any], int]] = {  # how it is made, and how much longer a step takes
    "meissonic": ({}, 1),
    "plain": ({"rate": False, "micro": False, "rotary": False}, 1),
    "uncompressed": ({"downsample": False}, 2),
}


def miniature(vq: Any, seed: int, **more: Any) -> Masked:
    """Random weights: a Meissonic and a text encoder around a VQModel."""
    tokenizer, codes = text.clip_tokenizer(LENGTH), len(vq.quantize.embedding.weight)
    sizes = {"sample_size": 64 // 2 ** (len(vq.config.block_out_channels) - 1), "num_layers": 1,
             "num_single_layers": 2, "num_attention_heads": WIDTH // 48, "attention_head_dim": 48,
             "joint_attention_dim": 64, "pooled_projection_dim": 64, "micro_cond_encode_dim": 16}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Masked(AmusedPipeline(
            vqvae=unit_range(copy.deepcopy(vq)), tokenizer=tokenizer,
            text_encoder=text.clip_text(tokenizer, 64, 2, projection=True),
            transformer=Meissonic(vocab_size=codes + 1, codebook_size=codes, **{**sizes, **more}),
            scheduler=AmusedScheduler(mask_token_id=codes),
        ))  # fmt: skip


def experiment(lab: Lab) -> list[Comparison]:
    vq = lab.base("vq")

    @cache
    def data() -> Stream:
        scenes = sample(SCENES, 0, "train", **ONE_THING)
        rng = np.random.default_rng(0)
        spoilt = rng.random(SCENES) < 0.5
        shown = draw(scenes)
        shown[spoilt] = degrade(shown[spoilt], rng, kinds=("noise", "blur"))
        codes = to_codes(vq, to_signal(torch.from_numpy(shown))).numpy()
        side = int(codes.shape[1] ** 0.5)
        micro = np.array([[64, 64, 0, 0, BAD if bad else GOOD] for bad in spoilt], np.float32)
        captions, tokenizer = [scene.caption() for scene in scenes], text.clip_tokenizer(LENGTH)
        return prompted(captions, tokenizer, BATCH, codes=codes.reshape(-1, side, side), micro=micro)

    @cache
    def model(name: str, seed: int) -> Masked:
        sizes, slower = ARMS[name]

        def learn(made: Masked, seed: int) -> None:
            fit(made, meissonic_loss, data(), steps=-(-STEPS // slower), seed=seed, **QUICK)

        made: Masked = lab.network(name, partial(miniature, vq, **sizes), learn, seed, shared=True)
        return made

    scenes = sample(lab.n, lab.seed, lab.split, **ONE_THING)
    prompts = PromptSet.of("one thing", scenes, lab.seed, lab.split)

    @cache
    def shown(name: str, seed: int, score: int = GOOD, wrong: bool = False) -> list[Any]:
        pipeline = copy.copy(model(name, seed).pipeline)
        if wrong:
            told = pipeline.transformer
            pipeline.transformer = copy.copy(told)
            pipeline.transformer.rate = lambda tokens: 1 - told.rate(tokens)
        call: dict[str, Any] = {"micro_conditioning_aesthetic_score": score, "guidance_scale": GUIDANCE}
        return bridge_of(pipeline).generate(prompts.texts, seed=seed, **call)

    def work(name: str, seed: int) -> np.ndarray:
        """Millions of floating-point operations of the transformer for one pass over a picture."""
        pipeline = miniature(vq, seed, **ARMS[name][0]).pipeline
        side, told = pipeline.transformer.config.sample_size, torch.zeros(1, 2, 64)
        call = partial(pipeline.transformer, torch.zeros(1, side, side, dtype=torch.long), told, told[:, 0],
                       torch.zeros(1, 5))  # fmt: skip
        return np.full(lab.n, operations(call) / 1e6)

    arms: dict[str, Callable[[int], list[Any]]] = {name: partial(shown, name) for name in ARMS}
    return [
        lab.compare(arms | {"wrong rate": partial(shown, "meissonic", wrong=True)}, prompts.true_facts,
                    expect="meissonic > plain, meissonic >= uncompressed - 0.03", control="wrong rate",
                    texts=prompts.texts),
        lab.compare(arms | {"low score": partial(shown, "meissonic", score=BAD)}, scores.legibility,
                    expect="meissonic > plain, meissonic > low score", control="low score", texts=prompts.texts),
        lab.compare({name: partial(work, name) for name in ("meissonic", "uncompressed")},
                    expect="uncompressed >= 2 * meissonic", name="MFLOP a step"),
    ]  # fmt: skip
