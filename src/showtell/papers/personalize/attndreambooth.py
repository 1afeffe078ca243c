"""AttnDreamBooth: Towards Text-Aligned Personalized Text-to-Image Generation.
Pang, Yin, Zhao, Wu, Wang, Li, Mao, 2024, arXiv 2406.05000

A concept is learnt in three stages, each with what the one before has settled: how its word fits among other words,
where its word looks, and how it looks. In all of them the word is to be attended to as strongly, and as unevenly, as
the word of its category, which prompts can already compose with other things.

Faithful: "a photo of a [V] category"; the word's embedding, which begins as the category's, then cross-attention, then
the whole UNet, the embedding fixed; rates, steps and the regulariser's weights of the released script; differences of
means and variances of both words' maps, squared, averaged over the layers of cross-attention and, as in that script,
summed over a batch, for which the weights are. Ours: maps are averaged over heads, batches are of 4. Scaled down: the
miniature UNet with higher rates over fewer steps, on a shape in an unseen colour and texture; "a sks star" without a
photo, and a word that begins as a colour, as the base draws nothing without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.concepts import ConceptPrompts, concept, shown_by
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.maps import token_maps
from showtell.steer.regions import positions_of
from showtell.steer.tokens import NewWord
from showtell.train.denoising import only
from showtell.train.noising import Noising
from showtell.train.samples import latents_of, paired
from showtell.train.trainer import fit

EXAMPLE = """
import showtell
from showtell.papers.personalize.attndreambooth import Stage, attndreambooth

bridge = showtell.load("stabilityai/stable-diffusion-2-1-base")
pictures = bridge.generate(["a red cat"] * 4, seed=7)                      # yours, of one thing
attndreambooth(bridge, pictures, "sks", "cat", [Stage("word", 2, 1e-3), Stage("unet", 2, 2e-6)])  # or leave stages out
[image] = bridge.generate("a sks cat left of a blue star", seed=0)
"""


@dataclass(frozen=True)
class Stage:
    """What is trained ("word", "attention", "unet" or "word and unet"), for how long, and the regulariser's weights."""

    part: str
    steps: int
    lr: float
    mean: float = 0.0
    variance: float = 0.0


STAGES = (
    Stage("word", 60, 1e-3, 0.1, 0.0),
    Stage("attention", 100, 2e-5, 2.0, 5.0),
    Stage("unet", 500, 2e-6, 2.0, 5.0),
)


class Alike(Technique):
    """Collects, while a denoiser is trained, how differently two words of each prompt are attended to."""

    def __init__(self, word: str, category: str, mean: float, variance: float) -> None:
        self.words, self.mean, self.variance = (word, category), mean, variance
        self.found: list[Tensor] = []

    def wants(self, run: Run, place: Place) -> bool:
        return place.kind == "cross"

    def attention(self, run: Run, site: Any) -> None:
        maps = token_maps(site)
        if maps is None:
            return
        for values, prompt in zip(maps.values, run.prompts, strict=True):
            self.found.append(self.difference(*(values[positions_of(run, prompt, w)].mean(0) for w in self.words)))

    def difference(self, one: Tensor, other: Tensor) -> Tensor:
        """Of two maps (height, width), a scalar."""
        apart = self.mean * (one.mean() - other.mean()).square()
        return apart + self.variance * (one.var(correction=0) - other.var(correction=0)).square()


def attndreambooth(
    bridge: Any, pictures: Sequence[Any], word: str, category: str, stages: Sequence[Stage] = STAGES,
    prompt: str = "a photo of a {} {}", like: str | None = None, batch_size: int = 4, seed: int = 0, **options: Any,
) -> NewWord:  # fmt: skip
    """Teaches the bridge a concept in place: prompts may then say "[word] [category]"; the word.

    like: what the word begins as, by default the category. options: as for `Noising`. Raises ShowtellError for a word
    that is known already, and as `NewWord` does.
    """
    noising, new = Noising(bridge, **options), NewWord(bridge, word, like or category)
    data = paired(latents_of(bridge, pictures), min(batch_size, len(pictures)))
    for number, stage in enumerate(stages):
        train(noising, new, prompt.format(word, category), category, data, stage, seed + number)
    return new


