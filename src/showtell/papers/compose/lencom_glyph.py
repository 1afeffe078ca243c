"""Refining Text-to-Image Generation: Towards Accurate Training-Free Glyph-Enhanced Image Generation (LenCom-Eval).
Lakhanpal, Chopra, Jain, Chadha, Luo, 2024, arXiv 2403.16422

Pipelines that lay words out in boxes and then paint under a picture of their letters fail where boxes overlap, texts
are long or words are rare. Simulated annealing moves the boxes apart, and what a reader of text misreads is painted
again, box by box, until it is right.

Faithful: both steps, neither of which trains anything; letters drawn from the words that were asked for; painting again
inside the misread boxes alone; rare and random words.
Ours: the energy (overlap relative to the smaller box, what leaves the picture, what a box is smaller than its word, 0.1
times the way from where it was), 1000 moves from temperature 0.1 to 0.001, at most 3 rounds, of each box the version
read best: the paper's were not to be had. A move that changes the reading order is refused.
Scaled down: a UNet that has the glyph picture's latents as further channels, as TextDiffuser has its characters', is
trained here from the base; 64x64 pixels hold five lines of up to six letters. A template matcher reads for the method;
the judge scores, to whom every box is shown where the world writes its words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from showtell.bridges.base import as_list
from showtell.data.lettered import TALL, Boxes, around, corner, lettered, lines, pages, some_words, wide
from showtell.errors import ShowtellError
from showtell.measure import lettering
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.lettering import read_at
from showtell.measure.scores import edit_distance
from showtell.pictures import to_pil
from showtell.steer.blend import BlendLatents
from showtell.steer.selection import best_of
from showtell.train.editors import editor_of, fit_editor

EXAMPLE = """
import numpy as np
import showtell
from showtell.papers.compose.lencom_glyph import write

bridge = showtell.load(controlnet_pipeline)           # Stable Diffusion with a ControlNet for pictures of letters
words, boxes = ["SALE", "QZX"], np.array([[0.1, 0.1, 0.6, 0.25], [0.2, 0.15, 0.7, 0.3]])
[image] = write(bridge, ["a shop window"], [(words, boxes)], seed=0)
"""

Layout = tuple[Sequence[str], Boxes]
Reader = Callable[[Any, Sequence[tuple[int, int]]], list[str]]
"""(images, the corner of a box in each of them) -> the words there."""


def energy(boxes: Boxes, before: Boxes, widths: np.ndarray) -> float:
    """What is wrong with a layout, 0 for nothing. before: as it was planned. widths: that the words need."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared, areas = (high - low).clip(0).prod(axis=-1), sizes.prod(axis=1)
    overlap = np.triu(shared / np.minimum(areas[:, None], areas[None]).clip(1e-9), 1).sum()
    outside = 1 - (boxes.clip(0, 1)[:, 2:] - boxes.clip(0, 1)[:, :2]).prod(axis=1) / areas.clip(1e-9)
    small = (TALL - sizes[:, 1]).clip(0) + (widths - sizes[:, 0]).clip(0)
    return float(overlap + outside.sum() + small.sum() + 0.1 * np.abs(boxes - before).sum())


def in_order(boxes: Boxes) -> bool:
    """Whether no word lies wholly above one that is to be read before it, or wholly to the left in the same line."""
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            level = min(one[3], other[3]) - max(one[1], other[1]) > 0.5 * min(one[3] - one[1], other[3] - other[1])
            if other[3] <= one[1] or (level and other[2] <= one[0]):
                return False
    return True


def repaired(
    words: Sequence[str], boxes: Boxes, moves: int = 1000, hot: float = 0.1, cold: float = 0.001, seed: int = 0
) -> Boxes:
    """The layout with its boxes moved apart by simulated annealing; the best that was met. 0 moves change nothing."""
    rng, widths = np.random.default_rng(seed), np.array([wide(word) for word in words])
    now = best = np.asarray(boxes, dtype=float)
    ordered, here = in_order(now), energy(now, now, widths)
    lowest = here
    for move in range(moves):
        heat = hot * (cold / hot) ** (move / max(1, moves - 1))
        tried, which = now.copy(), rng.integers(len(now))
        if rng.random() < 0.8:
            tried[which] += np.tile(rng.normal(0, 0.02 + 0.5 * heat, 2) * (rng.random(2) < 0.7), 2)
        else:
            tried[which, 2:] += rng.normal(0, 0.02, 2)
        if (tried[which, 2:] <= tried[which, :2]).any() or (ordered and not in_order(tried)):
            continue
        there = energy(tried, np.asarray(boxes), widths)
        if there <= here or rng.random() < np.exp((here - there) / heat):
            now, here = tried, there
            if here < lowest:
                best, lowest = now, here
    return best


