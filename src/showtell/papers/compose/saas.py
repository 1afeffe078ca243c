"""Scale Your Instructions: Enhance the Instruction-Following Fidelity of Unified Image Generation Model by
Self-Adaptive Attention Scaling (SaaS).
Zhou, Wei, Yu, 2025, arXiv 2507.16240

Where one softmax holds an instruction and the picture that is edited, the picture wins what a sub-instruction should
change. Each sub-instruction's attention is multiplied, in the region it attends to, by how much the picture outweighs
it there; region and factor are those that the step before has shown, as neighbouring steps attend alike.

Faithful (settings from the released code): maps are sums over the last three quarters of the layers of means over
heads; a region is what Otsu's threshold leaves of a sub-instruction's map under a Gaussian of sigma 1; its factor is
the picture's attention in it over the sub-instruction's, times a scale of 1; rows are normalised again; steps up to
20 of 50, but the first; the conditional branch alone.
Ours: maps are read before they are scaled (the code sums scaled ones, whose ratio is near 1 every other step);
sub-instructions end at commas (as there), semicolons, full stops and "and", or are what `parts` says; multiplying and
normalising is one bias of the scores, log of the factor. Left out: the search for layers and steps by perturbing each.
Scaled down: there is no packaged model of this kind, so a FLUX.1 Kontext of 4 blocks and 32x32 pixels is trained here,
mostly on single instructions, and asked for two at once. 16 image tokens make coarse regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from showtell.bridges.base import Run, Technique, Text
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.language.clauses import sub_instructions
from showtell.measure.compounds import done, kept
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.lists import lists_of
from showtell.steer.louder import Louder
from showtell.steer.maps import Where, places, smoothed
from showtell.steer.phrases import at_site, membership
from showtell.steer.regions import positions_of, words_of
from showtell.steer.segment import masks_of
from showtell.train.narrow_edits import Compound, carry_out, compounds, learn_edits
from showtell.train.narrow_models import narrow_kontext

EXAMPLE = """
import showtell
from showtell.papers.compose.saas import SaaS

bridge = showtell.load("black-forest-labs/FLUX.1-Kontext-dev", dtype="bfloat16")
image = bridge.generate("a rusty bike in front of a wall", seed=0)
edited = bridge.edit(image, "make the bike red, and paint the wall green", using=[SaaS()], seed=0)
"""

LAYERS = places(("joint",), depths=(0.25, 1.0))
Weigh = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]]
"""What `outweighed` takes and gives."""


def outweighed(told: torch.Tensor, shown: torch.Tensor, grid: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(regions, bool (n, parts, tokens); factors (n, parts)): where each sub-instruction is attended to, and how many
    times more the picture is there.

    told: (n, parts, tokens of `grid`), attention to each sub-instruction; shown: (n, tokens), to the picture.
    """
    regions = masks_of(smoothed(told.unflatten(-1, tuple(grid)), sigma=1.0, size=7)).flatten(2)
    picture = (shown[:, None] * regions).sum(dim=-1)
    return regions, picture / ((told * regions).sum(dim=-1) + 1e-6)


