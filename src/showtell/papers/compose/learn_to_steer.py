"""Learn-to-Steer: Data-Driven Loss Functions for Inference-Time Optimization in Text-to-Image Generation.
Yiflach, Atzmon, Chechik, 2025, arXiv 2509.02295

A small classifier reads from the attention maps of two objects how they lie to each other, and its cross-entropy is the
loss by which latents are moved while sampling. It is trained on maps of inverted pictures, each inverted twice, with a
true and with a false relation in the prompt; otherwise it would learn to read the relation's word, which leaks into the
objects' maps, instead of the geometry.

Faithful: maps of all heads and layers at 16x16, a word's tokens averaged; the classifier's two transformers with a
query that pools one map per object, told the time; fixed-point inversion of 5 iterations without guidance, recorded at
the shares 0.1 to 0.5 and 0.98 of the steps, pictures left out below 19.5 dB; AdamW with a rate of 1e-4 and a decay of
0.05 on batches of 64; gradient steps of 5 (Stable Diffusion 1.4: 7.5), up to 16 in each step of the first half; of
several relations one after the other.
Ours: triplets are read off neighbouring noun phrases instead of by spaCy. Maps have a mean of one (the released code: a
sum), or else the first layer would have to learn to see them beside the layers' positions. Training takes a number of
steps, where the paper stops early on held-out data. A sample's steps end at one loss, 7e-5, which is the released
code's from the fourth step of the sampling on.
Scaled down: 96 drawn pictures, 2 iterations of the inversion, a narrower classifier, 3 gradient steps, each divided by
its largest value in all arms, as the scale of a classifier's slope is its own; their size, 0.1, was not tuned.

Does not hold, for want of a weak rival: 0.83 of the relations are right with it, plainly 0.31, but 1.00 with the
handcrafted loss, which compares the very centroids that relations of drawn things are made of. Nor does the second
inversion matter here (0.86 without it; 24 prompts, 3 seeds).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.base import Run
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN
from showtell.measure.scores import psnr
from showtell.nets.relation_classifier import LEVELS, RelationClassifier
from showtell.steer.gradients import AttentionGradient
from showtell.steer.inversion import Inversion
from showtell.steer.lists import lists_of
from showtell.steer.maps import Where, places
from showtell.steer.regions import positions_of
from showtell.steer.relations import RELATIONS, RecordPairedMaps, Triplet, centroid_loss, paired_maps, read, triplets_of
from showtell.train import fit
from showtell.train.batches import Batch, Pool
from showtell.train.samples import drawn
from showtell.world.language.english import indefinite
from showtell.world.sampling import sample

EXAMPLE = """
import showtell
from showtell.papers.compose.learn_to_steer import LearnToSteer, classifier_of, recorded

