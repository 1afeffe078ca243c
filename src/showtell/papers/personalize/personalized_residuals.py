"""Personalized Residuals for Concept-Driven Text-to-Image Generation.
Ham, Fisher, Hays, Kolkin, Liu, Zhang, Hinz, 2024, arXiv 2405.12978

A concept is learnt from a few pictures as low-rank residuals of one weight per transformer block, the projection that
closes it. Since the block's own cross-attention says where the concept is, the residual can be applied there alone, and
everything else is drawn by the model as it was.

Faithful: residuals A B on those projections of an otherwise frozen model, nothing at the start, the denoising loss on
"a photo of V* class" without regularisation pictures; localised sampling by each block's own maps of the concept's
words, made binary, in every step. Ours: the threshold (the mean of each map; the paper's was not to be had); the
residual is left out of what is drawn without words, too, outside the mask. In transformers the projection is that of a
block's feed-forward network. Scaled down: a shape in an unseen colour and texture, the miniature UNet; V* is a new word
that begins as a colour, as the base draws nothing whose colour is not said.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from showtell.bridges.base import Run, Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.concepts import ConceptPrompts, concept, shown_by
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.features import features
from showtell.steer.maps import token_maps
from showtell.steer.regions import positions_of
from showtell.steer.tokens import NewWord
from showtell.train.lora import add_lora, load_lora, lora_size, train_lora

EXAMPLE = """
import showtell
from showtell.papers.personalize.personalized_residuals import Localised, learn

bridge = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
pictures = bridge.generate(["a red cat"] * 4, seed=7)                      # yours, of one thing
learn(bridge, "sks", pictures, "a photo of a sks cat", steps=3, batch_size=2)
[everywhere] = bridge.generate("a sks cat left of a blue star", seed=0)
[image] = bridge.generate("a sks cat left of a blue star", using=[Localised("sks cat")], seed=0)
"""


def closing(denoiser: Any) -> list[str]:
    """The names of the projections that close each transformer block (of a UNet: each of its transformers)."""
    names = [name for name, _ in denoiser.named_modules()]
    found = [name for name in names if re.search(r"attentions\.\d+\.proj_out$", name)]
    found = found or [name for name in names if re.fullmatch(r"transformer_blocks\.\d+\.ff\.net\.2", name)]
    if not found:
        raise ShowtellError(f"{type(denoiser).__name__} has no transformer blocks with a closing projection.")
    return found


def learn(
    bridge: Any, name: str, pictures: list[Any], prompt: str, steps: int = 150, rank: int = 16, lr: float = 1e-3,
    batch_size: int = 4, seed: int = 0, **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Teaches the bridge's denoiser a concept that the prompt names; the residuals, which are then in use.

    They are a LoRA called `name`, so `bridge.adapter.denoiser` switches them. options: as for `generate`.
    """
    add_lora(bridge, name, rank, closing(bridge.adapter.denoiser))
    return train_lora(bridge, name, pictures, [prompt] * len(pictures), steps, batch_size, lr, seed, **options)


