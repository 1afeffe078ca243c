"""Region-Aware Text-to-Image Generation via Hard Binding and Soft Refinement.
Chen, Li, Wang, Chen, Jiang, Li, Wang, Yang, Tai, 2024, arXiv 2411.06558

In the first steps every region is denoised alone, at its own size and with a short prompt, and pasted into the image,
so that it surely holds what it should. In all later steps the image tokens of a region attend to a detailed prompt of
their own at every text-image attention, while self-attention stays global, which blends borders and lets regions meet.

Faithful: hard binding for r = 2 steps, pasted after each of them; soft refinement mixed in with delta = 1, the detailed
texts' own stream following the one image stream; repainting by restoring a stored run outside of a region.
In the experiment boxes lie where things are to be, and every place of the picture is refined by the nearest thing's
words, as the released examples' splits leave no place out.
Ours: a region's latents are cut out of the starting noise (the released code draws them anew); tokens of overlapping
regions get the mean, those outside of all regions follow the global prompt; boxes are rounded to what the model can
denoise. Regions come from the caller, not from a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from showtell.bridges.base import Run, Technique, Text
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.edits import changed_outside
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.blend import RecordLatents, RepaintLatents
from showtell.steer.boxes import grown, nearest
from showtell.steer.companions import texts_of
from showtell.steer.crops import crop
from showtell.steer.lists import lists_of
from showtell.steer.regions import Box, WordRegions, cells, named_boxes

EXAMPLE = """
import showtell
from showtell.papers.compose.rag_diffusion import Part, RagDiffusion
from showtell.steer.blend import RecordLatents, RepaintLatents