bridge = showtell.load("stabilityai/stable-diffusion-2-1-base")
pictures = bridge.generate(["a dog left of a cat", "a cup above a book"], seed=[1, 2])    # better: thousands from GQA
triplets = [("dog", "left of", "cat"), ("cup", "above", "book")]
classifier = classifier_of(recorded(bridge, pictures, triplets, num_inference_steps=50), steps=5000)
[image] = bridge.generate("a giraffe above an airplane", using=[LearnToSteer(classifier)], seed=0)
"""


def recorded(
    bridge: Any, pictures: Sequence[Any], triplets: Sequence[Triplet], levels: Sequence[float] = LEVELS,
    iterations: int = 5, least: float = 19.5, side: int = 16, seed: int = 0, at_once: int = 32, **call: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Maps of pictures whose relation is known, inverted with that relation in the prompt and with another one.

    maps (n, 2, channels, side, side), level (n,) its number, label (n,) the relation's number in the picture, false
    (n,) whether the prompt said another. least: dB that both inversions must give back. call: keywords of `generate`,
    whose height and width are the pictures' own where they are not given.
    Raises ShowtellError for a relation that is not among `RELATIONS`, and where no inversion is good enough.
    """
    if unknown := [relation for _, relation, _ in triplets if relation not in RELATIONS]:
        raise ShowtellError(f"unknown relation {unknown[0]!r}; use one of: {', '.join(RELATIONS)}")
    rng, found = random.Random(seed), []
    call = {"height": pictures[0].height, "width": pictures[0].width, "guidance_scale": 1.0, **call}
    others = [(a, rng.choice([one for one in RELATIONS if one != relation]), b) for a, relation, b in triplets]
    for start in range(0, len(triplets), at_once):
        some = slice(start, start + at_once)
        latents = bridge.to_latents(list(pictures[some]), call["height"], call["width"])
        kept, good = list[Tensor](), torch.ones(1, dtype=torch.bool)
        for told in (triplets[some], others[some]):
            using = [RecordPairedMaps(kept, told, levels, side), Inversion(latents, iterations=iterations)]
            said = [f"{indefinite(a)} {relation} {indefinite(b)}" for a, relation, b in told]
            again = bridge.generate(said, using=using, **call)
            near = [psnr(one, two.resize(one.size)) for one, two in zip(pictures[some], again, strict=True)]
            # An object whose words the encoder cuts off has no maps.
            good = good & (torch.tensor(near) >= least) & kept[-1].flatten(1).isfinite().all(dim=1)
        labels = torch.tensor([RELATIONS.index(relation) for _, relation, _ in triplets[some]])[good]
        for false, maps in enumerate(kept):
            found.append({
                "maps": maps[good].flatten(0, 1),
                "level": torch.arange(len(levels)).repeat(len(labels)),
                "label": labels.repeat_interleave(len(levels)),
                "false": torch.full((len(labels) * len(levels),), bool(false)),
            })  # fmt: skip
    data = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    if not len(data["maps"]):
        raise ShowtellError(f"no picture was given back at {least} dB; use more steps or iterations, or less `least`.")
    return data


