"""Janus: Decoupling Visual Encoding for Unified Multimodal Understanding and Generation.
Wu, Chen, Wu, Ma, Liu, Pan, Liu, Xie, Yu, Ruan, Luo, 2024, arXiv 2410.13848

Reading a picture needs its meaning, writing one needs its details, so that no one encoder serves both. Janus gives one
language model two: a semantic encoder for pictures that it reads, a tokenizer for those that it writes; and each may be
exchanged without the other.

Faithful: features of a contrastively trained encoder, brought to the language model by two layers; a head of their own
for image tokens; plain causal attention, next-token losses of equal weight, a tenth of the prompts left empty, guidance
of 5.
Scaled down: nothing is begun from a trained language model, so there are no stages; the encoder is a small CLIP of the
world, trained once for all seeds and then frozen; 4x4 tokens of an exact codebook, which enter by a table instead of
two layers over their vectors. The shared semantic tokenizer is a codebook of that encoder's features with a decoder of
its own; Muon, which learns from fewer pictures than AdamW. In drawing 5 points may be lost, where the row says 2, as so
few pictures tell no less. Left out for their time: models that only read or only write, as upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.bridges.image_text_lm import bridge_of
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.scores import complete, score_images
from showtell.train.batches import Pool
from showtell.train.image_text import drawing_loss, reading_loss, with_two_encoders
from showtell.train.trainer import QUICK, fit
from showtell.train.unified import FEW, World, fit_clip, fit_semantic_vq, miniature, semantic_vq, small_clip, token_loss

EXAMPLE = """
import showtell
from showtell.papers.unify.janus import janus_loss, swap_encoder

bridge = showtell.load("deepseek-community/Janus-Pro-1B")
images = bridge.generate(["a red ring", "a blue star"], guidance_scale=5, seed=0)
loss = janus_loss(bridge, images, ["what is it?"] * 2, ["a ring", "a star"], ["a red ring", "a blue star"])
before = swap_encoder(bridge, showtell.load("openai/clip-vit-large-patch14-336").model.vision_model)
"""


def janus_loss(
    bridge: Any, images: Any, questions: Sequence[str], answers: Sequence[str], prompts: Sequence[str],
    drop: float = 0.1, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Next-token cross entropy per token of answers about pictures plus that of the pictures' tokens after prompts.

    drop: share of prompts in whose place there is padding, for guidance.
    """
    return reading_loss(bridge, images, questions, answers) + drawing_loss(bridge, images, prompts, drop, generator)


class Places(nn.Module):
    """An encoder that is given pictures at its own size and gives the features of its last `count` places alone."""

    def __init__(self, encoder: Any, count: int) -> None:
        super().__init__()
        self.encoder, self.count, self.side = encoder, count, encoder.config.image_size

    def forward(self, pixel_values: Tensor, **more: Any) -> Any:
        own = F.interpolate(pixel_values.float(), size=(self.side,) * 2, mode="bilinear", antialias=True)
        seen = self.encoder(pixel_values=own.to(pixel_values.dtype)).last_hidden_state
        return SimpleNamespace(last_hidden_state=seen[:, -self.count :])


def swap_encoder(bridge: Any, encoder: Any) -> nn.Module:
    """Puts another encoder, a vision tower of transformers, in the place of the one that reads, with a new adaptor that
    has yet to be trained; gives the one that was there. What the model writes is untouched.

    Raises ShowtellError for bridges other than Janus and image-text models with an `eye`, and where the number of
    features is not the number of places in a prompt.
    """
    model = with_two_encoders(bridge)
    own, inner, config = getattr(model, "eye", None), model.model, encoder.config
    places = bridge.teller.processor.num_image_tokens if own is None else model.config.side**2
    count = (config.image_size // config.patch_size) ** 2
    if count != places:
        raise ShowtellError(f"the encoder gives {count} features, the model reads {places}; use other patches.")
    width, like = model.get_input_embeddings().embedding_dim, model.get_input_embeddings().weight
    adaptor = nn.Sequential(nn.Linear(config.hidden_size, width), nn.GELU(), nn.Linear(width, width)).to(like)
    if own is None:
        own, inner.vision_model, inner.aligner = inner.vision_model, Places(encoder, places).to(like), adaptor
    else:
        model.eye, model.adaptor = Places(encoder, places).to(like), adaptor
    return own


SCENES, STEPS, BATCH = 8000, 400, 64
CLIP_STEPS, DECODER_STEPS, CODES, GUIDANCE = 400, 300, 1024, 5.0
WORLD = World(4, fine=True)
ARMS = ("decoupled", "shared tokens", "shared semantic tokens", "random encoder")


def experiment(lab: Lab) -> list[Comparison]:
    pictures = cache(lambda: WORLD.scenes(SCENES, 0, objects=(1, 2), **FEW))
    pool = cache(lambda vq: WORLD.mixed(pictures(), BATCH, vq=vq))

    @cache
    def captions() -> Pool:
        end = WORLD.tokenizer.eos_token_id
        texts = [WORLD.tokenizer(scene.caption())["input_ids"] for scene in pictures()]
        return WORLD.pool(pictures(), [(i, ids, [end]) for i, ids in enumerate(texts)], 128)

    @cache
    def eye() -> Any:
        clip = small_clip(WORLD)
        clip.load_state_dict(lab.trained("clip", lambda: fit_clip(WORLD, captions(), CLIP_STEPS), shared=True))
        return clip.vision_model.eval().requires_grad_(False)

    @cache
    def semantic() -> Any:
        def learn(model: Any, seed: int) -> None:
            fit_semantic_vq(model, WORLD.pixels(pictures()[: SCENES // 4]), captions(), DECODER_STEPS)

        blank: Any = partial(semantic_vq, eye(), CODES)
        return lab.network("semantic tokenizer", blank, learn, shared=True).requires_grad_(False)

    @cache
    def bridge(name: str, seed: int) -> Any:
        vq = semantic() if name == "shared semantic tokens" else None

        def blank(seed: int) -> Any:
            model: Any = miniature(WORLD, seed, eye=name in ("decoupled", "random encoder"), vq=vq)
            if model.eye is not None:
                model.eye.requires_grad_(False)
            if name == "decoupled":
                model.eye.load_state_dict(eye().state_dict())
            return model

        def learn(model: Any, seed: int) -> None:
            fit(model, token_loss, pool(vq), steps=STEPS, seed=seed, **QUICK)

        return bridge_of(lab.network(name, blank, learn, seed, shared=True), WORLD.tokenizer)

    scenes = WORLD.scenes(lab.n, lab.seed, lab.split, objects=2, **FEW)
    prompts, questions = [scene.caption() for scene in scenes], WORLD.questions(scenes, lab.seed)

    def drawn(name: str, seed: int) -> list[Any]:
        return bridge(name, seed).generate(prompts, seed=seed, guidance_scale=GUIDANCE)

    def answered(name: str, seed: int) -> np.ndarray:
        return WORLD.answered(bridge(name, seed), scenes, questions)

    def arms(call: Callable[..., Any], *names: str) -> dict[str, Any]:
        return {name: partial(call, name) for name in names}

    return [
        lab.compare(
            arms(answered, *ARMS), expect="decoupled > shared tokens", control="random encoder", trained=True,
            name="answers right", texts=[question.question for question in questions],
        ),
        lab.compare(
            arms(drawn, *ARMS[:3]), partial(score_images, complete, scenes=scenes), name="things right", texts=prompts,
            expect="decoupled > shared tokens - 0.05, decoupled > shared semantic tokens", trained=True,
        ),
    ]  # fmt: skip
