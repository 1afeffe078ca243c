"""Ctrl-X: Controlling Structure and Appearance for Text-To-Image Generation Without Guidance.
Lin, Mo, Klingher, Mu, Zhou, 2024, arXiv 2406.07540

A structure picture and an appearance picture are noised to the current level and pass through the same network as the
output. Early decoder features, queries and keys of the structure replace the output's; in chosen self-attentions every
place of the output takes mean and deviation from the places of the appearance that correspond to it.

Faithful: forward noising without inversion or gradients; the output of the first ResNet and the queries and keys of the
lowest decoder block with attention; attention-weighted AdaIN of the layers' inputs before attention, correspondence
from normalised features (structure injected into its queries where both happen); SDXL's layers (encoder levels 1, 2,
decoder block 0 from its second attention on, the first two of block 1); schedules of 0.6; two rounds of uncontrolled
self-recurrence between 10 and 50 % of the steps; only the conditional branch is controlled; prompts as in the authors'
evaluation data: the output and the appearance are told what things there are, the structure its own caption.
Ours: the three branches run one after the other, which changes no number. Transformers have no levels: structure is
injected into the middle third of the blocks (the first one's output, queries and keys of all), appearance from there
to the end, on image tokens; rotary positions take no part in the correspondence. Branches without a prompt of their
own are told the call's, as in the released code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

from torch import Tensor

from showtell.bridges.base import Run, Technique, spread
from showtell.bridges.layout import Place
from showtell.measure.dressing import layout_and_look, redressed, things_of
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.adain import GlobalAdaIN, attended, normal
from showtell.steer.features import blocks_of, denoiser_of, features
from showtell.steer.inversion import SDEdit
from showtell.steer.recurrence import again, noise_like
from showtell.steer.streams import image_given, image_made, projected
from showtell.train.samples import drawn, latents_of

STRENGTHS = (0.35, 0.5, 0.65, 0.8)  # of the baseline, tuned on validation prompts
EXAMPLE = """
import showtell
from showtell.papers.control.ctrl_x import CtrlX

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
structure, appearance = bridge.generate(["a red ring left of a blue star", "a painting"], seed=1)
using = [CtrlX(bridge.to_latents(structure), bridge.to_latents(appearance), structure_prompt="")]
[image] = bridge.generate("a big dog left of a cat", using=using, seed=0)
[image] = bridge.generate("a big dog left of a cat", using=[CtrlX(bridge.to_latents(structure))], seed=0)
"""


def layers_of(run: Any) -> tuple[list[str], list[str], list[str]]:
    """Names of modules: whose output is injected, and whose self- or joint attention gets structure and appearance."""
    denoiser = denoiser_of(run)
    calls = [name for name, kind in run.adapter.layout(run).calls if kind in ("self", "joint")]
    if hasattr(denoiser, "up_blocks"):
        first = next(i for i, block in enumerate(denoiser.up_blocks) if getattr(block, "attentions", None))
        skipped = f"up_blocks.{first}.attentions.0." if len(denoiser.up_blocks[first].attentions) > 1 else "none"
        later = [f"up_blocks.{first + 1}.attentions.{i}." for i in range(2)]
        shown = ("down_blocks.1.", "down_blocks.2.", f"up_blocks.{first}.", *later)
        structure = [name for name in calls if name.startswith(f"up_blocks.{first}.")]
        appearance = [name for name in calls if name.startswith(shown) and not name.startswith(skipped)]
        return [f"up_blocks.{first}.resnets.0"], structure, appearance
    blocks = blocks_of(denoiser)
    third = len(blocks) // 3
    middle, rest = blocks[third : max(2 * len(blocks) // 3, 1)], blocks[third:]
    within, onward = ([n for n in calls if n.startswith(tuple(f"{b}." for b in some))] for some in (middle, rest))
    return middle[:1], within, onward


class CtrlX(Technique):
    """structure, appearance: latents (n, ...) or (1, ...) of the pictures; either may be None.

    until: fractions of the steps with structure and appearance control; 0 for none. recurrence: (from, to, rounds).
    structure_prompt, appearance_prompt: what is on the pictures; None is the call's prompt. attended: False gives every
    place the appearance's global mean and deviation.
    """

    def __init__(
        self, structure: Tensor | None = None, appearance: Tensor | None = None,
        until: tuple[float, float] = (0.6, 0.6), recurrence: tuple[float, float, int] = (0.1, 0.5, 2),
        structure_prompt: str | list[str] | None = None, appearance_prompt: str | list[str] | None = None,
        attended: bool = True,
    ) -> None:  # fmt: skip
        self.pictures = {"structure": structure, "appearance": appearance}
        self.until, self.recurrence, self.attended = dict(zip(self.pictures, until, strict=True)), recurrence, attended
        self.prompts = {"structure": structure_prompt, "appearance": appearance_prompt}

    def start(self, run: Any, latents: Tensor) -> None:
        state = run.state(self)
        state.outputs, state.structure, state.appearance = layers_of(run)
        state.stage, state.kept, state.texts = "", {}, {}
        for role, prompt in self.prompts.items():
            state.texts[role] = run.text if prompt is None else run.encode(spread(prompt, len(run.prompts), "prompt"))

    def controls(self, run: Run, role: str) -> bool:
        return self.pictures[role] is not None and run.step < round(run.steps * self.until[role])

    def before(self, run: Any, latents: Tensor) -> None:
        state = run.state(self)
        state.kept, state.scheduler = {}, copy.deepcopy(run.scheduler)
        for number, (role, picture) in enumerate(self.pictures.items()):
            if picture is not None and self.controls(run, role):
                state.stage = role
                run.evaluate(self.noised(run, latents, picture.to(latents), 2 * run.step + number), state.texts[role])
        state.stage = "output"

    def noised(self, run: Any, latents: Tensor, picture: Tensor, number: int) -> Tensor:
        """A picture's latents at the level of the output's."""
        return run.add_noise(picture.expand_as(latents), noise_like(run, latents, 1 + number))

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> None:
        run.state(self).stage = ""  # what follows in this step is not controlled

    def latents(self, run: Any, latents: Tensor) -> Tensor:
        start, end, rounds = self.recurrence
        inside = round(run.steps * start) <= run.step < round(run.steps * end)
        return again(run, latents, run.state(self).scheduler, rounds) if inside else latents

    def wants(self, run: Run, place: Place) -> bool:
        state = run.state(self)
        relevant = state.stage in ("structure", "output") and self.controls(run, "structure")
        return relevant and place.name in state.structure

    def attention(self, run: Run, site: Any) -> None:
        state = run.state(self)
        for part, span in (("query", site.image), ("key", site.image_keys)):
            own, at = getattr(site, part), (part, site.depth)
            if state.stage == "structure":
                state.kept[at] = own[site.branches["text"]][:, :, span].clone()
            else:
                changed = own.clone()
                changed[site.branches["text"], :, span] = state.kept[at]
                setattr(site, part, changed)

    def around(self, run: Any) -> AbstractContextManager[Any]:
        state = run.state(self)
        if not state.stage:
            return super().around(run)
        before, after = {}, {}
        if self.controls(run, "structure") and state.stage != "appearance":
            after = {name: image_made(run, partial(self.inject, run, name)) for name in state.outputs}
        if self.controls(run, "appearance"):
            before = {name: image_given(run, partial(self.dress, run, name)) for name in state.appearance}
        return features(denoiser_of(run), before, after)

    def inject(self, run: Any, name: str, own: Tensor, number: int) -> Tensor | None:
        """What a module puts out: kept of the structure, for the output instead of its own."""
        kept = run.state(self).kept
        if run.state(self).stage == "output":
            return kept[name, number]
        kept[name, number] = own.clone()
        return None

    def dress(self, run: Any, name: str, own: Tensor) -> Tensor | None:
        """What an attention is given, (n, tokens, channels): kept of the appearance, dressed in it for the output."""
        state, module = run.state(self), denoiser_of(run).get_submodule(name)
        if state.stage == "appearance":
            state.kept[name, "key"], state.kept[name, "seen"] = projected(module, normal(own), "k"), own
            return None
        query = projected(module, normal(own), "q")
        if state.stage == "structure":
            state.kept[name, "query"] = query
            return None
        if name in state.structure and self.controls(run, "structure"):
            query = state.kept[name, "query"]
        return self.transferred(query, own, state.kept[name, "key"], state.kept[name, "seen"])

    def transferred(self, query: Tensor, own: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        """own, seen: (n, tokens, channels); query, key: (n, heads, tokens, channels / heads)."""
        scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(-1, -2)
        weights = (scores * query.shape[-1] ** -0.5 * self.attended).softmax(dim=-1)
        own, seen = (x.unflatten(-1, (query.shape[1], -1)).transpose(1, 2) for x in (own, seen))
        return attended(own, seen, weights).transpose(1, 2).flatten(2)


def experiment(lab: Lab) -> Comparison:
    bridge, prompts = lab.base("unet"), lab.prompts("pairs")

    def task(prompts: Any) -> tuple[list[str], Tensor, Tensor, Callable[..., Any]]:
        """What to ask for, the latents of structure and appearance, and the metric."""
        grey, other, wanted = redressed(prompts.scenes)
        structure, appearance = (latents_of(bridge, drawn(scenes)) for scenes in (grey, other))
        return list(map(things_of, wanted)), structure, appearance, layout_and_look(wanted)

    texts, structure, appearance, metric = task(prompts)
    said = [scene.caption() for scene in redressed(prompts.scenes)[0]]

    def baseline(strength: float, structure: Tensor, appearance: Tensor) -> list[Technique]:
        return [SDEdit(structure, strength), GlobalAdaIN(appearance)]

    @cache
    def best() -> float:
        told, shapes, looks, score = task(lab.validation("pairs", max(1, lab.n // 4)))
        tried = {s: score(bridge.generate(told, using=baseline(s, shapes, looks))).mean() for s in STRENGTHS}
        return max(tried, key=lambda strength: tried[strength])

    def edited(seed: int) -> list[Any]:
        return bridge.generate(texts, using=baseline(best(), structure, appearance), seed=seed)

    def controlled(seed: int, appearance: Tensor | None = appearance, **more: Any) -> list[Any]:
        using = [CtrlX(structure, appearance, structure_prompt=said, **more)]
        return bridge.generate(texts, using=using, seed=seed)

    arms: dict[str, Callable[[int], Any]] = {
        "ctrl_x": controlled,
        "SDEdit and AdaIN": edited,
        "structure only": partial(controlled, appearance=None),
        "uniform weights": partial(controlled, attended=False),
    }
    expect = "ctrl_x > SDEdit and AdaIN, ctrl_x > structure only"
    return lab.compare(arms, metric=metric, expect=expect, control="uniform weights")