def train(noising: Noising, new: NewWord, prompt: str, category: str, data: Any, stage: Stage, seed: int = 0) -> None:
    """One stage. data: batches of latents."""
    denoiser, vectors = noising.adapter.denoiser, nn.ParameterList(new.vectors)
    new.vectors = list(vectors)
    parts: dict[str, list[Any]] = {
        "word": [vectors], "attention": [denoiser], "unet": [denoiser], "word and unet": [vectors, denoiser],
    }  # fmt: skip
    if stage.part not in parts:
        raise ShowtellError(f"unknown part {stage.part!r} of a model to train; use one of: {', '.join(parts)}")
    worded = "word" in stage.part
    denoiser.requires_grad_(stage.part != "word")
    if stage.part == "attention":
        only(denoiser, ["attn2"])

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        count, alike = len(batch["latents"]), Alike(new.word, category, stage.mean, stage.variance)
        with new.reading(), torch.set_grad_enabled(worded):
            text = noising.text([prompt] * count, trained=True)
        watching = [alike] if stage.mean or stage.variance else []
        run = noising.run([prompt] * count, watching)
        error = noising.loss(noising.noised(batch["latents"], generator), text, watching=watching, run=run)
        apart = count * torch.stack(alike.found).mean() if alike.found else error.detach() * 0
        return error + apart, {"mse": error.detach(), "apart": apart.detach()}

    fit(nn.ModuleList(parts[stage.part]), loss, data, steps=stage.steps, lr=stage.lr, schedule="constant", ema=None,
        weight_decay=0.0, precision="no", seed=seed, progress=False)  # fmt: skip
    new.keep()
    denoiser.eval().requires_grad_(False)


WORD, ATTENTION, UNET, SAMPLING = (60, 5e-3), (60, 3e-4), (120, 1e-4), 15


def experiment(lab: Lab) -> Comparison:
    prompts = lab.prompts("pairs", max(1, lab.n // 4))
    total = WORD[0] + ATTENTION[0] + UNET[0]
    stages: dict[str, list[Stage]] = {
        "attndreambooth": [Stage("word", *WORD, 0.1), Stage("attention", *ATTENTION, 2, 5), Stage("unet", *UNET, 2, 5)],
        "dreambooth": [Stage("word and unet", total, UNET[1])],
        "textual inversion": [Stage("word", total, WORD[1])],
        "first stage alone": [Stage("word", total, WORD[1], 0.1)],
        "no regulariser": [Stage("word", *WORD), Stage("attention", *ATTENTION), Stage("unet", *UNET)],
    }

    def parts(bridge: Any, new: NewWord) -> nn.ModuleDict:
        """All that is learnt."""
        words = nn.ParameterList(new.vectors)
        new.vectors = list(words)
        return nn.ModuleDict({"word": words, "unet": bridge.adapter.denoiser})

    def learnt(name: str, seed: int) -> nn.ModuleDict:
        bridge, shown = lab.base("unet", fresh=True), concept(seed)
        new = attndreambooth(bridge, shown.pictures(seed=seed), shown.word, shown.thing.shape, stages[name], "a {} {}",
                             shown.like, seed=seed)  # fmt: skip
        return parts(bridge, new)

    @cache
    def drawn(name: str, seed: int) -> tuple[ConceptPrompts, list[Any]]:
        bridge, shown = lab.base("unet", fresh=True), concept(seed)
        new = NewWord(bridge, shown.word, shown.like)
        parts(bridge, new).load_state_dict(lab.trained(name, partial(learnt, name), seed, steps=total))
        new.keep()
        wanted = ConceptPrompts(shown, prompts)
        return wanted, bridge.generate(wanted.texts, seed=seed, num_inference_steps=SAMPLING)

    arms: dict[str, Any] = {name: partial(drawn, name) for name in stages}
    expect = "attndreambooth > dreambooth, attndreambooth > textual inversion"
    return lab.compare(arms, shown_by("both"), expect=expect, control="first stage alone")