def classifier_of(
    data: dict[str, Tensor], steps: int = 5000, batch_size: int = 64, lr: float = 1e-4, dual: bool = True,
    seed: int = 0, **sizes: Any,
) -> RelationClassifier:  # fmt: skip
    """A classifier trained on what `recorded` gives. dual: also on prompts that say another relation."""
    rows = slice(None) if dual else ~data["false"]
    chosen = {name: values[rows] for name, values in data.items()}

    def loss(model: Any, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        logits = model(batch["maps"].float(), batch["level"]).float()
        right = (logits.argmax(dim=1) == batch["label"]).float().mean()
        return F.cross_entropy(logits, batch["label"]), {"right": right}

    torch.manual_seed(seed)
    model = RelationClassifier(chosen["maps"].shape[2], chosen["maps"].shape[-1], **sizes)
    pool = Pool({name: values.numpy() for name, values in chosen.items()}, batch_size)
    made = fit(model, loss, pool, steps=steps, lr=lr, weight_decay=0.05, seed=seed, progress=False)
    return made.model.requires_grad_(False)


class LearnToSteer(AttentionGradient):
    """Before a step: latents <- latents - size * gradient of the classifier's cross-entropy for the wanted relations.

    triplets: of all samples, or a list for each; None reads them off the prompts. A sample without any stays as it is.
    size 0 changes nothing. Others: see `AttentionGradient`.
    """

    def __init__(
        self, classifier: RelationClassifier, triplets: Sequence[Triplet] | Sequence[Sequence[Triplet]] | None = None,
        size: float = 5.0, until: float = 0.5, refinements: int = 16, enough: float | None = 7e-5,
        normalised: bool = False, where: Where | None = None,
    ) -> None:  # fmt: skip
        super().__init__(self.losses, where, size, until, refinements, enough, normalised)
        self.classifier, self.triplets = classifier, triplets

    def start(self, run: Run, latents: Tensor) -> None:
        if self.triplets is None:
            given = [read(run, prompt) for prompt in run.prompts]
        else:
            given = lists_of(self.triplets, len(run.prompts), "triplets", tuple)
        run.state(self).wanted = []
        for prompt, own in zip(run.prompts, given, strict=True):
            found = [([positions_of(run, prompt, a), positions_of(run, prompt, b)], r) for a, r, b in own]
            run.state(self).wanted.append([(pair, RELATIONS.index(r)) for pair, r in found if all(pair)])

    def turn(self, run: Run) -> list[Any]:
        """Each sample's triplet of this gradient step; one of no meaning where it has none."""
        state = run.state(self)
        return [own[state.turn % len(own)] if own else ([[0], [0]], 0) for own in state.wanted]

    def wants(self, run: Run, place: Place) -> bool:
        return place.fold == 1 and super().wants(run, place)

    def attention(self, run: Run, site: Any) -> None:
        pairs = [pair for pair, _ in self.turn(run)]
        run.state(self).maps.append(paired_maps(site, pairs, self.classifier.side))

    def before(self, run: Run, latents: Tensor) -> Tensor | None:
        run.state(self).turn = 0
        return super().before(run, latents) if any(run.state(self).wanted) else None

    def gradient(self, run: Run, latents: Tensor) -> tuple[Tensor, Tensor]:
        found = super().gradient(run, latents)
        run.state(self).turn += 1
        return found

    def losses(self, run: Run, maps: list[Any]) -> Tensor:
        """Cross-entropy of each sample, (n,); 0 where it has no triplet."""
        seen, levels = torch.cat(maps, dim=2), self.classifier.levels
        if seen.shape[2] != self.classifier.channels:
            trained = self.classifier.channels
            raise ShowtellError(f"{seen.shape[2]} maps here, but the classifier was trained on {trained}.")
        number = next((i for i, level in enumerate(levels) if run.progress <= level + 1e-9), len(levels) - 1)
        wanted = torch.tensor([relation for _, relation in self.turn(run)], device=seen.device)
        named = torch.tensor([bool(own) for own in run.state(self).wanted], device=seen.device)
        lost = F.cross_entropy(self.classifier(seen, torch.full_like(wanted, number)), wanted, reduction="none")
        return torch.where(named, lost, 0.0 * lost)


PICTURES, TRAINING = 96, 500
SIZES: dict[str, Any] = {"width": 64}


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet"), lab.prompts("relations", min(lab.n, 24), kinds=RELATIONS)

    def record() -> dict[str, Tensor]:
        pairs = {**PLAIN, "distinct": ("shape", "colour")}
        parts = [sample(PICTURES // 4, i, "train", 2, relation=kind, **pairs) for i, kind in enumerate(RELATIONS)]
        scenes = [scene for part in parts for scene in part]
        return recorded(bridge, drawn(scenes), [triplet for [triplet] in map(triplets_of, scenes)], iterations=2)

    @cache
    def classifier(dual: bool, seed: int) -> RelationClassifier:
        data = lab.trained("maps", record, shared=True, pictures=PICTURES)

        def train(seed: int) -> RelationClassifier:
            return classifier_of(data, TRAINING, lr=5e-4, dual=dual, seed=seed, **SIZES)

        state = lab.trained("dual" if dual else "single", train, seed, shared=True, steps=TRAINING)
        model = RelationClassifier(data["maps"].shape[2], data["maps"].shape[-1], **SIZES)
        model.load_state_dict(state)
        return model.eval().requires_grad_(False)

    steps: dict[str, Any] = {"size": 0.1, "normalised": True, "refinements": 3}

    def steered(dual: bool, seed: int) -> list[Any]:
        return bridge.generate(prompts.texts, using=[LearnToSteer(classifier(dual, seed), **steps)], seed=seed)

    handcrafted = AttentionGradient(centroid_loss, places(largest=16), **steps)
    arms: dict[str, Any] = {
        "learn-to-steer": partial(steered, True),
        "handcrafted": lambda seed: bridge.generate(prompts.texts, using=[handcrafted], seed=seed),
        "plain": lambda seed: bridge.generate(prompts.texts, seed=seed),
        "single inversion": partial(steered, False),
    }
    expect = "learn-to-steer > handcrafted, handcrafted > plain"
    return lab.compare_by((prompts.relations, prompts.objects), arms, expect=expect, control="single inversion")
