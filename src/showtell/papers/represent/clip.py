"""CLIP: Learning Transferable Visual Models From Natural Language Supervision.
Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever, 2021, arXiv 2103.00020

An image tower and a text tower learn which caption of a batch goes with which image. Any classes that can be named are
then a linear classifier without training: the vectors of their names, averaged over several sentences.

Faithful: the symmetric cross entropy with a learnt temperature of at most 100, begun at 0.07; crops as the only
augmentation; zero-shot classifiers as an average over templates; ranking both ways; a linear probe by L-BFGS; the
bag-of-words baseline, which gives every word a probability from the image alone. The caption language model, the
paper's third arm, is `train.bases.seeing.vlm` and left out of the experiment for its time.
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
from torch import Tensor, nn

from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.prompts import PLAIN, SIDES
from showtell.train.bases import seeing, text
from showtell.train.batches import Batch, Pool
from showtell.train.objectives import contrastive_loss
from showtell.train.trainer import fit
from showtell.world import SceneObject, draw, sample
from showtell.world.language import english
from showtell.world.language.captions import stated
from showtell.world.scene import COLOURS, SHAPES

TEMPLATES = ("{}", "there is {}", "a picture of {}")

EXAMPLE = """
import showtell
from showtell.papers.represent.clip import classifier, contrast, linear_probe, ranks, zero_shot

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


def linear_probe(features: Tensor, labels: Sequence[int], strength: float = 0.316, rounds: int = 1000) -> nn.Linear:
    """Logistic regression on frozen features (n, d) by L-BFGS; strength: of the L2 penalty, as scikit-learn's 1 / C."""
    with torch.enable_grad():
        wanted = torch.as_tensor(labels, device=features.device)
        probe = nn.Linear(features.shape[1], int(wanted.max()) + 1).to(features)
        nn.init.zeros_(probe.weight)
        nn.init.zeros_(probe.bias)
        optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=rounds, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            fits = F.cross_entropy(probe(features), wanted, reduction="sum")
            loss: Tensor = fits + strength / 2 * probe.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return probe.requires_grad_(False)


def cropped(batch: Batch, rng: np.random.Generator, least: float = 0.7) -> Batch:
    """The batch with a random square of every picture, at least so long a side of it, brought back to full size."""
    pixels = torch.as_tensor(batch["pixels"])
    n, scale = len(pixels), torch.from_numpy(rng.uniform(least, 1, (len(pixels),))).float()
    shift = torch.from_numpy(rng.uniform(-1, 1, (n, 2))).float() * (1 - scale)[:, None]
    where = torch.zeros(n, 2, 3)
    where[:, 0, 0], where[:, 1, 1], where[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(where, list(pixels.shape), align_corners=False)
    return {**batch, "pixels": F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)}


def pairs_of(bridge: Any, images: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What `contrast` trains on: pixels (n, 3, h, w), and ids and mask (n, length) as short as the texts allow."""
    seen = bridge.processor.image_processor(list(images), return_tensors="np")["pixel_values"]
    length = bridge.model.config.text_config.max_position_embeddings
    told = bridge.processor.tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="np"
    )
    return {"pixels": seen, "ids": told["input_ids"], "mask": told["attention_mask"]}


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

    _fit(bridge.model, loss, pairs_of(bridge, images, texts), least, steps=steps, **more)


def _fit(model: nn.Module, loss: Any, pairs: Batch, least: float, batch_size: int = 128, **more: Any) -> None:
    call = {"weight_decay": 0.2, "betas": (0.9, 0.98), "ema": None, "precision": "no", "progress": False, **more}
    fit(model, loss, Pool(pairs, batch_size, partial(cropped, least=least)), **call)


class BagOfWords(nn.Module):
    """The baseline: an image tower that gives every token of a caption, whatever its place, its probability."""

    def __init__(self, bridge: ClipBridge) -> None:
        super().__init__()
        self.tower = bridge.model.vision_model
        self.words = nn.Linear(bridge.model.config.vision_config.hidden_size, len(bridge.processor.tokenizer))
        self.special = bridge.processor.tokenizer.all_special_ids

    def forward(self, pixels: Tensor) -> Tensor:
        """Logarithms of the probabilities of tokens, (n, vocabulary)."""
        return self.words(self.tower(pixel_values=pixels).pooler_output).log_softmax(dim=-1)

    def bags(self, ids: Tensor) -> Tensor:
        """(n, vocabulary) of ids (n, length): each row shared equally among the different tokens of a caption."""
        found = torch.zeros(len(ids), self.words.out_features, device=ids.device).scatter_(1, ids, 1.0)
        found[:, self.special] = 0
        return found / found.sum(dim=1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def fits(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """How well captions fit images, (images, captions): minus the divergence of the words from what is expected."""
        bags = self.bags(ids)
        return self(pixels) @ bags.T + torch.special.entr(bags).sum(dim=1)


def predict_words(
    bridge: Any, images: Any, texts: Sequence[str], steps: int, least: float = 0.7, **more: Any
) -> BagOfWords:  # fmt: skip
    """Trains the bridge's image tower to predict the words of the captions (figure 2's baseline); as `contrast`."""

    def loss(model: BagOfWords, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        return -(model.bags(batch["ids"]) * model(batch["pixels"])).sum(dim=1).mean(), {}

    made = BagOfWords(bridge)
    _fit(made, loss, pairs_of(bridge, images, texts), least, steps=steps, **more)
    return made.eval()


SIDE, WIDTH, LAYERS, SCENES, STEPS = 32, 64, 3, 12_000, 300
WORLD = PLAIN | {"shape": SHAPES[::2]}


def miniature(seed: int) -> ClipBridge:
    """A CLIPModel with random weights over 32x32 pictures, 16 patches."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer, half, size = text.clip_tokenizer(), [0.5, 0.5, 0.5], {"height": SIDE, "width": SIDE}
    told = text.clip_text(tokenizer, WIDTH, 2).config.to_dict()
    seen = seeing.vision_sizes(WIDTH, LAYERS) | {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=told, vision_config=seen, projection_dim=WIDTH))
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size, image_mean=half, image_std=half)
    return ClipBridge(model, CLIPProcessor(images, tokenizer))


