"""RecA: Reconstruction Alignment Improves Unified Multimodal Models.
Xie, Darrell, Zettlemoyer, Wang, 2025, arXiv 2509.07295

A model that both reads and draws pictures is trained to draw a picture again from what it read of it, which stands in
the place of a caption. What it read says more than any caption, so that a few steps on pictures without captions teach
the drawing side what the reading side knows; prompts are plain text as before.

Faithful: the model's own way of reading, frozen, in the usual prompt with an instruction; the loss that the model
generates with (a diffusion model that a reader tells what to draw: `train.queries.told_loss`); no text-to-image loss;
the reading loss at weight 1 where both sides share weights, else none.
Scaled down: before the reconstruction Muon instead of AdamW; pictures of 4x4 tokens and 15 kinds of things; a reading
encoder of two layers that has been trained on questions, since none is at hand that has seen the world. Drawing has
been trained on few kinds of pairs (each shape mostly in one colour) and captions that name a colour now and then;
prompts name all of three things, mostly pairs that are rare there. The released recipe for Show-o reads tokens of a
smaller picture; here it reads features, as in its other models. Answers may lose 5 points instead of the paper's 1,
which so few questions could not tell. Not measured: edits, which these models do not learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.bridges.image_text_lm import bridge_of
from showtell.bridges.omni import omni_bridge
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.scores import complete, score_images
from showtell.train.batches import Batch, Pool
from showtell.train.image_text import read_features, reading_loss, with_two_encoders, writing_loss, written_codes
from showtell.train.networks import frozen
from showtell.train.trainer import QUICK, fit
from showtell.train.unified import FEW, World, fill_loss, miniature, token_loss
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


def understood(bridge: Any, images: Any, instruction: str = INSTRUCTION) -> tuple[Tensor, Tensor]:
    """(embeddings (n, length, d), mask (n, length)) of a prompt to draw, with what the bridge reads of each picture in
    the place of the caption; without gradients to the encoder.

    Raises ShowtellError for models that read pictures as the very tokens that they write.
    """
    model, inputs = with_two_encoders(bridge), bridge.teller.inputs(images, [instruction] * len(images))
    ids = F.pad(inputs["input_ids"], (0, 1), value=bridge.decoder.opening(bridge.decoder.grid(None, None)))
    mask = F.pad(inputs["attention_mask"], (0, 1), value=1)
    told, places = model.get_input_embeddings()(ids), (ids == model.config.image_token_id)[..., None]
    return told.masked_scatter(places, read_features(model, inputs["pixel_values"]).to(told.dtype)), mask


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
    model = with_two_encoders(bridge)
    trained = [bridge.decoder.language_model, getattr(model.model, "generation_head", model.lm_head)]
    if asked:
        trained.append(model.lm_head)

    def loss(net: nn.Module, batch: Batch, generator: Any) -> tuple[Tensor, dict[str, Tensor]]:
        rows = batch["row"].tolist()
        found = reca_loss(bridge, [images[i] for i in rows], instruction)
        if asked:
            found = found + reading_loss(bridge, *zip(*(asked[i % len(asked)] for i in rows), strict=True))
        return found, {}

    call = {"ema": None, "precision": "no", "progress": False, **more}
    with frozen(model):
        for part in trained:
            part.requires_grad_(True)
        fit(model, loss, Pool({"row": np.arange(len(images))}, batch_size), steps=steps, lr=lr, seed=seed, **call)
        model.requires_grad_(False)


SCENES, STEPS, AFTER, UNLABELLED, BATCH = 6000, 420, 120, 2000, 64
COMMON, NAMED = 0.85, 0.3  # share of things in their shape's usual colour; of colours that a caption names
WORLD = World(4)
HOSTS: dict[str, tuple[Any, Any]] = {"tokens": (token_loss, bridge_of), "masked": (fill_loss, omni_bridge)}


def short(scene: Scene, rng: random.Random, named: float = NAMED) -> str:
    """The things' shapes, now and then with the colour: "a ring and a blue star"."""
    things = [stated(thing) for thing in scene.objects]
    return " and ".join(english.a(one if rng.random() < named else {"shape": one["shape"]}) for one in things)


def lessons(name: str) -> Pool:
    """What an arm draws and is told, and questions about pictures with all kinds of pairs, the same for every arm."""
    if name == "start":
        scenes = WORLD.scenes(SCENES // 2, 0, skew={"colour": ("shape", COMMON)}, **FEW)
    else:
        scenes = WORLD.scenes(UNLABELLED, 1, **FEW)
    if name in ("start", "continued"):
        rng = random.Random(int(name == "continued"))
        rows = WORLD.shown(scenes, [short(scene, rng) for scene in scenes])
    else:
        rows = WORLD.redrawn(scenes, INSTRUCTION)
    if name == "own tokens":  # what is read is what is to be written
        rows = WORLD.as_tokens(scenes, rows)
    looked = [*scenes[1:], scenes[0]] if name == "another image" else scenes
    more = WORLD.scenes(SCENES // 2, 2, **FEW)
    asked = [(i + len(scenes), given, reply) for i, given, reply in WORLD.asked(more, WORLD.questions(more))]
    return WORLD.pool([*scenes, *more], [*rows, *asked], BATCH, [*looked, *more])


def experiment(lab: Lab) -> list[Comparison]:
    pool = cache(lessons)

    @cache
    def trained(host: str, name: str, seed: int) -> Any:
        loss, bridge = HOSTS[host]

        def blank(seed: int) -> Any:
            model = miniature(WORLD, seed, eye=True, masked=host == "masked")
            if name != "start":
                model.load_state_dict(trained(host, "start", seed).decoder.model.state_dict())
            return model

        def learn(model: Any, seed: int) -> None:
            if name == "start":
                fit(model, loss, pool(name), steps=STEPS, seed=seed, **QUICK)
                return
            for part in (model.eye, model.adaptor):
                part.requires_grad_(False)
            fit(model, loss, pool(name), steps=AFTER, lr=1e-3, ema=None, seed=seed, progress=False)

        return bridge(lab.network(f"{host}, {name}", blank, learn, seed, shared=True), WORLD.tokenizer)

    scenes = WORLD.scenes(lab.n, lab.seed, lab.split, objects=3, **FEW)
    prompts = [short(scene, random.Random(0), 1.0) for scene in scenes]
    questions = WORLD.questions(scenes, lab.seed)

    def drawn(host: str, name: str, seed: int) -> list[Any]:
        return trained(host, name, seed).generate(prompts, seed=seed)

    def answered(host: str, name: str, seed: int) -> np.ndarray:
        return WORLD.answered(trained(host, name, seed), scenes, questions)

    def arms(call: Callable[..., Any], host: str, *names: str) -> dict[str, Any]:
        return {name: partial(call, host, name) for name in names}

    named, expect = ("reca", "continued", "start", "another image"), "reca > continued, continued > start"
    shared: dict[str, Any] = {"metric": partial(score_images, complete, scenes=scenes), "control": "another image",
                              "texts": prompts, "trained": True}  # fmt: skip
    return [
        lab.compare(arms(drawn, "tokens", *named, "own tokens"), expect=f"{expect}, reca > own tokens",
                    name="things right, tokens", **shared),
        lab.compare(arms(drawn, "masked", *named), expect=expect, name="things right, masked", **shared),
        lab.compare(arms(answered, "tokens", "reca", "start"), expect="reca > start - 0.05", name="answers right",
                    trained=True, texts=[question.question for question in questions]),
    ]  # fmt: skip
