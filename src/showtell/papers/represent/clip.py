"""CLIP: Learning Transferable Visual Models From Natural Language Supervision.
Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever, 2021, arXiv 2103.00020

An image tower and a text tower learn which caption of a batch goes with which image. Any classes that can be named are
then a linear classifier without training: the vectors of their names, averaged over several sentences.

Faithful: the symmetric cross entropy with a learnt temperature of at most 100, begun at 0.07; crops as the only
augmentation; zero-shot classifiers as an average over templates; ranking both ways; a linear probe by L-BFGS
(`train.probes`); the bag-of-words baseline (`train.bag_of_words`), which gives every word a probability from the image
alone. The caption language model, the paper's third arm, is `train.bases.seeing.vlm` and left out for its time.
Scaled down: 32x32 pictures of one or two things of eight shapes, towers of a few layers, batches of 128; one colour and
shape in ten never meet in training, and on these all arms are asked. So early the predicted words are right in colours
and not yet in shapes, so that on single things they are not expected to beat the majority.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.measure.classes import ShapeClasses
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, SIDES
from showtell.train.bag_of_words import BagOfWords, predict_words
from showtell.train.batches import Batch
from showtell.train.narrow import SIDE
from showtell.train.narrow_models import narrow_clip, narrow_clip_bridge
from showtell.train.objectives import contrastive_loss
from showtell.train.pairs import fit_pairs, pairs_of
from showtell.world import draw, sample
from showtell.world.scene import SHAPES

TEMPLATES = ("{}", "there is {}", "a picture of {}")

EXAMPLE = """
import showtell
from showtell.papers.represent.clip import classifier, contrast, ranks, zero_shot
from showtell.train.probes import linear_probe

bridge = showtell.load("openai/clip-vit-base-patch32")
[image] = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5").generate("a red ring", seed=0)
names = ["a red ring", "a blue star", "a dog on the table"]
chances = zero_shot(bridge, [image], names, templates=["{}", "a photo of {}"])             # (1, 3)
found, told = ranks(bridge, [image] * 2, names[:2])                                        # 0 is the best
probe = linear_probe(bridge.embed([image] * 2), [0, 1])
contrast(bridge, [image] * 2, names[:2], steps=2, batch_size=2)                            # trains it further
"""


def classifier(bridge: Any, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """A unit vector per class, (classes, d): the mean direction of its name in all templates (section 3.1.4).

    Raises ShowtellError where a template has no {}.
    """
    if not templates or any("{}" not in one for one in templates):
        raise ShowtellError(f"templates={list(templates)!r}: each needs a {{}} for the name, as in 'a photo of {{}}'.")
    each = [bridge.embed(texts=[one.format(name) for name in names]) for one in templates]
    return F.normalize(torch.stack(each).mean(dim=0), dim=-1)


def zero_shot(bridge: Any, images: Any, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Chances of the named classes, (n, classes): softmax of the cosines at the model's temperature."""
    cosines = bridge.embed(images) @ classifier(bridge, names, templates).T
    return (bridge.model.logit_scale.detach().float().exp().clamp(max=100) * cosines).softmax(dim=-1)


