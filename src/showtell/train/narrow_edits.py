"""Compound instructions in the narrow world (`train.narrow`), and the training of an editor that reads a picture's
tokens beside its own (`narrow_models.narrow_kontext`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from showtell.pictures import to_pil
from showtell.train.bases.attention import plain_attention
from showtell.train.narrow import SIDE, WORLD, narrow_scenes
from showtell.train.noising import Noising
from showtell.train.samples import paired
from showtell.train.trainer import fit
from showtell.world import Scene, draw
from showtell.world.language.english import indefinite
from showtell.world.scene import COLOURS

FACTS = ("colour", "background", "shape")


@dataclass(frozen=True)
class Compound:
    """before, after: one large thing on a plain ground. parts: the sub-instructions, in order. asked: fact -> value."""

    before: Scene
    after: Scene
    parts: tuple[str, ...]
    asked: dict[str, str]

    @property
    def instruction(self) -> str:
        return ", and ".join(self.parts)


def facts(scene: Scene) -> dict[str, str]:
    """What a scene of the narrow world shows, by the names of `FACTS`."""
    thing = scene.objects[0]
    return {"colour": thing.colour, "background": scene.background, "shape": thing.shape}


def compounds(count: int, seed: int = 0, split: str = "train", sizes: Sequence[int] = (2,)) -> list[Compound]:
    """Instructions of as many sub-instructions as one of `sizes`, each on another fact of the picture."""
    rng = random.Random(f"compounds {seed} {split}")
    return [_compound(before, rng, rng.choice(list(sizes))) for before in narrow_scenes(count, seed, split)]


def _compound(before: Scene, rng: random.Random, size: int) -> Compound:
    known, values = facts(before), {"colour": COLOURS, "background": WORLD["background"], "shape": WORLD["shape"]}
    chosen = rng.sample(FACTS, size)
    asked = {name: rng.choice([v for v in values[name] if v != known[name]]) for name in chosen}
    if asked.get("background", known["background"]) == asked.get("colour", known["colour"]):  # it would not be seen
        return _compound(before, rng, size)
    name, new = known["shape"], asked.get("shape", "")
    said = {
        "colour": f"make the {name} {asked.get('colour')}",
        "background": f"change the background to {asked.get('background')}",
        "shape": f"replace the {name} with {indefinite(new)}",
    }
    thing = replace(before.objects[0], **{key: asked[key] for key in ("colour", "shape") if key in asked})
    after = replace(before, objects=(thing,), background=asked.get("background", before.background))
    return Compound(before, after, tuple(said[key] for key in chosen), asked)


def call_of(editor: Any) -> dict[str, Any]:
    """The keywords with which an editor of the narrow world is called."""
    length = editor.pipeline.tokenizer_2.model_max_length
    return {"max_area": SIDE**2, "_auto_resize": False, "max_sequence_length": length}


def pictures(scenes: Sequence[Scene]) -> list[Any]:
    """32x32 pictures of them."""
    return to_pil(draw(list(scenes), SIDE))


def carry_out(
    editor: Any, asked: Sequence[Compound], using: Sequence[Any] = (), seed: int = 0, steps: int = 20
) -> list[Any]:
    """What the editor makes of the pictures from before when it is given the instructions. using: techniques."""
    shown, told = pictures([one.before for one in asked]), [one.instruction for one in asked]
    return editor.edit(shown, told, using=using, seed=seed, num_inference_steps=steps, **call_of(editor))


def learn_edits(
    editor: Any, found: Sequence[Compound], steps: int, batch_size: int = 64, lr: float = 1e-3, seed: int = 0,
    at_once: int = 500,
) -> Any:  # fmt: skip
    """Trains the editor's denoiser in place to draw what comes after from what was before and the instruction.

    Returns the denoiser, whose weights are averaged ones.
    """
    options = call_of(editor)
    noising = Noising(editor, **options)
    texts, after = [], []
    with torch.no_grad():
        for i in range(0, len(found), at_once):
            some = found[i : i + at_once]
            told = [one.instruction for one in some]
            texts.append(Noising(editor, image=pictures([one.before for one in some]), **options).text(told))
            shown = Noising(editor, image=pictures([one.after for one in some]), **options).text(told)
            after.append(shown.extra["reference"])  # latents as the editor sees pictures
    text = type(texts[0]).cat(texts)

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        with plain_attention():
            error = noising.loss(noising.noised(batch["latents"], generator), text.rows(batch["row"].long()))
        return error, {"mse": error.detach()}

    denoiser = editor.adapter.denoiser.requires_grad_(True)
    data = paired(torch.cat(after).float(), batch_size)
    fit(denoiser, loss, data, steps=steps, lr=lr, ema=0.99, precision="bf16", seed=seed, progress=False)
    return denoiser.eval().requires_grad_(False)
