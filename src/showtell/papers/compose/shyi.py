"""SHYI: Action Support for Contrastive Learning in High-Fidelity Text-to-Image Generation.
Xia, Xiao, Montorfani, Pavia, Simsar, Hofmann, 2025, arXiv 2501.09055

CONFORM (2312.06059) makes the attention of a thing's words alike and that of different things unlike. Here an action is
a hyperedge over the things that take part: its words are to lie where each of them lies, while these stay apart.

Faithful, after CONFORM's released settings: NT-Xent over the words' smoothed 16x16 maps, softmaxed over the words, with
those of the step before as further examples; temperature 0.5; the first half of the steps with sizes 20 falling with
the root of the progress; 20 further iterations at steps 0, 10 and 20 of 50; participants of an action are its positives
and each other's negatives, other things its negatives.
Ours: the paper's weighting of the hypergraph was not to be had, so all pairs weigh the same, and two actions are
neither positive nor negative to each other. A grammar (or any `language.load`) finds things and actions. Boxes and
adapters of InteractDiffusion, which the paper tries beside this, are left out.
Scaled down: things inside, in front of and behind another stand for actions, with a third thing beside them; 5 further
iterations at steps 0, 4 and 8 of 20, on every arm. Steps have a size of 5 instead of 20: of latents with 16 times fewer
numbers than Stable Diffusion's the slopes are steeper, and at 20 CONFORM's loss goes up and down.

Inconclusive: 0.20 of the relations are right with it, 0.17 by CONFORM, 0.19 with actions over the wrong things, 0.16
plainly (32 prompts, 3 seeds). The base places things as it likes, and that words of an action lie where its things lie
does not tell it which is inside which.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from showtell import language
from showtell.bridges.base import Run, Technique, spread
from showtell.bridges.words import Words
from showtell.language import Link, Split
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, PromptSet
from showtell.steer.gradients import AttentionGradient, falling
from showtell.steer.maps import TokenMaps, among_words, averaged
from showtell.steer.regions import words_of
from showtell.train.cosines import nt_xent
from showtell.world import Scene, sample

EXAMPLE = """
import showtell
from showtell import language
from showtell.papers.compose.shyi import Shyi

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
prompt = "a brown dog playing with a black cat"
[image] = bridge.generate(prompt, using=[Shyi([language.load().split(prompt)])], seed=0)
"""

SIZES = falling(20)
Node = tuple[tuple[str, int], set[int], int]
"""What a token belongs to ("thing" or "action", which one), the things concerned, and the token."""


def participants(link: Link) -> set[int]:
    return {link.subject, *link.objects}


def adjacency(split: Split, words: Words, actions: bool = True) -> tuple[list[int], torch.Tensor]:
    """The text tokens of a prompt's things and actions, (m,), and what each pair is, (m, m): 1 positive, -1 negative, 0
    neither. Things are vertices, actions hyperedges; without `actions` the vertices alone, as in CONFORM.
    """
    nodes: list[Node] = []
    for v, entity in enumerate(split.entities):
        spans = (entity.head, *entity.modifiers)
        nodes += [(("thing", v), {v}, at) for span in spans for at in span.positions(words)]
    for e, link in enumerate(split.relations if actions else ()):
        nodes += [(("action", e), participants(link), at) for at in link.words.positions(words)]

    def pair(one: Node, other: Node) -> int:
        kinds = {one[0][0], other[0][0]}
        if one[0] == other[0] or ("action" in kinds and "thing" in kinds and one[1] & other[1]):
            return 1
        return 0 if kinds == {"action"} else -1

    pairs = torch.tensor([[pair(one, other) for other in nodes] for one in nodes], dtype=torch.long)
    return [at for _, _, at in nodes], pairs.view(len(nodes), len(nodes))


class Shyi(AttentionGradient):
    """Moves latents towards attention that has the structure of the prompt.

    splits: the prompts, taken apart. actions: False leaves CONFORM. size, until: of the gradient steps, size 0 changes
    nothing. further: sampling step -> iterations there besides the one that every step has.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        actions: bool = True,
        size: float | Callable[[float], float] = SIZES,
        until: float = 0.5,
        further: Mapping[int, int] | None = None,
        temperature: float = 0.5,
    ) -> None:
        more = {0: 20, 10: 20, 20: 20} if further is None else dict(further)
        super().__init__(self.loss_of, None, size, until, refinements=lambda step: 1 + more.get(step, 0), nearest=16)
        self.splits, self.actions, self.temperature = list(splits), actions, temperature

    def start(self, run: Run, latents: torch.Tensor) -> None:
        state = run.state(self)
        each = zip(run.prompts, spread(self.splits, len(run.prompts), "splits"), strict=True)
        state.graphs = [adjacency(split, words_of(run, prompt), self.actions) for prompt, split in each]
        state.latest = state.previous = None

    def before(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        changed = super().before(run, latents)
        run.state(self).previous = run.state(self).latest
        return changed

    def loss_of(self, run: Run, maps: list[TokenMaps]) -> torch.Tensor:
        state = run.state(self)
        seen = among_words(averaged(maps), 1, -1)  # but for the first and the last token
        losses = []
        for row, (tokens, pairs) in enumerate(state.graphs):
            steps = [seen] if state.previous is None else [seen, state.previous]
            found = torch.cat([step[row, tokens].flatten(1) for step in steps])
            losses.append(nt_xent(found, pairs.to(found.device).repeat(len(steps), len(steps)), self.temperature))
        state.latest = seen.detach()
        return torch.stack(losses)


def misattached(split: Split) -> Split:
    """The same prompt with every action over the things that do not take part in it; of two things, over none."""

    def other(link: Link) -> Link:
        rest = [v for v in range(len(split.entities)) if v not in participants(link)] or [-1]
        return replace(link, subject=rest[0], objects=tuple(rest[1:]))

    return replace(split, relations=tuple(other(link) for link in split.relations))


def for_prompts(prompts: Sequence[str], lm: Any, **options: Any) -> Shyi:
    """The prompts as the language model takes them apart."""
    return Shyi([lm.split(text) for text in prompts], **options)


ACTIONS = ("inside", "in front of", "behind")


def beside(lab: Lab, count: int) -> PromptSet:
    """Two things of which one is inside, in front of or behind the other, and a third one that takes no part."""
    scenes: dict[str, Scene] = {}
    for draw in itertools.count():
        kind = ACTIONS[len(scenes) % len(ACTIONS)]
        size = ("small", "large") if kind == "inside" else "medium"
        look: dict[str, Any] = PLAIN | {"size": size, "distinct": ("shape", "colour"), "relation": kind}
        [scene] = sample(1, lab.seed * 1_000_003 + draw, lab.split, 3, **look)
        if len(scene.relations) == 1:
            scenes.setdefault(scene.caption(), scene)
        if len(scenes) == count:
            break
    return PromptSet.of("bystanders", list(scenes.values()), lab.seed, lab.split)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts, lm = lab.base("unet"), beside(lab, max(1, lab.n // 2)), language.load()
    splits = [lm.split(text) for text in prompts.texts]
    steps: dict[str, Any] = {"size": falling(5), "further": {0: 5, 4: 5, 8: 5}}

    def arm(*using: Technique) -> Any:
        return lambda seed: bridge.generate(prompts.texts, using=using, seed=seed)

    arms = {
        "shyi": arm(Shyi(splits, **steps)),
        "conform": arm(Shyi(splits, actions=False, **steps)),
        "plain": arm(),
        "wrong things": arm(Shyi([misattached(split) for split in splits], **steps)),
    }
    expect, texts = "shyi > conform > plain", prompts.texts
    return [
        lab.compare(arms, prompts.relations, expect=expect, control="wrong things", texts=texts),
        lab.compare(arms, prompts.complete, expect="shyi > plain", texts=texts),
    ]