class Localised(Technique):
    """Residuals where the words of the concept are attended to, the original weights elsewhere.

    words: as prompts name the concept; a prompt without them is drawn without residuals. threshold: in deviations of a
    map above its mean.
    """

    def __init__(self, words: str, threshold: float = 0.0) -> None:
        self.words, self.threshold = words, threshold

    def start(self, run: Run, latents: Tensor) -> None:
        state, denoiser = run.state(self), run.adapter.denoiser  # type: ignore[attr-defined]
        # The closing projections keep their names inside a LoRA; what is not one was not taught anything.
        layers = {name: module for name, module in denoiser.named_modules() if hasattr(module, "lora_A")}
        state.layers = {name: layers[name] for name in layers if _block(name) is not None}
        if not state.layers:
            raise ShowtellError("this model has no residuals to localise; teach it a concept with learn(...).")
        state.positions = [positions_of(run, prompt, self.words) for prompt in run.prompts]
        state.masks, state.given = {}, {}

    def wants(self, run: Run, place: Place) -> bool:
        blocks = {_block(name) for name in run.state(self).layers}
        return place.text is not None and any(place.name.startswith(f"{block}.") for block in blocks)

    def attention(self, run: Run, site: Any) -> None:
        found, state = token_maps(site), run.state(self)
        if found is None:
            return
        rows = zip(found.values, state.positions, strict=True)
        masks = torch.stack([self.mask(maps[at].mean(0)) if at else torch.zeros_like(maps[0]) for maps, at in rows])
        block = next(b for b in map(_block, state.layers) if site.place.name.startswith(f"{b}."))
        state.masks[block] = masks

    def mask(self, values: Tensor) -> Tensor:
        """1 where the concept is, of a map (height, width)."""
        return (values > values.mean() + self.threshold * values.std()).float()

    def around(self, run: Run) -> AbstractContextManager[None]:
        state, denoiser = run.state(self), run.adapter.denoiser  # type: ignore[attr-defined]

        def remember(name: str, args: Any, kwargs: Any) -> None:
            state.given[name] = args[0]

        def mixed(name: str, output: Tensor) -> Tensor:
            plain = state.layers[name].base_layer(state.given.pop(name))
            mask = state.masks[_block(name)]
            mask = mask.repeat(len(output) // len(mask), 1, 1).to(output)
            mask = mask[:, None] if output.ndim == 4 else mask.flatten(1)[..., None]
            return plain + mask * (output - plain)

        return features(
            denoiser,
            {name: partial(remember, name) for name in state.layers},
            {name: partial(mixed, name) for name in state.layers},
        )


def _block(name: str) -> str | None:
    """The block that a projection closes."""
    found = re.match(r"(.*attentions\.\d+)\.proj_out$|(transformer_blocks\.\d+)\.ff\.net\.2$", name)
    return found and (found[1] or found[2])


class AnyPlace(Localised):
    """The control: a mask of the same size in cells drawn at random."""

    def mask(self, values: Tensor) -> Tensor:
        found = super().mask(values)
        order = torch.randperm(found.numel(), generator=torch.Generator().manual_seed(0))
        return found.flatten()[order].view_as(found)


STEPS, RANK, RATE, SAMPLING = 400, 32, 1e-2, 15
CROSS = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]


def experiment(lab: Lab) -> list[Comparison]:
    @cache
    def bridge(name: str, seed: int) -> tuple[Any, ConceptPrompts]:
        shown, made = concept(seed), lab.base("unet", fresh=True)
        NewWord(made, shown.word, shown.like).keep()
        layers, rank = closing(made.adapter.denoiser), RANK
        if name == "lora":  # with as many new parameters
            layers, rank = CROSS, max(1, round(RANK * lora_size(made, layers) / lora_size(made, CROSS)))
        add_lora(made, "sks", rank, layers)

        def trained(seed: int) -> dict[str, Tensor]:
            pictures, prompts = shown.pictures(seed=seed), [f"a {shown.name}"] * 4
            return train_lora(made, "sks", pictures, prompts, STEPS, batch_size=4, lr=RATE, seed=seed)

        load_lora(made, lab.trained(name, trained, seed, steps=STEPS, rank=RANK))
        return made, ConceptPrompts(shown, prompts)

    @cache
    def drawn(name: str, seed: int) -> tuple[ConceptPrompts, list[Any]]:
        made, wanted = bridge("lora" if name == "lora" else "residuals", seed)
        using = {"localised": Localised, "random mask": AnyPlace}.get(name)
        techniques = [using(wanted.concept.name)] if using else []
        return wanted, made.generate(wanted.texts, using=techniques, seed=seed, num_inference_steps=SAMPLING)

    prompts = lab.prompts("pairs", max(1, lab.n // 2))
    arms: dict[str, Any] = {n: partial(drawn, n) for n in ("localised", "everywhere", "lora", "random mask")}
    return [
        lab.compare(arms, shown_by("both"), expect="localised > lora"),
        lab.compare(arms, shown_by("rest"), expect="localised > everywhere"),
        lab.compare(arms, shown_by("identity"), expect="localised > everywhere - 0.03", control="random mask"),
    ]