def write(
    bridge: Any, prompts: Sequence[str], layouts: Sequence[Layout], reader: Reader = read_at, moves: int = 1000,
    rounds: int = 3, seed: int = 0, **call: Any,
) -> list[Any]:  # fmt: skip
    """Pictures of the prompts with the words of the layouts in them.

    bridge: paints under a picture of letters, as a ControlNet does with `image`, or edits it. moves 0 keeps the boxes
    as they are, rounds 0 paints once. call: keywords of `bridge.generate` (or `edit`).
    """
    if len(prompts) != len(layouts):
        raise ShowtellError(f"{len(layouts)} layouts for {len(prompts)} prompts; give one each.")
    layouts = [(words, repaired(words, boxes, moves, seed=seed)) for words, boxes in layouts]
    height, width = bridge._size(call.get("height"), call.get("width"))
    drawn = to_pil(np.stack([lettered(*one) for one in layouts]))
    letters = [one.resize((width, height), Image.Resampling.NEAREST) for one in drawn]

    def paint(rows: Sequence[int], number: int, *using: Any) -> list[Any]:
        shown, told = [letters[i] for i in rows], [prompts[i] for i in rows]
        more = {**call, "using": using, "seed": [1000 * seed + 100 * number + i for i in rows]}
        if "generate" in bridge.can:
            return as_list(to_pil(bridge.generate(told, image=shown, **more)))
        return as_list(to_pil(bridge.edit(shown, told, **more)))

    def misread(images: Sequence[Any]) -> list[np.ndarray]:
        places = [(i, corner(box)) for i, (_, boxes) in enumerate(layouts) for box in boxes]
        found = iter(reader([images[i] for i, _ in places], [place for _, place in places]))
        return [np.array([edit_distance(next(found), word) for word in words]) for words, _ in layouts]

    images = paint(range(len(prompts)), 0)
    wrong = misread(images)
    for number in range(1, rounds + 1):
        rows = [i for i, one in enumerate(wrong) if one.any()]
        if not rows:
            break
        masks = [torch.from_numpy(around(layouts[i][1][wrong[i] > 0])) for i in rows]
        known = bridge.to_latents([images[i] for i in rows], height, width)
        again = dict(zip(rows, paint(rows, number, BlendLatents(known, list(masks))), strict=True))
        tried = [again.get(i, image) for i, image in enumerate(images)]
        for i, (before, after) in enumerate(zip(wrong, misread(tried), strict=True)):
            better = (after < before) & (before > 0)
            if better.any():
                mask = Image.fromarray((255 * around(layouts[i][1][better])).astype(np.uint8))
                mask = mask.resize(images[i].size, Image.Resampling.NEAREST)
                images[i] = Image.composite(tried[i], images[i], mask)
        wrong = misread(images)
    return images


GROUNDS = {"white": (255, 255, 255), "sky": (196, 226, 246), "sand": (232, 214, 172)}
PICTURES, STEPS, BATCH, RATE, SAMPLING = 600, 250, 16, 5e-4, 10


def prompt_of(ground: str) -> str:
    return f"a {ground} background"


def learn_letters(editor: Any, seed: int = 0) -> Any:
    """Trains it to paint what pictures of letters show on the ground that the prompt names; its denoiser."""
    before, grounds, after = pages(PICTURES, random.Random(f"letters {seed}"), GROUNDS)
    told, (height, width) = [prompt_of(ground) for ground in grounds], editor._size(None, None)
    call: dict[str, Any] = {"share": 0, "seed": seed, "height": height, "width": width}
    return fit_editor(editor, to_pil(before), told, to_pil(after), STEPS, BATCH, RATE, **call)


def experiment(lab: Lab) -> list[Comparison]:
    base, rng = lab.base("unet"), random.Random(f"lencom {lab.split} {lab.seed}")
    asked = [some_words(rng) for _ in range(lab.n)]
    careless = [(words, lines(words, rng, careless=0.6)) for words in asked]
    careful = [(words, lines(words, rng)) for words in asked]
    texts = [prompt_of(rng.choice(list(GROUNDS))) for _ in asked]
    call: dict[str, Any] = {"num_inference_steps": SAMPLING, "guidance_scale": 1.0, "image_guidance_scale": 1.0}

    @cache
    def editor() -> Any:
        made = editor_of(base)
        weights = lab.trained("letters", lambda: learn_letters(editor_of(base)), shared=True, steps=STEPS)
        made.adapter.denoiser.load_state_dict(weights)
        return made

    Painted = tuple[list[Any], Sequence[Layout]]

    def written(layouts: Sequence[Layout], moves: int, rounds: int) -> Callable[[int], Painted]:
        final = [(words, repaired(words, boxes, moves)) for words, boxes in layouts]
        return lambda seed: (write(editor(), texts, final, moves=0, rounds=rounds, seed=seed, **call), final)

    def fewest_errors(images: Sequence[Any]) -> list[float]:
        read = [read_at([one] * len(words), map(corner, boxes)) for one, (words, boxes) in zip(images, careless)]
        return [-sum(map(edit_distance, found, words)) for found, (words, _) in zip(read, careless)]

    def best_of_four(seed: int) -> Painted:
        tries = [write(editor(), texts, careless, moves=0, rounds=0, seed=seed + 10 * k, **call) for k in range(4)]
        return best_of(tries, fewest_errors), careless

    def word_f1(painted: Painted, judge: str = "first") -> np.ndarray:
        return lettering.word_f1(*painted, judge)

    arms = {
        "lencom_glyph": written(careless, 1000, 3),
        "best of 4": best_of_four,
        "layout alone": written(careless, 1000, 0),
        "painting again alone": written(careless, 0, 3),
        "neither": written(careless, 0, 0),
    }
    free = {"layout repaired": written(careful, 1000, 0), "as planned": written(careful, 0, 0)}
    said = [" ".join(words) for words in asked]
    return [
        lab.compare(arms, word_f1, expect="lencom_glyph > best of 4, layout alone > neither", control="neither",
                    texts=said),
        lab.compare(free, word_f1, expect="layout repaired ~ as planned", name="word f1 without overlaps", texts=said),
    ]  # fmt: skip
