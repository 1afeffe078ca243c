"""Be Yourself: Bounded Attention for Multi-Subject Text-to-Image Generation.
Dahary, Patashnik, Aberman, Cohen-Or, 2024, arXiv 2403.16990

Similar subjects have similar queries and keys, so both cross- and self-attention mix them. Attention from one subject's
box to another's pixels and words is cut off at every step; early gradient steps on the latents draw each subject's
attention into its box, later the boxes give way to masks found by clustering self-attention.

Faithful: both losses and weights (1.5 cross, 0.5 self), step sizes 18 to 5 (the SDXL demonstration's; that of Stable
Diffusion has 8 to 2), up to 5 iterations in the first 30 % of the steps, stopping at 0.2 per subject, masks inside the
guidance pass too, 3 clusters per subject and one for the background, masks renewed every 5 steps. Self-attention is
bounded on every guidance branch, words on the conditional one. Pixels of the background attend to all pixels, and while
the latents are guided to all words; where they are denoised, a subject's words are for its own pixels alone.
Ours: function words stay (the paper hides them, and the end of the text from the background); maps are read on the grid
nearest to 16x16 (the released code: the decoder's 8x8 and 16x16 layers); a cluster goes to the subject whose box holds
most of it, without the released code's weighing by cross-attention; a subject that gets no cluster keeps its box. In
joint attention, image queries are bounded over image and text keys, text queries are not.

Inconclusive here: both guided arms get nearly everything right (0.96 without masks, 0.95 with them, 0.85 for plain
sampling), so that boxes and gradients alone leave nothing for the masks to mend: the miniature's subjects do not leak
once they lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.gradients import AttentionGradient
from showtell.steer.maps import near
from showtell.steer.phrases import at_site, membership
from showtell.steer.regions import Box, apart, grounded, named_boxes, owned
from showtell.steer.segment import subject_masks

Boxes = Mapping[str, Box]
PARTS = ("cross", "self")

EXAMPLE = """
import showtell
from showtell.papers.compose.bounded_attention import BoundedAttention

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
boxes = {"red ring": (0.05, 0.2, 0.45, 0.8), "blue ring": (0.55, 0.2, 0.95, 0.8)}
[image] = bridge.generate("a red ring and a blue ring", using=[BoundedAttention(boxes)], seed=0)
"""


def escape(inside: torch.Tensor, outside: torch.Tensor, subjects: torch.Tensor | int) -> torch.Tensor:
    """Eq. 3: 1 - in / (in + subjects * out), of the attention to a subject from inside and outside of its box."""
    return 1 - inside / (inside + subjects * outside).clamp(min=1e-12)


class BoundedAttention(AttentionGradient):
    """Bounded guidance, then bounded denoising. With iterations 0 and bound () nothing changes.

    boxes: phrase of the prompt -> box, the same for all samples or one mapping each; what a prompt lacks is left out.
    sizes: of the gradient steps, from the first to the last guided step. iterations: at most, per step; 0 for none.
    until: fraction of the sampling that is guided. enough: mean loss per subject at which a step's guidance ends.
    weights: of the cross and self losses. bound: which kinds of attention are cut off. per_subject: clusters.
    refresh: steps between renewals of the masks.
    """

    def __init__(
        self, boxes: Boxes | Sequence[Boxes], sizes: tuple[float, float] = (18.0, 5.0), iterations: int = 5,
        until: float = 0.3, enough: float = 0.2, weights: tuple[float, float] = (1.5, 0.5),
        bound: Sequence[str] = PARTS, per_subject: int = 3, refresh: int = 5,
    ) -> None:  # fmt: skip
        def size(progress: float) -> float:
            return sizes[0] + (sizes[1] - sizes[0]) * progress / until

        super().__init__(self.loss_of, size=size if until else 0.0, until=until, refinements=iterations, enough=enough)
        self.boxes, self.weights, self.bound = boxes, weights, tuple(bound)
        self.per_subject, self.refresh = per_subject, refresh

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state, found = run.state(self), grounded(run, self.boxes)
        state.boxes = state.regions = [[box for _, box in one] for one in found]
        named = [[positions for positions, _ in one] for one in found]
        state.words = membership(named, run.text.tokens.shape[1]).to(latents.device)
        state.there = state.words.any(dim=-1)
        state.counts = state.there.sum(dim=1)
        state.cells, state.looks, state.seen, state.renew = {}, 0, 0.0, 0

    def pixels(self, run: Run, grid: Sequence[int]) -> torch.Tensor:
        """Which image tokens each subject owns, bool (n, subjects, tokens); all False for subjects a sample lacks."""
        state = run.state(self)
        if grid not in state.cells:
            state.cells[grid] = owned(state.regions, grid).to(state.words.device)
        return state.cells[grid]

    def wants(self, run: Run, place: Place) -> bool:
        return place.fold == 1 and (bool(self.bound) or near(run, place))

    def attention(self, run: Run, site: Any) -> None:
        state, pixels = run.state(self), self.pixels(run, site.grid)
        guiding = getattr(state, "maps", None) is not None
        keys: dict[str, Any] = {}  # kind of attention -> what belongs to each subject, (n, subjects, keys)
        if site.text is not None:  # a longer negative prompt makes room for more tokens
            keys["cross"] = at_site(state.words, site)
        if site.image_keys is not None:
            keys["self"] = pixels
        for part in set(self.bound) & set(keys):
            for branch in site.branches if part == "self" else ("text",):
                keep, kind = apart(pixels, keys[part]), "image" if part == "self" else "text"
                if part == "cross" and not guiding:  # what belongs to nobody reads no subject's words
                    keep = keep & (pixels.any(dim=1)[:, :, None] | ~keys[part].any(dim=1)[:, None])
                site.mask(keep[:, None], branch, queries="image", keys=kind)
        if not near(run, site.place):
            return
        maps = site.probabilities("text", "image").float().mean(dim=1)  # (n, image tokens, all keys)
        spans = {"cross": site.text, "self": site.image_keys}
        if guiding:
            state.maps += [(part, *flows(maps[..., spans[part]], pixels, keys[part])) for part in keys]
        elif "self" in keys:
            state.seen = state.seen + (maps[..., spans["self"]] - state.seen) / (state.looks + 1)
            state.looks, state.grid = state.looks + 1, site.grid

    def loss_of(self, run: Run, maps: Any) -> torch.Tensor:
        """The weighted squared losses of both kinds of attention, mean over a sample's subjects, (n,)."""
        state = run.state(self)
        counts, total = state.counts, 0.0 * maps[0][1].sum(dim=1)
        for part, weight in zip(PARTS, self.weights, strict=True):
            if found := [(inside, outside) for kind, inside, outside in maps if kind == part]:
                inside, outside = (torch.stack(one).mean(dim=0) for one in zip(*found, strict=True))
                lost = escape(inside, outside, counts[:, None])
                total = total + weight * (lost.square() * state.there).sum(dim=1)
        return total / counts.clamp(min=1)

    def gradient(self, run: Run, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses, gradient = super().gradient(run, latents)  # of the mean; the paper steps along that of the sum
        return losses, gradient * run.state(self).counts.view(-1, *[1] * (latents.ndim - 1))

    def before(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        state = run.state(self)
        if run.progress >= self.until and state.looks and run.step >= state.renew:
            state.renew, state.cells = run.step + self.refresh, {}
            boxes = zip(state.seen, state.boxes, strict=True)
            state.regions = [subject_masks(seen, each, state.grid, self.per_subject) for seen, each in boxes]
        return super().before(run, latents)


def flows(maps: torch.Tensor, pixels: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to each subject's keys from inside and from outside of its pixels, (n, subjects) each.

    maps: (n, tokens, keys) of one kind of attention; pixels, keys: as in `apart`.
    """
    to = torch.einsum("nxk,nsk->nsx", maps, keys.to(maps))
    return (to * pixels).sum(dim=2), (to * ~pixels).sum(dim=2)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("bindings", kinds="same-shape")
    boxes = [named_boxes(*pair) for pair in zip(prompts.phrases, prompts.boxes, strict=True)]

    def arm(*using: Technique) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed)

    arms = {
        "bounded attention": arm(BoundedAttention(boxes)),
        "plain": arm(),
        "guidance only": arm(BoundedAttention(boxes, bound=())),
        "cross mask only": arm(BoundedAttention(boxes, bound=("cross",))),
    }
    # What the masks add comes first: it is what the control, guided as well, has to lose.
    expect = "bounded attention > guidance only, bounded attention > plain"
    return lab.compare_by((prompts.complete, prompts.count), arms, expect=expect, control="cross mask only")
