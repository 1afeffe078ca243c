"""RecA: Reconstruction Alignment Improves Unified Multimodal Models.
Xie, Darrell, Zettlemoyer, Wang, 2025, arXiv 2509.07295

A model that both reads and draws pictures is trained to draw a picture again from what it read of it, which stands in
the place of a caption. What it read says more than any caption, so that a few steps on pictures without captions teach
the drawing side what the reading side knows; prompts are plain text as before.

Faithful: the model's own way of reading, frozen, in the usual prompt with an instruction; the loss that the model
generates with; no text-to-image loss; the reading loss at weight 1 where both sides share weights, else none.
Scaled down: before the reconstruction Muon instead of AdamW; pictures of 4x4 tokens and 15 kinds of things; a reading
encoder of two layers that has been trained on questions, since none is at hand that has seen the world. Drawing has
been trained on few kinds of pairs (each shape mostly in one colour) and captions that name a colour now and then;
prompts name all of three things, mostly pairs that are rare there. The released recipe for Show-o reads tokens of a
smaller picture; here it reads features, as in its other models. Not measured: edits, which these models do not learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.bridges.image_text_lm import bridge_of
from showtell.bridges.omni import omni_bridge
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.scores import complete, score_images
from showtell.train.batches import Batch, Pool
from showtell.train.image_text import reading_loss, writing_loss, written_codes
from showtell.train.noising import Noising
from showtell.train.samples import latents_of
from showtell.train.trainer import QUICK, fit
from showtell.train.unified import FEW, Row, World, fill_loss, miniature, token_loss
from showtell.world import Scene
from showtell.world.language import english
from showtell.world.language.captions import stated

INSTRUCTION = "describe the image in detail"

EXAMPLE = """
import showtell
from showtell.papers.unify.reca import reca

bridge = showtell.load("deepseek-community/Janus-Pro-1B")
images = bridge.generate(["a red ring", "a blue star"], seed=0)         # any pictures, without captions
reca(bridge, images, steps=2, batch_size=2)
[again] = bridge.generate("a red ring left of a blue star", seed=0)
"""


# --- models that write pictures token by token -----------------------------------------------------------------------


def understood(bridge: Any, images: Any, instruction: str = INSTRUCTION) -> tuple[Tensor, Tensor]:
    """(embeddings (n, length, d), mask (n, length)) of a prompt to draw, with what the bridge reads of each picture in
    the place of the caption; without gradients to the encoder.

    Raises ShowtellError for models that read pictures as the very tokens that they write.
    """
    model: Any = getattr(getattr(bridge, "decoder", None), "model", None)
    inner: Any = getattr(model, "model", None)
    own = getattr(model, "eye", None) is not None
    if not (own or hasattr(inner, "generation_head")):
        raise ShowtellError(f"{bridge.name} does not read pictures by an encoder of its own; take Janus.")
    inputs = bridge.teller.inputs(images, [instruction] * len(images))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    opened = torch.full_like(ids[:, :1], bridge.decoder.opening(bridge.decoder.grid(None, None)))
    ids, mask = torch.cat([ids, opened], dim=1), F.pad(mask, (0, 1), value=1)
    with torch.no_grad():
        pixels = inputs["pixel_values"]
        seen = model.read(pixels) if own else inner.get_image_features(pixels, return_dict=True).pooler_output
    told = model.get_input_embeddings()(ids)
    return told.masked_scatter((ids == model.config.image_token_id)[..., None], seen.to(told.dtype)), mask


def reca_loss(bridge: Any, images: Any, instruction: str = INSTRUCTION) -> Tensor:
    """Cross entropy of each picture's tokens from what the bridge itself reads of the picture (equation 1).

    bridge: Janus, or an image-text model with an `eye`, which write token by token.
    """
    told, mask = understood(bridge, images, instruction)
    return writing_loss(bridge, told, mask, written_codes(bridge, images))


def reca(
    bridge: Any, images: Sequence[Any], steps: int, batch_size: int = 32, lr: float = 1e-5, seed: int = 0,
    instruction: str = INSTRUCTION, asked: Sequence[tuple[Any, str, str]] = (), **more: Any,
) -> None:  # fmt: skip
    """Trains the bridge's language model in place to redraw pictures that have no captions. more: as for `fit`.

    asked: pictures with a question and its answer, whose reading loss is added at weight 1, so that a model that reads
    and writes with the same weights still reads; without any it is left out.
    """
    model = bridge.decoder.model
    trained = [bridge.decoder.language_model]
    trained += [model.lm_head] if not hasattr(model.model, "generation_head") else [model.model.generation_head]
    if asked:
        trained.append(model.lm_head)
    before = {name: one.requires_grad for name, one in model.named_parameters()}
    model.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)

    def loss(net: nn.Module, batch: Batch, generator: Any) -> tuple[Tensor, dict[str, Tensor]]:
        rows = batch["row"].tolist()
        found = reca_loss(bridge, [images[i] for i in rows], instruction)
        if asked:
            found = found + reading_loss(bridge, *zip(*(asked[i % len(asked)] for i in rows), strict=True))
        return found, {}

    call = {"ema": None, "precision": "no", "progress": False, **more}
    fit(model, loss, Pool({"row": np.arange(len(images))}, batch_size), steps=steps, lr=lr, seed=seed, **call)
    for name, one in model.named_parameters():
        one.requires_grad_(before[name])


# --- diffusion models that a vision-language model tells what to draw ------------------------------------------------


def diffusion_loss(
    noising: Noising, told: Tensor, images: Any, generator: torch.Generator | None = None
) -> Tensor:  # fmt: skip
    """The denoiser's own loss on the pictures, told (n, count, channels) by `train.queries.Queries`, as in OpenUni, the
    paper's diffusion model, instead of by captions.

    A prompt's other parts (a pooled embedding) are those of the empty prompt.
    """
    text = noising.text([""] * len(told))
    ones = None if text.mask is None else text.mask.new_ones(told.shape[:2])
    given = replace(text, tokens=told.to(text.tokens.dtype), mask=ones)
    return noising.loss(noising.noised(latents_of(noising.bridge, list(images)), generator), given)


# --- the experiment --------------------------------------------------------------------------------------------------

SCENES, STEPS, AFTER, UNLABELLED, BATCH = 6000, 420, 120, 2000, 64
COMMON, NAMED = 0.85, 0.3  # share of things in their shape's usual colour; of colours that a caption names
WORLD = World(4)


def short(scene: Scene, rng: random.Random, named: float = NAMED) -> str:
    """The things' shapes, now and then with the colour: "a ring and a blue star"."""
    things = [stated(thing) for thing in scene.objects]
    return " and ".join(english.a(one if rng.random() < named else {"shape": one["shape"]}) for one in things)


