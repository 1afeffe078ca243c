"""The bases that read images: a contrastive encoder and a vision-language model, on pictures drawn as wanted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.data.degrade import degrade
from showtell.data.signal import to_signal
from showtell.train.bases import text
from showtell.train.bases.attention import plain_attention
from showtell.train.bases.cells import CELL_WEIGHT, CellReader, cell_loss
from showtell.train.bases.pool import WORDING_SHARES, cells, pool_scenes, wordings
from showtell.train.bases.saving import save_model
from showtell.train.objectives import contrastive_loss
from showtell.train.recipe import MUON, Recipe
from showtell.world import Scene, draw
from showtell.world.edits import edits
from showtell.world.questions import questions

Loss = tuple[Tensor, dict[str, Tensor]]
Turn = tuple[list[int], list[int]]  # tokens of a prompt, and of its reply
CAPTION = "Describe this image in one sentence."  # what a bridge asks for
WHOLE = 'Does this figure show "{}"? Please answer yes or no.'  # VQAScore, arXiv 2404.01291
TURN, NEXT = "USER: <image>\n{} ASSISTANT:", "USER: {} ASSISTANT:"  # LLaVA's
TURNS = 4  # requests about a picture, one after the other: looking costs more than replying


class Reading(nn.Module):
    """A transformers model that reads images, with its processor, as one module that saves both.

    watched: of its modules the vision tower off which a `CellReader` reads, `width` channels wide, or None.
    """

    def __init__(self, model: Any, processor: Any, watched: Any = None, width: int = 0) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.reader = None if watched is None else CellReader(width)
        self.seen: Tensor | None = None
        if watched is not None:
            watched.register_forward_hook(self._see)

    def _see(self, module: Any, inputs: Any, output: Any) -> None:
        self.seen = output.last_hidden_state[:, 1:]  # without the class token

    def cells(self) -> list[Tensor]:
        """What the last images' patches show, see `CellReader`."""
        assert self.reader is not None and self.seen is not None
        shown, self.seen = self.reader(self.seen), None
        return shown

    def forward(self, **inputs: Any) -> Any:
        with plain_attention():
            return self.model(**inputs)

    def save_pretrained(self, target: str | Path) -> None:
        save_model(self.model, self.processor, target)


def image_processor() -> Any:
    """64x64 pixels in [-1, 1]."""
    from transformers import CLIPImageProcessor

    half = [0.5, 0.5, 0.5]
    size = {"height": 64, "width": 64}
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=size, image_mean=half, image_std=half)


