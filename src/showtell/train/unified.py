"""Small models that read and write pictures as tokens, for experiments that train several of them in minutes.

Their world has one to three flat things of six shapes and six colours, laid on a grid of patches, so that a codebook of
all its patches (`showtell.nets.patch_vq`) loses nothing.

    world = World(4)
    scenes = world.scenes(4000, 0)
    model = miniature(world, seed=0)
    rows = world.shown(scenes, [scene.caption() for scene in scenes])         # a prompt, then the picture's tokens
    fit(model, token_loss, world.pool(scenes, rows, 64), steps=400)
    bridge = bridge_of(model, world.tokenizer)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.data.signal import to_signal
from showtell.errors import ShowtellError
from showtell.nets.image_text_lm import ImageTextLM, ImageTextLMConfig
from showtell.nets.patch_vq import PatchVQ, patch_vq, patches_of
from showtell.nets.segments import for_attention, omni_mask
from showtell.nets.semantic_vq import SemanticVQ
from showtell.train.bases.codes import distinct, flat, k_means, nearest
from showtell.train.bases.pool import PLAIN
from showtell.train.bases.tokens import hidden_tokens
from showtell.train.batches import Batch, Pool
from showtell.train.objectives import contrastive_loss
from showtell.train.policy import word_tokenizer
from showtell.train.trainer import fit
from showtell.world import Scene, SceneObject, draw, sample
from showtell.world.questions import Question, questions

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
FEW: dict[str, Any] = {"shape": SHAPES[:4], "colour": COLOURS[:4]}
"""Keywords of `World.scenes` for some sixteen kinds of things, each of which a short training meets often enough."""
KINDS = ("colour", "shape", "existence", "count", "related")
TAGS = ("<bos>", "<boi>", "<eoi>", "<image>", "<sep>", "<mask>")
SIZE = 64
REACH = 10  # pixels from the middle of a thing to where it ends

Row = tuple[int, list[int], list[int]]
"""(number of the scene, tokens of what is given, tokens of what is wanted)."""
Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class World:
    """side: patches per side of a picture, 4 or 8: a thing covers 2x2 or 3x3 of them.

    fine: things also lie half a patch further, so that there are some six times as many different patches.
    """

    side: int = 4
    fine: bool = False

    def __post_init__(self) -> None:
        if self.side not in (4, 8):
            raise ShowtellError(f"side={self.side}: this world lies on 4x4 or 8x8 patches; use 4 or 8.")

    @property
    def patch(self) -> int:
        return SIZE // self.side

    # --- scenes ------------------------------------------------------------------------------------------------------

    def scenes(
        self, n: int, seed: int, split: str = "train", objects: int | tuple[int, int] = (1, 3), **more: Any
    ) -> list[Scene]:
        """n scenes of a split; more: keywords of `sample`."""
        call = {"shape": SHAPES, "colour": COLOURS, "distinct": ("shape", "colour"), **PLAIN, **more}
        found = sample(n, seed, split, objects, **call)
        return [self.laid(scene, random.Random(f"{seed}/{split}/{i}")) for i, scene in enumerate(found)]

    def laid(self, scene: Scene, rng: random.Random) -> Scene:
        """The scene with its things at random places of the grid, none of which share a patch."""
        spots = self._middles()
        while True:
            places = [(rng.choice(spots), rng.choice(spots)) for _ in scene.objects]
            if all(self._apart(one, two) for i, one in enumerate(places) for two in places[:i]):
                return self._at(scene, places)

    def _middles(self) -> list[int]:
        """Where the middle of a thing may lie, in pixels: an edge of patches, of small ones a patch's middle."""
        first = self.patch if self.side == 4 else 3 * self.patch // 2
        return list(range(first, SIZE - first + 1, self.patch // 2 if self.fine else self.patch))

    def _apart(self, one: tuple[int, int], two: tuple[int, int]) -> bool:
        def patches(middle: int) -> set[int]:
            return set(range((middle - REACH) // self.patch, (middle + REACH - 1) // self.patch + 1))

        return any(not patches(a) & patches(b) for a, b in zip(one, two, strict=True))

    def _at(self, scene: Scene, places: Sequence[tuple[int, int]]) -> Scene:
        things = zip(scene.objects, places, strict=True)
        return replace(scene, objects=tuple(replace(o, x=x / SIZE, y=y / SIZE) for o, (x, y) in things))

    def replaced(self, scene: Scene, other: Scene) -> Scene:
        """The scene with a thing of the other in the place of its last, of a shape and colour that it does not have."""
        first, last = scene.objects[0], scene.objects[-1]
        kinds = [(one.shape, one.colour) for one in other.objects]
        kinds += [(shape, colour) for shape in FEW["shape"] for colour in FEW["colour"]]
        shape, colour = next((s, c) for s, c in kinds if s not in (first.shape, last.shape) and c != first.colour)
        return replace(scene, objects=(*scene.objects[:-1], replace(last, shape=shape, colour=colour)))

    def pixels(self, scenes: Sequence[Scene]) -> Tensor:
        """(n, 3, 64, 64) in [-1, 1]."""
        return to_signal(torch.from_numpy(draw(list(scenes), SIZE)))

    # --- tokens ------------------------------------------------------------------------------------------------------

    @cached_property
    def vq(self) -> PatchVQ:
        """The exact tokenizer: every patch that occurs."""
        kinds = [Scene((SceneObject(shape, colour),)) for shape in SHAPES for colour in COLOURS]
        spots = self._middles()[: 1 + self.fine]
        shown = self.pixels([self._at(scene, [(x, y)]) for scene in kinds for x in spots for y in spots])
        return patch_vq(patches_of(shown, self.patch).unique(dim=0), self.patch, SIZE)

    @cached_property
    def tokenizer(self) -> Any:
        """Whole words; every text begins with <bos>."""
        from tokenizers import processors

        scenes, rng = self.scenes(300, 0), random.Random(0)
        asked = [one for scene in scenes for one in questions(scene, rng, 3, KINDS)]
        texts = [f"{one.question} {one.answer}" for one in asked] + [f"{scene.caption()}." for scene in scenes]
        names = " ".join((*SHAPES, *COLOURS, "and describe reconstruct redraw the image in detail"))
        made = word_tokenizer([names, *texts], TAGS)
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", made.convert_tokens_to_ids("<bos>"))]
        )
        return made

    @torch.no_grad()
    def codes(self, scenes: Sequence[Scene], vq: Any = None) -> Tensor:
        """(n, side * side); vq: another tokenizer than the exact one."""
        latents = flat((vq or self.vq).encode(self.pixels(scenes)).latents)
        return nearest(latents, (vq or self.vq).quantize.embedding.weight).view(len(scenes), -1)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _read(self, text: str) -> list[int]:
        """A picture to be read, then a text."""
        return self._ids(f"<boi>{'<image>' * self.side**2}<eoi>{text}")

    def shown(
        self, scenes: Sequence[Scene], texts: Sequence[str], drop: float = 0.1, seed: int = 0, vq: Any = None
    ) -> list[Row]:
        """A prompt, then the picture's tokens; so many prompts are left empty, for guidance (arXiv 2207.12598)."""
        rng, words = random.Random(seed), len(self.tokenizer)
        codes = (self.codes(scenes, vq) + words).tolist()
        told = ["" if rng.random() < drop else text for text in texts]
        return [(i, self._ids(f"{text}<boi>"), codes[i]) for i, text in enumerate(told)]

    def asked(self, scenes: Sequence[Scene], wanted: Sequence[Question]) -> list[Row]:
        """The picture and a question, then the answer."""
        end = self.tokenizer.eos_token_id
        return [
            (i, self._read(f"{one.question}<sep>"), [*self._ids(one.answer)[1:], end]) for i, one in enumerate(wanted)
        ]

    def redrawn(self, scenes: Sequence[Scene], instruction: str) -> list[Row]:
        """The picture as it is read and an instruction, then the picture's tokens."""
        codes = (self.codes(scenes) + len(self.tokenizer)).tolist()
        return [(i, self._read(f"{instruction}<boi>"), one) for i, one in enumerate(codes)]

    def as_tokens(self, scenes: Sequence[Scene], rows: Sequence[Row]) -> list[Row]:
        """The rows with the tokens of each scene's picture in the places where it is read."""
        codes = (self.codes(scenes) + len(self.tokenizer)).tolist()
        image, made = self.tokenizer.convert_tokens_to_ids("<image>"), list[Row]()
        for i, given, reply in rows:
            own = iter(codes[i])
            made.append((i, [next(own) if token == image else token for token in given], reply))
        return made

    def questions(self, scenes: Sequence[Scene], seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Question]:
        """One question about each scene, of these kinds where it has one."""
        rng = random.Random(seed)
        return [(questions(scene, rng, 1, kinds) or questions(scene, rng, 1, KINDS[:4]))[0] for scene in scenes]

    def mixed(self, scenes: Sequence[Scene], batch_size: int, first: int | None = None, vq: Any = None) -> Pool:
        """The first scenes (half of them) as captions with their pictures, the others as questions about pictures."""
        first = len(scenes) // 2 if first is None else first
        shown = self.shown(scenes, [scene.caption() for scene in scenes], vq=vq)[:first]
        return self.pool(scenes, [*shown, *self.asked(scenes, self.questions(scenes))[first:]], batch_size)

    def answered(self, bridge: Any, scenes: Sequence[Scene], wanted: Sequence[Question]) -> np.ndarray:
        """(n,) 1 where the bridge answers a question about its scene's picture right."""
        said = bridge.answer(list(draw(list(scenes))), [one.question for one in wanted], max_new_tokens=4)
        return np.array([reply == one.answer for reply, one in zip(said, wanted, strict=True)], dtype=float)

    def pool(self, scenes: Sequence[Scene], rows: Sequence[Row], batch_size: int, looked: Any = None) -> Pool:
        """Batches of {ids (n, length), wanted (n, length) bool, valid (n, length) bool, pixels (n, 3, 64, 64)}.

        looked: what is read in the place of each scene's own picture, as scenes.
        """
        longest = max(len(given) + len(reply) for _, given, reply in rows)
        ids = np.full((len(rows), longest), self.tokenizer.pad_token_id, np.int64)
        wanted, valid = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for i, (_, given, reply) in enumerate(rows):
            ids[i, : len(given) + len(reply)] = given + reply
            wanted[i, len(given) : len(given) + len(reply)] = True
            valid[i, : len(given) + len(reply)] = True
        pictures = draw(list(scenes if looked is None else looked), SIZE)

        def with_pixels(batch: Batch, rng: np.random.Generator) -> Batch:
            own = {name: value for name, value in batch.items() if name != "scene"}
            return {**own, "pixels": to_signal(torch.from_numpy(pictures[batch["scene"]]))}

        arrays = {"ids": ids, "wanted": wanted, "valid": valid, "scene": np.array([i for i, *_ in rows])}
        return Pool(arrays, batch_size, with_pixels)


# --- models ----------------------------------------------------------------------------------------------------------


def eye_sizes(world: World, width: int = 128, layers: int = 2) -> dict[str, Any]:
    """Of a CLIP vision tower that sees as many patches."""
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "image_size": SIZE,
            "patch_size": world.patch, "num_attention_heads": max(1, width // 64)}  # fmt: skip


def miniature(
    world: World, seed: int, width: int = 128, layers: int = 3, eye: bool = False, vq: Any = None,
    masked: bool = False,
) -> ImageTextLM:  # fmt: skip
    """An `ImageTextLM` with random weights over the world's words and patches.

    eye: it reads pictures by an encoder of its own, two layers over as many patches, and not as tokens.
    vq: another tokenizer than the world's, with the parts of a VQModel that `ImageTextLM` needs.
    masked: it is to fill in image tokens (`fill_loss`) instead of writing one after the other.
    """
    tokenizer, own, heads = world.tokenizer, world.vq, {"num_attention_heads": max(1, width // 64)}
    codes = len((vq or own).quantize.embedding.weight)
    config = ImageTextLMConfig(
        words=len(tokenizer), vocab_size=len(tokenizer) + codes, side=world.side,
        vq={name: own.config[name] for name in ("patch", "num_vq_embeddings", "sample_size")},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), eye=eye_sizes(world, width) if eye else None,
        mask_token_id=tokenizer.convert_tokens_to_ids("<mask>") if masked else None,
        hidden_size=width, intermediate_size=5 * width // 2, num_hidden_layers=layers, **heads,
        max_position_embeddings=4 * world.side**2 + 64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ImageTextLM(config)
    model.vq.load_state_dict(own.state_dict())
    if vq is not None:
        model.vq = vq
    model.generation_config.do_sample = True
    if not torch.cuda.is_available():  # trains faster on a CPU than the fused kernel
        for part in (model, model.model, *([model.eye] if eye else [])):
            part.config._attn_implementation = "eager"
    return model


def small_clip(world: World, seed: int = 0, width: int = 128) -> Any:
    """A CLIPModel with random weights over the world's words and pictures."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = world.tokenizer
    told = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": max(1, width // 64), "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = CLIPModel(CLIPConfig(text_config=told, vision_config=eye_sizes(world, width), projection_dim=64))
    for part in (made.text_model, made.vision_model) if not torch.cuda.is_available() else ():
        part.config._attn_implementation = "eager"
    return made


def inputs_of(model: ImageTextLM, ids: Tensor, pixels: Tensor) -> Tensor:
    """Embeddings (n, length, d) of ids of which some read the picture of their row."""
    reads = (ids == model.config.image_token_id).any(dim=1)
    return model.embedded(ids, pixels[reads]) if bool(reads.any()) else model.get_input_embeddings()(ids)


def token_loss(model: ImageTextLM, batch: Batch, generator: Any) -> Loss:
    """Cross entropy of the wanted tokens, each from those before it: the mean over image tokens plus that over
    words."""
    ids, wanted = batch["ids"], batch["wanted"][:, 1:]
    hidden = model.model(inputs_embeds=inputs_of(model, ids, batch["pixels"]), use_cache=False).last_hidden_state
    right = ids[:, 1:][wanted]
    each = F.cross_entropy(model.lm_head(hidden[:, :-1][wanted]).float(), right, reduction="none")
    return _both(each, right >= model.config.words)


def fill_loss(model: ImageTextLM, batch: Batch, generator: Any, omni: bool = True, words: float = 1.0) -> Loss:
    """Cross entropy of image tokens, of which a random share is hidden, from the rest, which all see each other, and of
    words from those before them (arXiv 2408.12528, equations 1-3).

    model: with a `mask_token_id`. omni: False, image tokens see those before them only. words: the weight of the words'
    loss.
    """
    ids, wanted = batch["ids"], batch["wanted"]
    image = wanted & (ids >= model.config.words)
    hidden = torch.zeros_like(image)
    if bool(image.any()):
        hidden.masked_scatter_(image, hidden_tokens(ids[image].view(-1, model.config.side**2), generator))
    given = ids.masked_fill(hidden, model.config.mask_token_id)
    # What is read and what is drawn are two images.
    blocks = ((ids == model.config.image_token_id).long() + 2 * image.long()) * omni
    allowed = omni_mask(blocks, batch["valid"])
    states = model.model(
        inputs_embeds=inputs_of(model, given, batch["pixels"]), use_cache=False,
        attention_mask=for_attention(model.model, allowed, model.dtype),
    ).last_hidden_state  # fmt: skip
    text = (wanted & ~image)[:, 1:]
    states = torch.cat([states[hidden], states[:, :-1][text]])
    right = torch.cat([ids[hidden], ids[:, 1:][text]])
    each = F.cross_entropy(model.lm_head(states).float(), right, reduction="none")
    return _both(each, right >= model.config.words, words)


def match_loss(model: Any, batch: Batch, generator: Any) -> Loss:
    """Contrast of ids with the mean of a picture's places, all of which thereby come to mean something (as in SigLIP).

    model: a CLIPModel.
    """
    told = model.get_text_features(batch["ids"], batch["valid"].long(), return_dict=True).pooler_output
    seen = model.visual_projection(model.vision_model(pixel_values=batch["pixels"]).last_hidden_state[:, 1:].mean(1))
    return contrastive_loss(F.normalize(seen, dim=-1), F.normalize(told, dim=-1), model.logit_scale), {}


def fit_clip(world: World, pool: Pool, steps: int) -> Any:
    """A `small_clip` that has learnt to match pictures with ids of captions."""
    clip = small_clip(world)
    fit(clip, match_loss, pool, steps=steps, lr=1e-3, ema=None, precision="no", progress=False)
    return clip


def semantic_vq(encoder: Any, codes: int, seed: int = 0) -> SemanticVQ:
    """A tokenizer of that many codes on the features of an encoder (a CLIP vision tower), with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SemanticVQ(encoder, codes)


def fit_semantic_vq(model: SemanticVQ, images: Tensor, pool: Pool, steps: int) -> SemanticVQ:
    """Its codebook by k-means of images (n, 3, h, w), then its decoder on the pictures of the pool."""
    fit_codes(model, images)
    fit(model, redraw_loss, pool, steps=steps, lr=1e-3, ema=None, precision="no", progress=False)
    return model


@torch.no_grad()
def fit_codes(model: SemanticVQ, images: Tensor, most: int = 20_000) -> None:
    """The codebook: k-means of the features of images (n, 3, h, w), then frozen."""
    features = torch.cat([flat(model.encode(part).latents) for part in images.split(256)])
    book = model.quantize.embedding.weight.requires_grad_(False)
    book.copy_(k_means(distinct(features, most=most), len(book)))


def redraw_loss(model: SemanticVQ, batch: Batch, generator: Any) -> Loss:
    """Squared error of pictures from their tokens."""
    with torch.no_grad():
        codes = nearest(flat(model.encode(batch["pixels"]).latents), model.quantize.embedding.weight)
    return (model.decode(codes.view(len(batch["pixels"]), -1)).sample - batch["pixels"]).square().mean(), {}


def _both(each: Tensor, image: Tensor, words: float = 1.0) -> Loss:
    """The mean over image tokens and that over words; what there is none of counts nothing."""
    shown = each[image].mean() if bool(image.any()) else each.new_zeros(())
    told = each[~image].mean() if bool((~image).any()) else each.new_zeros(())
    return shown + words * told, {"image": shown.detach(), "words": told.detach()}