def experiment(lab: Lab) -> list[Comparison]:
    @cache
    def pairs() -> tuple[list[Any], list[str]]:
        alone = sample(SCENES // 2, 0, "train", objects=1, **WORLD)
        scenes = alone + sample(SCENES - len(alone), 0, "train", objects=2, relation=SIDES, **WORLD)
        rng = np.random.default_rng(0)
        wordings = rng.choice(["plain", "terse", "paraphrase-1", "paraphrase-2", "paraphrase-3"], len(scenes))
        return list(draw(scenes, SIDE)), [s.caption("en", str(w)) for s, w in zip(scenes, wordings, strict=True)]

    @cache
    def contrasted(seed: int, permuted: bool = False) -> ClipBridge:
        def make(seed: int) -> Any:
            bridge = miniature(seed)
            contrast(bridge, *pairs(), STEPS, permuted=permuted, seed=seed)
            return bridge.model

        bridge = miniature(seed)
        bridge.model.load_state_dict(lab.trained("permuted" if permuted else "clip", make, seed, shared=True))
        return bridge

    @cache
    def worded(seed: int) -> tuple[ClipBridge, BagOfWords]:
        bridge = miniature(seed)
        state = lab.trained(
            "words", lambda seed: predict_words(miniature(seed), *pairs(), STEPS, seed=seed), seed, shared=True
        )
        made = BagOfWords(bridge)
        made.load_state_dict(state)
        return bridge, made.eval()

    def fits(seed: int, images: np.ndarray, texts: Sequence[str]) -> Tensor:
        bridge, model = worded(seed)
        found = pairs_of(bridge, images, texts)
        return model.fits(torch.from_numpy(found["pixels"]), torch.from_numpy(found["ids"]))

    own = 2 * lab.seed + (lab.split == "validation")  # the unseen scenes are in no split of prompts
    unseen = sample(4 * lab.n, own, "unseen", objects=1, **WORLD)
    names = [english.a(stated(SceneObject(shape, colour))) for shape in SHAPES[::2] for colour in COLOURS]
    kinds = [(shape, colour) for shape in SHAPES[::2] for colour in COLOURS]
    wanted = np.array([kinds.index((scene.objects[0].shape, scene.objects[0].colour)) for scene in unseen])
    couples = sample(lab.n, own, lab.split, objects=2, relation=SIDES, distinct=("shape", "colour"), **WORLD)
    told_of = [scene.caption() for scene in couples]

    def right(found: Tensor) -> np.ndarray:
        return (found.argmax(dim=1).numpy() == wanted).astype(float)

    def classified(permuted: bool, templates: Sequence[str], seed: int) -> np.ndarray:
        return right(zero_shot(contrasted(seed, permuted), list(draw(unseen, SIDE)), names, templates))

    def recalled(permuted: bool, seed: int) -> np.ndarray:
        found, _ = ranks(contrasted(seed, permuted), list(draw(couples, SIDE)), told_of)
        return (found == 0).numpy().astype(float)

    def told(seed: int) -> np.ndarray:
        found = fits(seed, draw(couples, SIDE), told_of)
        return (found > found.diagonal()[:, None]).sum(dim=1).eq(0).numpy().astype(float)

    classes: dict[str, Callable[[int], np.ndarray]] = {
        "contrastive": partial(classified, False, TEMPLATES),
        "bag of words": lambda seed: right(fits(seed, draw(unseen, SIDE), names)),
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
        lab.compare(
            classes,
            expect="contrastive > bag of words, contrastive > majority class",
            control=control,
            name="accuracy on unseen pairs",
        ),
        lab.compare(
            captions,
            expect="contrastive > bag of words, bag of words > majority class",
            control=control,
            name="recall at 1",
        ),
    ]