bridge = showtell.load("black-forest-labs/FLUX.1-dev")
left, right, kept = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), []
ring, star = Part(left, "a red ring", "a big red ring on a table"), Part(right, "a blue star")
prompt = "a red ring left of a blue star"
[image] = bridge.generate(prompt, using=[RagDiffusion([ring, star]), RecordLatents(kept)], seed=0)
other = [ring, Part(right, "a green square")]
[changed] = bridge.generate(prompt, using=[RagDiffusion(other), RepaintLatents(kept, right)], seed=0)
"""


@dataclass(frozen=True)
class Part:
    """A region: where it is, what is in it in a few words, and in detail (by default the same words).

    area: where the detail counts, a box or mask (height, width); by default the region's box.
    """

    box: Box
    what: str
    detail: str = ""
    area: Box | torch.Tensor | None = None

    @property
    def refined(self) -> Box | torch.Tensor:
        return self.box if self.area is None else self.area


class RagDiffusion(Technique):
    """parts: the regions, the same for all samples or one list each. hard: steps of hard binding (the paper's r).

    soft: strength of the refinement (delta), from 0 to 1. hard 0 and soft 0 change nothing.
    """

    def __init__(self, parts: Sequence[Part] | Sequence[Sequence[Part]], hard: int = 2, soft: float = 1.0) -> None:
        if hard < 0 or not 0 <= soft <= 1:
            raise ShowtellError(f"hard={hard}, soft={soft}: use hard of 0 or more and soft from 0 to 1.")
        self.parts, self.hard, self.soft = list(parts), hard, soft

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        state.parts = lists_of(self.parts, len(run.prompts), "parts", Part)
        texts = texts_of(run, [[part.detail or part.what for part in own] for own in state.parts])
        # The image is modulated by the global prompt alone, so that there is one image stream.
        state.texts = {f"part {k}": replace(text, pooled=run.text.pooled) for k, text in enumerate(texts)}

    def before(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        if run.step == 0 and self.hard:
            each = [(row, part) for row, parts in enumerate(state.parts) for part in parts]
            state.crops = [crop(run, latents, row, part.box, part.what) for row, part in each]
        if run.step < self.hard:
            for one in state.crops:
                one.step(run.step)

    def latents(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        if run.step >= self.hard:
            return None
        latents = latents.clone()
        for one in run.state(self).crops:
            one.paste(latents)
        return latents

    def beside(self, run: Run) -> Mapping[str, Text] | None:
        return run.state(self).texts if self.soft and run.step >= self.hard else None

    def wants(self, run: Run, place: Place) -> bool:
        return self.soft > 0 and run.step >= self.hard and place.text is not None

    def attention(self, run: Run, site: Any) -> None:
        names = [name for name in run.state(self).texts if name in site.branches]
        if not names:
            return
        output = site.output.clone()
        own = output[site.branches["text"], :, site.image]
        # Each text's rows hold what this very image would read from it.
        read = torch.stack([output[site.branches[name], :, site.image] for name in names])
        owned = torch.stack([self.owned(run, k, site.grid) for k in range(len(names))]).to(own)[:, :, None, :, None]
        regional = (owned * read).sum(dim=0) / owned.sum(dim=0).clamp(min=1)
        mixed = torch.where(owned.sum(dim=0) > 0, torch.lerp(own, regional, self.soft), own)
        for name in ("text", *names):
            output[site.branches[name], :, site.image] = mixed
        site.output = output

    def owned(self, run: Run, k: int, grid: Sequence[int]) -> torch.Tensor:
        """Which image tokens lie in each sample's k-th part, bool (n, tokens)."""
        areas = [own[k].refined if k < len(own) else torch.zeros(1, 1) for own in run.state(self).parts]
        return torch.stack([cells(area, grid) for area in areas]).flatten(1)


def shared_out(parts: Sequence[Part], size: int = 64) -> list[Part]:
    """The parts, with every place of the picture in the area of the one whose box is nearest."""
    owner = nearest([part.box for part in parts], size)
    return [replace(part, area=(owner == k).float()) for k, part in enumerate(parts)]


def for_prompts(prompts: Sequence[str], lm: Any, **options: Any) -> RagDiffusion:
    """The regions that the language model plans."""
    planned = [lm.plan_layout(text).placed for text in prompts]
    return RagDiffusion([[Part(one.box, one.prompt) for one in each] for each in planned], **options)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("mmdit"), lab.prompts("objects-3-4")
    boxes = [named_boxes(*pair) for pair in zip(prompts.phrases, prompts.boxes, strict=True)]
    parts = [shared_out([Part(box, f"a {name}") for name, box in one.items()]) for one in boxes]
    other = [[replace(one[0], what="a black cross"), *one[1:]] for one in parts]  # repainted: the first object

    def images(seed: int, *using: Technique) -> Any:
        return bridge.generate(prompts.texts, using=using, seed=seed)

    def arm(*using: Technique) -> Any:
        return lambda seed: images(seed, *using)

    arms = {
        "rag": arm(RagDiffusion(parts)),
        "attention mask": arm(WordRegions(boxes)),
        "plain": arm(),
        "no hard binding": arm(RagDiffusion(parts, hard=0)),
        "no soft refinement": arm(RagDiffusion(parts, soft=0.0)),
    }
    expect = "rag > attention mask, rag > plain"  # that the mask itself gains is nothing the paper needs

    def outside(seed: int, repaint: bool) -> np.ndarray:
        """How much the picture changes outside of the part that changes, and a latent around it, (n,)."""
        kept, boxes = list[torch.Tensor](), [one[0].box for one in parts]
        first = images(seed, RagDiffusion(parts), RecordLatents(kept))
        second = images(seed, RagDiffusion(other), *([RepaintLatents(kept, [*boxes])] if repaint else []))
        return changed_outside(first, second, [grown(box, 1 / 16) for box in boxes])

    repainting = {"repaint": lambda seed: outside(seed, True), "new run": lambda seed: outside(seed, False)}
    return [  # what is absent counts as wrong, as hard binding is there to make it present
        *lab.compare_by((prompts.complete, prompts.relations), arms, expect=expect, control="no hard binding"),
        lab.compare(repainting, expect="new run > 3 * repaint", name="change outside the repainted part"),
    ]