def ranks(bridge: Any, images: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Of n pairs the rank of each image's own text among the texts, and of each text's own image; 0 is the best."""
    cosines = bridge.embed(images) @ bridge.embed(texts=list(texts)).T
    own = cosines.diagonal()
    return (cosines > own[:, None]).sum(dim=1), (cosines > own).sum(dim=0)


def contrast(
    bridge: Any, images: Any, texts: Sequence[str], steps: int, least: float = 0.7, permuted: bool = False, **more: Any
) -> None:  # fmt: skip
    """Trains a CLIP bridge in place to tell the pairs of a batch from all others (section 2.3, figure 3).

    least: the shortest side of a crop, as a share of the picture's. permuted: captions change places within the batch,
    the control. more: batch_size (128), and keywords of `train.trainer.fit`.
    """

    def loss(model: Any, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        ids, mask = batch["ids"], batch["mask"]
        if permuted:
            order = torch.randperm(len(ids), generator=generator, device=ids.device)
            ids, mask = ids[order], mask[order]
        out = model(input_ids=ids, attention_mask=mask, pixel_values=batch["pixels"])
        return contrastive_loss(out.image_embeds.float(), out.text_embeds.float(), model.logit_scale), {}

    fit_pairs(bridge.model, loss, pairs_of(bridge, images, texts), least, steps=steps, **more)


WIDTH, LAYERS, SCENES, STEPS = 64, 3, 12_000, 300
WORLD = PLAIN | {"shape": SHAPES[::2]}


def experiment(lab: Lab) -> list[Comparison]:
    @cache
    def pairs() -> tuple[list[Any], list[str]]:
        alone = sample(SCENES // 2, 0, "train", objects=1, **WORLD)
        scenes = alone + sample(SCENES - len(alone), 0, "train", objects=2, relation=SIDES, **WORLD)
        rng = np.random.default_rng(0)
        wordings = rng.choice(["plain", "terse", "paraphrase-1", "paraphrase-2", "paraphrase-3"], len(scenes))
        return list(draw(scenes, SIDE)), [s.caption("en", str(w)) for s, w in zip(scenes, wordings, strict=True)]

    def blank(seed: int) -> Any:
        return narrow_clip(seed, WIDTH, LAYERS)

    @cache
    def contrasted(permuted: bool, seed: int) -> ClipBridge:
        def learn(model: Any, seed: int) -> None:
            contrast(narrow_clip_bridge(model), *pairs(), STEPS, permuted=permuted, seed=seed)

        return narrow_clip_bridge(lab.network("permuted" if permuted else "clip", blank, learn, seed, shared=True))

    @cache
    def worded(seed: int) -> tuple[ClipBridge, BagOfWords]:
        def make(seed: int) -> Any:
            return predict_words(narrow_clip_bridge(blank(seed)), *pairs(), STEPS, seed=seed)

        bridge = narrow_clip_bridge(blank(seed))
        made = BagOfWords(bridge)
        made.load_state_dict(lab.trained("words", make, seed, shared=True))
        return bridge, made.eval()

    def fits(seed: int, images: np.ndarray, texts: Sequence[str]) -> Tensor:
        bridge, model = worded(seed)
        found = pairs_of(bridge, images, texts)
        return model.fits(torch.from_numpy(found["pixels"]), torch.from_numpy(found["ids"]))

    own = 2 * lab.seed + (lab.split == "validation")  # the unseen scenes are in no split of prompts
    unseen = sample(4 * lab.n, own, "unseen", objects=1, **WORLD)
    classes = ShapeClasses(WORLD["shape"])
    wanted = classes.of(unseen)
    couples = sample(lab.n, own, lab.split, objects=2, relation=SIDES, distinct=("shape", "colour"), **WORLD)
    told_of = [scene.caption() for scene in couples]

    def right(found: Tensor) -> np.ndarray:
        return (found.argmax(dim=1).numpy() == wanted).astype(float)

    def classified(permuted: bool, templates: Sequence[str], seed: int) -> np.ndarray:
        return right(zero_shot(contrasted(permuted, seed), list(draw(unseen, SIDE)), classes.names, templates))

    def recalled(permuted: bool, seed: int) -> np.ndarray:
        found, _ = ranks(contrasted(permuted, seed), list(draw(couples, SIDE)), told_of)
        return (found == 0).numpy().astype(float)

    def told(seed: int) -> np.ndarray:
        found = fits(seed, draw(couples, SIDE), told_of)
        return (found > found.diagonal()[:, None]).sum(dim=1).eq(0).numpy().astype(float)

    named: dict[str, Callable[[int], np.ndarray]] = {
        "contrastive": partial(classified, False, TEMPLATES),
        "bag of words": lambda seed: right(fits(seed, draw(unseen, SIDE), classes.names)),
        "majority class": lambda seed: np.zeros(len(unseen)),  # what is frequent in training is not among these
        "one template": partial(classified, False, TEMPLATES[1:2]),
        "captions permuted": partial(classified, True, TEMPLATES),
    }
    captions: dict[str, Callable[[int], np.ndarray]] = {
        "contrastive": partial(recalled, False),
        "bag of words": told,
        "majority class": lambda seed: np.full(lab.n, 1 / lab.n),
        "captions permuted": partial(recalled, True),
    }
    control = "captions permuted"
    return [
        lab.compare(named, expect="contrastive > bag of words, contrastive > majority class", control=control,
                    name="accuracy on unseen pairs"),
        lab.compare(captions, expect="contrastive > bag of words, bag of words > majority class", control=control,
                    name="recall at 1"),
    ]  # fmt: skip