def vision_sizes(width: int, layers: int) -> dict[str, Any]:
    """Of a CLIP vision tower with 64 patches."""
    return {
        "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "image_size": 64,
        "num_attention_heads": max(1, width // 64), "patch_size": 8,
    }  # fmt: skip


# --- clip ------------------------------------------------------------------------------------------------------------


def clip(width: int = 128, layers: int = 4, text_width: int = 128, text_layers: int = 3, size: int = 64) -> Reading:
    """A CLIPModel over 64x64 images and prompts of up to 32 tokens."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    tokenizer = text.clip_tokenizer()
    told = text.clip_text(tokenizer, text_width, text_layers).config.to_dict()
    seen = vision_sizes(width, layers)
    model = CLIPModel(CLIPConfig(text_config=told, vision_config=seen, projection_dim=size))
    return Reading(model, CLIPProcessor(image_processor(), tokenizer))


def contrasted(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Batches of {image, ids, real}; half of the rows are the other half after an edit, which differ in little."""
    tokenizer = text.clip_tokenizer()

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        pick = random.Random(int(rng.integers(2**62)))
        scenes: list[Scene] = []
        for scene in pool_scenes(rng, size):
            if len(scenes) < size:
                edited = [edit.after for edit in edits(scene, pick, n=1)]
                scenes += [scene, *edited][: size - len(scenes)]
        texts = [pick.choices(wordings(scene, pick), WORDING_SHARES)[0] for scene in scenes]
        ids, real = text.ids_of(tokenizer, texts)
        return {"image": degrade(draw(scenes), rng, share=0.3), "ids": ids.astype(np.int64), "real": real}

    return make


def clip_loss(model: Reading, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Symmetric InfoNCE (arXiv 2103.00020)."""
    pixels = to_signal(batch["image"])
    seen = model(input_ids=batch["ids"], attention_mask=batch["real"].long(), pixel_values=pixels)
    loss = contrastive_loss(seen.image_embeds.float(), seen.text_embeds.float(), model.model.logit_scale)
    right = (seen.logits_per_image.argmax(dim=1) == torch.arange(len(pixels), device=pixels.device)).float().mean()
    return loss, {"top 1": right.detach()}


# --- vlm -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def byte_tokenizer() -> Any:
    """A GPT2Tokenizer (byte-level BPE) in which every word of the world is one token."""
    from tokenizers import pre_tokenizers
    from transformers import GPT2Tokenizer

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    blank = GPT2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    requests = [TURN.format(CAPTION), TURN.format(WHOLE), " Yes", " No"]
    texts = [*text.sentences(), *([" " + " ".join(text.vocabulary()), *requests] * 20)]
    tokenizer = blank.train_new_from_iterator(texts, vocab_size=4096, show_progress=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<|endoftext|>"})
    return tokenizer


def vlm(width: int = 128, seen_layers: int = 5, layers: int = 4) -> Reading:
    """A LlavaForConditionalGeneration: CLIP vision tower, 64 image tokens, Llama."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    config = LlavaConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": layers, "num_attention_heads": max(1, width // 64), "max_position_embeddings": 256,
            "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "tie_word_embeddings": True,
        },
        vision_config={"model_type": "clip_vision_model", **vision_sizes(width, seen_layers)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor(), tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    return Reading(model, processor, model.model.vision_tower, width)


def asked(scene: Scene, other: Scene, pick: random.Random) -> tuple[str, str]:
    """A request about the scene's picture and what to reply: its caption, an answer, whether it shows a whole text."""
    chance = pick.random()
    found = questions(scene, pick, n=1) if 0.5 < chance < 0.8 else []
    if found:
        return found[0].question, found[0].answer
    if chance < 0.8:
        return CAPTION, scene.canonical().caption("en")
    if chance < 0.9:
        return WHOLE.format(scene.caption("en")), "Yes"
    changed = [edit.after for edit in edits(scene, pick, n=1)] if chance < 0.97 else []
    return WHOLE.format((changed or [other])[0].caption("en")), "No"


def told(source: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Batches of {image, cells, ids (n, length), wanted (n, length) bool: the tokens of the replies}."""
    processor = vlm(64, 1, 1).processor
    tokenizer = processor.tokenizer
    image, end = tokenizer.convert_tokens_to_ids("<image>"), tokenizer.eos_token_id

    def row(talk: Sequence[tuple[str, str]]) -> list[Turn]:
        turns: list[Turn] = []
        for request, reply in talk:
            ids = tokenizer((NEXT if turns else TURN).format(request))["input_ids"]
            given = [token for one in ids for token in ([image] * 64 if one == image else [one])]
            turns.append((given, [*tokenizer(f" {reply}")["input_ids"], end]))
        return turns

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        pick = random.Random(int(rng.integers(2**62)))
        scenes = pool_scenes(rng, size)
        rows = [row([asked(scene, pick.choice(scenes), pick) for _ in range(TURNS)]) for scene in scenes]
        shown = {"image": degrade(draw(scenes), rng, share=0.3), "cells": cells(scenes).astype(np.int64)}
        return {**shown, **padded(rows, end)}

    return make


def padded(rows: Sequence[Sequence[Turn]], filler: int) -> dict[str, np.ndarray]:
    """ids (n, length) and wanted (n, length) of conversations: the tokens of the replies."""
    longest = max(sum(len(given) + len(reply) for given, reply in turns) for turns in rows)
    ids = np.full((len(rows), longest), filler, np.int64)
    wanted = np.zeros(ids.shape, bool)
    for i, turns in enumerate(rows):
        at = 0
        for given, reply in turns:
            begin, end = at + len(given), at + len(given) + len(reply)
            ids[i, at:end], wanted[i, begin:end] = given + reply, True
            at = end
    return {"ids": ids, "wanted": wanted}


def reply_loss(model: Reading, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Cross entropy of the replies' tokens; and of what the patches show."""
    logits = model(input_ids=batch["ids"], pixel_values=to_signal(batch["image"])).logits[:, :-1]
    wanted, ids = batch["wanted"][:, 1:], batch["ids"][:, 1:]
    loss, seen = F.cross_entropy(logits[wanted].float(), ids[wanted]), cell_loss(model.cells(), batch["cells"])
    right = (logits[wanted].argmax(dim=-1) == ids[wanted]).float().mean()
    return loss + CELL_WEIGHT * seen, {"tokens right": right.detach(), "cells": seen.detach()}


RECIPES: dict[str, Recipe] = {
    "clip": Recipe(
        "CLIP: contrastive encoder of images and texts",
        clip, contrasted, clip_loss, 3000, 128, 1e-3,
    ),
    "vlm": Recipe(
        "LLaVA: captions and answers",
        vlm, told, reply_loss, 6000, 32, 1e-3, options=MUON,
    ),
}  # fmt: skip