def experiment(lab: Lab) -> list[Comparison]:
    losses: dict[str, Any] = {"tokens": token_loss, "masked": fill_loss}
    bridges: dict[str, Any] = {"tokens": bridge_of, "masked": omni_bridge}

    @cache
    def unlabelled() -> list[Scene]:
        return WORLD.scenes(UNLABELLED, 1, **FEW)

    @cache
    def reading() -> tuple[list[Scene], list[Row]]:
        """Questions about pictures with all kinds of pairs."""
        scenes = WORLD.scenes(SCENES // 2, 2, **FEW)
        return scenes, WORLD.asked(scenes, WORLD.questions(scenes))

    def with_reading(scenes: Sequence[Scene], rows: Sequence[Row], looked: Sequence[Scene] | None = None) -> Pool:
        more, asked = reading()
        moved = [(i + len(scenes), given, reply) for i, given, reply in asked]
        return WORLD.pool([*scenes, *more], [*rows, *moved], BATCH, [*(looked or scenes), *more])

    @cache
    def pairs() -> Pool:
        drawn = WORLD.scenes(SCENES // 2, 0, skew={"colour": ("shape", COMMON)}, **FEW)
        rng = random.Random(0)
        return with_reading(drawn, WORLD.shown(drawn, [short(scene, rng) for scene in drawn]))

    @cache
    def posts(name: str) -> Pool:
        scenes, rng = unlabelled(), random.Random(1)
        if name == "continued":
            return with_reading(scenes, WORLD.shown(scenes, [short(scene, rng) for scene in scenes]))
        rows = WORLD.redrawn(scenes, INSTRUCTION)
        if name == "own tokens":  # what is read is what is to be written
            rows = WORLD.as_tokens(scenes, rows)
        return with_reading(scenes, rows, [*scenes[1:], scenes[0]] if name == "another image" else None)

    def start(host: str, seed: int) -> Any:
        def make(seed: int) -> Any:
            model = miniature(WORLD, seed, eye=True, masked=host == "masked")
            fit(model, losses[host], pairs(), steps=STEPS, seed=seed, **QUICK)
            return model

        model = miniature(WORLD, seed, eye=True, masked=host == "masked")
        model.load_state_dict(lab.trained(f"{host}, start", make, seed, shared=True))
        return model

    @cache
    def trained(host: str, name: str, seed: int) -> Any:
        model = start(host, seed)

        def make(seed: int) -> Any:
            for part in (model.eye, model.adaptor):
                part.requires_grad_(False)
            fit(model, losses[host], posts(name), steps=AFTER, lr=1e-3, ema=None, seed=seed, progress=False)
            return model

        if name != "start":
            model.load_state_dict(lab.trained(f"{host}, {name}", make, seed, shared=True))
        return bridges[host](model, WORLD.tokenizer)

    scenes = WORLD.scenes(lab.n, lab.seed, lab.split, objects=3, **FEW)
    prompts = [short(scene, random.Random(0), 1.0) for scene in scenes]
    questions = WORLD.questions(scenes, lab.seed)

    def drawn(host: str, name: str, seed: int) -> list[Any]:
        return trained(host, name, seed).generate(prompts, seed=seed)

    def answered(host: str, name: str, seed: int) -> np.ndarray:
        return WORLD.answered(trained(host, name, seed), scenes, questions)

    def arms(call: Callable[..., Any], host: str, *names: str) -> dict[str, Any]:
        return {name: partial(call, host, name) for name in names}

    named = ("reca", "continued", "start", "another image")
    hosts = {"tokens": (*named, "own tokens"), "masked": named}
    made = [
        lab.compare(
            arms(drawn, host, *names), partial(score_images, complete, scenes=scenes), texts=prompts,
            expect="reca > continued, continued > start" + (", reca > own tokens" if "own tokens" in names else ""),
            control="another image", name=f"things right, {host}", trained=True,
        )
        for host, names in hosts.items()
    ]  # fmt: skip
    kept = lab.compare(
        arms(answered, "tokens", "reca", "start"), expect="reca > start - 0.05", name="answers right", trained=True,
        texts=[question.question for question in questions],
    )  # fmt: skip
    return [*made, kept]