def exchanged(told: torch.Tensor, shown: torch.Tensor, grid: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The control: each sub-instruction with its own factor, but in the region of another of the same sample."""
    regions, factors = outweighed(told, shown, grid)
    for row, there in enumerate(told.any(dim=-1)):
        regions[row, there] = regions[row, there].roll(1, dims=0)
    return regions, factors


class SaaS(Technique):
    """Scales the attention to sub-instructions where the picture outweighs them. An empty window changes nothing.

    scale: times the factors. parts: the sub-instructions, phrases of the instruction, the same for all samples or a
    list for each; None finds each instruction's own. window: fractions of the sampling, from and to. where: the layers
    that are read and scaled, by default all but the first quarter. weigh: finds regions and factors.
    Raises ShowtellError where no picture's tokens share a softmax with the instruction's.
    """

    def __init__(
        self,
        scale: float = 1.0,
        parts: Sequence[str] | Sequence[Sequence[str]] | None = None,
        window: tuple[float, float] = (0.0, 0.4),
        where: Where | None = None,
        weigh: Weigh = outweighed,
    ) -> None:
        if scale <= 0:
            raise ShowtellError(f"scale={scale}: attention is multiplied by it, so give a number above 0.")
        self.scale, self.parts, self.window, self.where, self.weigh = scale, parts, window, where or LAYERS, weigh

    def spans(self, run: Run) -> list[list[tuple[int, ...]]]:
        """The text tokens of each sample's sub-instructions."""
        if self.parts is None:
            found = [[s.positions(words_of(run, text)) for s in sub_instructions(text)] for text in run.prompts]
        else:
            each = zip(run.prompts, lists_of(self.parts, len(run.prompts), "parts"), strict=True)
            found = [[tuple(positions_of(run, text, part)) for part in parts] for text, parts in each]
        return [[span for span in one if span] for one in found]

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state, tokens = run.state(self), run.text.tokens
        state.words = membership(self.spans(run), tokens.shape[1]).float().to(tokens.device)
        state.maps, state.regions = 0.0, None

    def conditioning(self, run: Run, text: Text) -> None:
        run.state(self).maps = 0.0  # an evaluation begins; only the last one's maps belong to the prediction

    def active(self, run: Run) -> bool:
        return self.window[0] <= run.progress < self.window[1]

    def wants(self, run: Run, place: Place) -> bool:
        return self.active(run) and place.reference is not None and place.text is not None and self.where(place)

    def attention(self, run: Run, site: Any) -> None:
        state = run.state(self)
        maps = site.probabilities("text", "image").float().mean(dim=1)  # (n, image tokens, keys)
        words = at_site(state.words, site)
        told = torch.einsum("nxk,npk->npx", maps[..., site.text], words)
        state.maps = state.maps + torch.cat([told, maps[..., site.reference].sum(dim=-1)[:, None]], dim=1)
        state.grid = site.grid
        if state.regions is not None:
            factors = torch.einsum("npx,npk->nxk", state.regions * (state.factors[..., None].log()), words)
            site.bias(factors[:, None], queries="image", keys="text")

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> None:
        state = run.state(self)
        if not self.active(run):
            return
        if not isinstance(state.maps, torch.Tensor):
            raise ShowtellError(
                f"{run.bridge.name} shows no attention that an instruction and a picture share; edit a picture with a "
                "model that reads both in one sequence, such as FLUX.1 Kontext, and choose some of its layers."
            )
        state.regions, factors = self.weigh(state.maps[:, :-1], state.maps[:, -1], state.grid)
        state.factors = torch.where(state.regions.any(dim=-1), self.scale * factors, 1.0).clamp(min=1e-6)


PAIRS, STEPS, BATCH, WIDTH, SAMPLING = 6000, 700, 64, 128, 20
FACTORS = (1.5, 2.0, 4.0, 8.0)
SINGLE = (1, 1, 1, 2)  # how many sub-instructions the editor learns from at once; it is asked for two


def experiment(lab: Lab) -> list[Comparison]:
    base, asked = lab.base("unet"), compounds(lab.n, lab.seed, lab.split)

    def trained() -> Any:
        return learn_edits(narrow_kontext(base, 0, WIDTH), compounds(PAIRS, sizes=SINGLE), STEPS, BATCH, lr=1.5e-3)

    @cache
    def editor() -> Any:
        made = narrow_kontext(base, 0, WIDTH)
        made.adapter.denoiser.load_state_dict(lab.trained("editor", trained, shared=True, steps=STEPS, pairs=PAIRS))
        return made

    def edited(of: Sequence[Compound], seed: int, *using: Technique) -> list[Any]:
        return carry_out(editor(), of, using, seed, SAMPLING)

    @cache
    def tuned() -> float:
        """The factor of all words with which validation instructions come out best."""
        held = compounds(max(1, lab.n // 2), lab.seed, "validation")

        def right(factor: float) -> float:
            images = edited(held, 0, Louder(factor, LAYERS))
            return float((done(images, held) * kept(images, held)).mean())

        return max(FACTORS, key=right)

    arms = {
        "saas": lambda seed: edited(asked, seed, SaaS()),
        "plain": lambda seed: edited(asked, seed),
        "constant boost": lambda seed: edited(asked, seed, Louder(tuned(), LAYERS)),
        "regions exchanged": lambda seed: edited(asked, seed, SaaS(weigh=exchanged)),
    }
    carried_out, left_alone = partial(done, asked=asked), partial(kept, asked=asked)
    both, texts = "saas > plain, saas > constant boost", [one.instruction for one in asked]
    return [
        lab.compare(arms, carried_out, expect=both, control="regions exchanged", name="carried out", texts=texts),
        lab.compare(arms, left_alone, expect="saas > constant boost - 0.05", name="left alone", texts=texts),
    ]
