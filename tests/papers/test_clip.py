"""CLIP: the loss and the classifier by hand, crops, ranks and probes, what trains and what does not, every host."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from examples import run_example
from hosts import hosts
from laboratory import Laboratory

from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.papers.represent import clip as module
from showtell.papers.represent.clip import classifier, contrast, ranks, zero_shot
from showtell.train.bag_of_words import BagOfWords, predict_words
from showtell.train.narrow_models import narrow_clip, narrow_clip_bridge
from showtell.train.pairs import cropped, pairs_of
from showtell.train.probes import linear_probe
from test_bridges_clip import make

TEXTS = ["a red ring", "the blue star", "a big green square", "a cat on the table"]


def fresh(name: str = "clip") -> ClipBridge:
    return ClipBridge(*make(name))


@cache
def shared(name: str = "clip") -> ClipBridge:
    return fresh(name)


def pictures(count: int = 4) -> list[np.ndarray]:
    """Plain pictures of different colours, each a little noisy."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (count, 1, 1, 3)) + rng.integers(-9, 10, (count, 16, 16, 3))
    return list(colours.astype(np.uint8))


class Planted:
    """Embeds a text as the unit vector of its first known word, a little towards the last."""

    directions = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 1.0, 0.0), "ring": (0.0, 0.0, 1.0)}

    def embed(self, images: Any = None, texts: Any = None) -> torch.Tensor:
        if texts is None:
            return torch.tensor(images)
        sums = [torch.tensor([self.directions[w] for w in text.split() if w in self.directions]) for text in texts]
        return torch.nn.functional.normalize(torch.stack([one.sum(dim=0) for one in sums]), dim=-1)


def test_a_class_is_the_mean_direction_of_its_templates() -> None:
    """ "red" and "red ring" lie at 0 and 45 degrees; their mean at 22.5."""
    found = classifier(Planted(), ["red", "blue"], ["{}", "{} ring"])
    half = math.radians(22.5)
    assert torch.allclose(found[0], torch.tensor([math.cos(half), 0.0, math.sin(half)]), atol=1e-6)
    assert torch.allclose(found.norm(dim=-1), torch.ones(2)) and torch.equal(found[0, [1, 0, 2]], found[1])


def test_ranks_count_what_is_better() -> None:
    """The second image lies nearest to the first text, then to its own."""
    images = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]
    found, told = ranks(Planted(), images, ["red", "blue", "ring"])
    assert found.tolist() == [0, 1, 0] and told.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", hosts("clip", "clip", "siglip"))
def test_hosts_classify_and_rank(name: str) -> None:
    """One template and one name is the plain cosine; chances sum to one and follow the cosines."""
    bridge, images = shared(name), pictures()
    assert torch.allclose(classifier(bridge, TEXTS, ["{}"]), bridge.embed(texts=TEXTS), atol=1e-6)
    chances = zero_shot(bridge, images, TEXTS, ["{}"])
    cosines = bridge.embed(images) @ bridge.embed(texts=TEXTS).T
    assert torch.allclose(chances.sum(dim=1), torch.ones(4)) and torch.equal(chances.argmax(1), cosines.argmax(1))
    scale = float(bridge.model.logit_scale.detach().exp())
    assert torch.allclose(chances, (scale * cosines).softmax(dim=1), atol=1e-5)
    assert not torch.allclose(zero_shot(bridge, images, TEXTS, ["{}", "a photo of {}"]), chances)
    found, told = ranks(bridge, images, TEXTS)
    assert found.tolist() == [int((row > row[i]).sum()) for i, row in enumerate(cosines)]
    assert told.tolist() == [int((row > row[i]).sum()) for i, row in enumerate(cosines.T)]


def test_a_probe_is_the_ridge_of_logistic_regression() -> None:
    """The penalised optimum: its gradient, from the probabilities, is zero; separable data are told apart."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] + 0.2 * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    probe = linear_probe(x, labels.tolist(), strength=2.0)
    apart = probe(x).softmax(dim=-1) - torch.nn.functional.one_hot(labels, 3)
    assert (apart.T @ x + 2.0 * probe.weight).abs().max() < 2e-2 and apart.sum(0).abs().max() < 2e-2
    apart = (x[:, 0] + 0.2 * x[:, 1] > 0).long()
    assert (linear_probe(x, apart.tolist(), 1e-4)(x).argmax(1) == apart).all()


def test_crops_are_squares_of_the_picture() -> None:
    """A crop of a slope is a less steep slope, the same along both sides, within the picture's values."""
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    batch = {"pixels": torch.cat([ramp, ramp.mT], dim=1).repeat(50, 1, 1, 1).numpy()}
    made = cropped(batch, np.random.default_rng(0), 0.5)["pixels"]
    assert torch.equal(cropped(batch, np.random.default_rng(0), 0.5)["pixels"], made)
    across, down = made[:, 0, 16, 8:24].diff(dim=-1).mean(1), made[:, 1, 8:24, 16].diff(dim=-1).mean(1)
    full = float(ramp[0, 0, 0].diff().mean())
    assert torch.allclose(across, down, atol=1e-3), "it is a square"
    assert across.max() <= full + 1e-3 and 0.45 * full < across.min() < 0.6 * full
    assert made.min() >= -1 and made.max() <= 1
    whole = cropped(batch, np.random.default_rng(0), 1.0)["pixels"]
    assert torch.allclose(whole, torch.from_numpy(batch["pixels"]), atol=1e-4)


