"""FRAP: Faithful and Realistic Text-to-Image Generation with Adaptive Prompt Weighting.
Jiang, Hassanpour, Salameh, Sai Singamsetti, Sun, Lu, Niu, 2024, arXiv 2408.11706

One weight per token of the encoded prompt is adapted while sampling, by gradient descent on what cross-attention shows:
every object is to be present somewhere, and its modifiers are to lie where it lies. Latents are never touched, and each
step costs one evaluation of the network and a backward pass through it.

Faithful: weighing around the empty prompt's states, the two losses on Gaussian-smoothed maps of the 16x16 level, one
update a step that the next step uses, the first half of the steps, weights frozen afterwards.
Ours: maps are compared `among_words`, as Attend-and-Excite does, on whose loss presence is built. A word that is drawn
somewhere then has a loss near 0 and is let be; of plain probabilities, which stay below 0.3 however well a word is
drawn, every weight would rise without end. The overlap is summed over the image: the mean would make it at most 1/256
of the presence on 16x16 maps. Step size and bounds (the paper's were not to be had): nouns' slopes are 2.3 in the
median on the miniature, so that ten steps of 0.01 take one half of the way to the bound. Maps of words that are several
tokens are averaged, noun phrases are found by `steer.phrases` instead of spaCy. Pooled text embeddings have no tokens
and stay as they are. Not measured: realism (an FID needs far more images than this).

Not shown: of three or four things 0.85 come out complete with it, with random signs of the gradient and plainly (64
prompts, 3 seeds). The base leaves one thing in seven out or mixes it up; the same losses on latents mend a sixth of
those (0.88), equal weights of 1.2 add to them (0.83).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.embeddings import WordWeights, null_tokens, weighted
from showtell.steer.gradients import AttentionGradient, falling
from showtell.steer.maps import TokenMaps, among_words, averaged, near, token_maps
from showtell.steer.overlaps import shares
from showtell.steer.phrases import Thing, membership, phrases, things_of, tokens_of
from showtell.steer.regions import words_of

EXAMPLE = """
import showtell
from showtell.papers.compose.frap import Frap

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
prompt = "a red ring left of a blue star"
[image] = bridge.generate(prompt, using=[Frap()], seed=0)
[image] = bridge.generate(prompt, using=[Frap(things={"ring": ["red"], "star": ["blue"]})], seed=0)
"""


def objective(maps: torch.Tensor, things: Sequence[Thing], binding: float = 1.0) -> torch.Tensor:
    """Presence loss minus `binding` times the overlap of objects with their modifiers, a scalar.

    maps: (tokens, height, width), attention in [0, 1]. Presence is 1 - the map's largest value, overlap the part that
    two maps have in common, each normalised to sum to one; both are in [0, 1]. 0 where there are no things.
    """

    def of(positions: Sequence[int]) -> torch.Tensor:
        return maps[list(positions)].mean(dim=0)

    absent = [1 - of(noun).max() for noun, _ in things]
    pairs = [(noun, word) for noun, modifiers in things for word in modifiers]
    overlap = [torch.minimum(shares(of(noun)), shares(of(word))).sum() for noun, word in pairs]
    total = torch.stack(absent).mean() if absent else maps.sum() * 0
    return total - binding * torch.stack(overlap).mean() if overlap else total


def compared(run: Run, maps: list[TokenMaps]) -> torch.Tensor:
    """Maps (n, tokens, height, width) compared `among_words` but the start token, where a text has one."""
    words = [word.positions for prompt in run.prompts for word in words_of(run, prompt) if word.positions]
    return among_words(averaged(maps), min(map(min, words), default=0))


def objectives(
    run: Run, maps: list[TokenMaps], things: list[list[Thing]] | None = None, binding: float = 1.0
) -> torch.Tensor:
    """The objective of every sample, (n,). things: of each; None finds them."""
    rows = zip(compared(run, maps), things_of(run) if things is None else things, strict=True)
    return torch.stack([objective(row, named, binding) for row, named in rows])


class Frap(Technique):
    """Adapts a weight per object and modifier token: weight <- clip(weight - step_size * slope of the objective).

    step_size 0 changes nothing. binding: weight of the overlap (the paper's lambda). until: fraction of the sampling.
    bounds: of the weights, which start at 1. things: noun -> its modifiers, where a prompt has them; None finds each
    prompt's own.
    """

    makes = ("text",)

    def __init__(
        self, step_size: float = 0.01, binding: float = 1.0, until: float = 0.5,
        bounds: tuple[float, float] = (0.6, 1.4), things: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        if not bounds[0] <= 1 <= bounds[1]:
            raise ShowtellError(f"bounds={bounds}: weights start at 1, so give (low, high) with low <= 1 <= high.")
        self.step_size, self.binding, self.until = step_size, binding, until
        self.bounds, self.things = bounds, things

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        state.own, state.null, state.maps = run.text, null_tokens(run.text), []
        state.things = things_of(run, self.things)
        state.weights = torch.ones(run.text.tokens.shape[:2], device=run.text.tokens.device)
        groups = [[tokens_of(thing) for thing in things] for things in state.things]
        state.adapted = membership(groups, state.weights.shape[1]).any(dim=1).to(state.weights.device)

    def differentiates(self, run: Run) -> bool:
        return self.step_size != 0 and run.progress < self.until and bool(run.state(self).adapted.any())

    def before(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        if bool((state.weights == 1).all()) and not self.differentiates(run):
            return
        with torch.set_grad_enabled(self.differentiates(run)):
            state.weights = state.weights.detach().requires_grad_(self.differentiates(run))
            run.text = state.own.with_tokens(weighted(state.own, state.weights, state.null))

    def conditioning(self, run: Run, text: Any) -> None:
        run.state(self).maps = []  # an evaluation begins; only the last one's maps belong to the prediction

    def wants(self, run: Run, place: Place) -> bool:
        wanted = torch.is_grad_enabled() and self.differentiates(run) and place.text is not None
        return wanted and near(run, place)

    def attention(self, run: Run, site: Any) -> None:
        found = token_maps(site)
        if found is not None:
            run.state(self).maps.append(found)

    def prediction(self, run: Run, guided: Any, conditional: Any, unconditional: Any) -> None:
        state = run.state(self)
        maps, state.maps = state.maps, []
        if not state.weights.requires_grad:  # frozen, or this step's update is made
            return
        if not maps:
            raise ShowtellError("this model shows no attention to words on the grid nearest to 16x16.")
        slope = self.slope(run, self.losses(run, maps), state.weights)
        updated = (state.weights.detach() - self.step_size * slope).clamp(*self.bounds)
        state.weights = torch.where(state.adapted, updated, state.weights.detach())

    def losses(self, run: Run, maps: list[TokenMaps]) -> torch.Tensor:
        """The objective of every sample, (n,)."""
        return objectives(run, maps, run.state(self).things, self.binding)

    def slope(self, run: Run, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The gradient of the losses by the weights, (n, tokens)."""
        return torch.autograd.grad(losses.sum(), weights, retain_graph=True)[0]


class RandomSigns(Frap):
    """The control: updates of the same size in directions drawn at random."""

    def slope(self, run: Run, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, weights.shape, generator=torch.Generator().manual_seed(run.step)) * 2 - 1
        return super().slope(run, losses, weights).abs() * signs.to(weights)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("bindings")
    named = [phrases(bridge.words(text)) for text in prompts.texts]
    heavier = [{word: 1.2 for one in each for word in one.text.split()} for each in named]
    latent = AttentionGradient(objectives, size=falling(20), nearest=16)  # on the same maps

    def arm(*using: Technique) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed)

    arms = {
        "frap": arm(Frap()),
        "plain": arm(),
        "fixed weights": arm(WordWeights(heavier)),
        "latent optimisation": arm(latent),
        "random signs": arm(RandomSigns()),
    }
    expect = "frap > plain, frap > fixed weights"
    return lab.compare_by((prompts.complete, prompts.objects), arms, expect=expect, control="random signs")