def test_contrast_finds_the_pairs_and_permuted_captions_do_not() -> None:
    after = {}
    for permuted in (False, True):
        bridge = fresh()
        contrast(bridge, pictures(), TEXTS, 60, least=1.0, permuted=permuted, batch_size=4, lr=3e-3)
        after[permuted] = bridge.embed(pictures()) @ bridge.embed(texts=TEXTS).T
    assert ranks(_embedding(after[False]), None, TEXTS)[0].sum() == 0
    own, wrong = after[False].diagonal().mean(), after[False].mean()
    assert own - wrong > 0.3 and abs(after[True].diagonal().mean() - after[True].mean()) < 0.1


def _embedding(cosines: torch.Tensor) -> Any:
    class Known:
        def embed(self, images: Any = None, texts: Any = None) -> torch.Tensor:
            return cosines if texts is None else torch.eye(len(cosines))

    return Known()


def test_bags_of_words() -> None:
    """Order and repeats do not count, nor do the marks around a text; training finds the words."""
    bridge = fresh()
    model = BagOfWords(bridge)
    ids = torch.from_numpy(pairs_of(bridge, pictures(3), ["a red ring", "ring red a", "a red red ring ring"])["ids"])
    bags = model.bags(ids)
    assert torch.allclose(bags[0], bags[1]) and torch.allclose(bags[0], bags[2])
    assert sorted(bags[0][bags[0] > 0].tolist()) == pytest.approx([1 / 3] * 3)
    made = predict_words(bridge, pictures(), TEXTS, 200, least=1.0, batch_size=4, lr=3e-3)
    batch = pairs_of(bridge, pictures(), TEXTS)
    fits = made.fits(torch.from_numpy(batch["pixels"]), torch.from_numpy(batch["ids"]))
    assert fits.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_a_bridge_over_narrow_pictures() -> None:
    """A picture of its own size goes in as it is, in [-1, 1]; a larger one is scaled, not cut."""
    bridge = narrow_clip_bridge(narrow_clip(0, 64, 1))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    large = image.repeat(2, axis=0).repeat(2, axis=1)
    [own] = pairs_of(bridge, [image], TEXTS[:1])["pixels"]
    [same] = pairs_of(bridge, [large], TEXTS[:1])["pixels"]
    assert np.allclose(own, image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)
    assert same.shape == own.shape and np.corrcoef(same.ravel(), own.ravel())[0, 1] > 0.9


def test_templates_need_a_place_for_the_name() -> None:
    with pytest.raises(ShowtellError, match="each needs a"):
        classifier(shared(), TEXTS, ["a photo"])
    with pytest.raises(ShowtellError, match="each needs a"):
        classifier(shared(), TEXTS, [])


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 8, "STEPS": 1, "WIDTH": 64, "LAYERS": 1}.items():
        monkeypatch.setattr(module, name, value)
    lab: Any = Laboratory(seeds=1)
    classes, captions = module.experiment(lab)
    assert classes.scores["contrastive"].shape == (1, 8) and captions.scores["contrastive"].shape == (1, 2)  # type: ignore[attr-defined]
    assert (captions.scores["majority class"] == 0.5).all()  # type: ignore[attr-defined]
    assert classes.control == captions.control == "captions permuted"


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    import hosts as families

    maker: Any = families.bridge_of("sd")
    call = maker.generate
    short = {key: value for key, value in families.keywords("sd").items() if key not in ("output_type", "seed")}
    monkeypatch.setattr(maker, "generate", lambda *args, **more: call(*args, **{**short, **more}))
    found = run_example(module.EXAMPLE, monkeypatch, {"clip": fresh(), "stable-diffusion": maker})
    assert found["chances"].shape == (1, 3) and found["found"].shape == (2,)
