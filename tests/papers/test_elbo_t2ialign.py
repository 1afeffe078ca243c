"""ELBO-T2IAlign: relative losses, calibration and weights by hand, losses equal to those of training, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import MMDIT, PROMPTS, UNET, bridge_of, hosts, keywords, sampled, words_of
from laboratory import Laboratory, run_example

from showtell.errors import ShowtellError
from showtell.papers.compose import elbo_t2ialign
from showtell.papers.compose.elbo_t2ialign import Evidence, PhraseWeights, evidence, relative
from showtell.train.noising import Noising

CLASSES = [["red ring", "star"], ["dog", "table"]]


class Watched(PhraseWeights):
    """Notes the weights of every step, and the text that it goes on with."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: list[torch.Tensor] = []
        self.texts: list[torch.Tensor] = []

    def weights(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        self.seen.append(super().weights(run, latents))
        return self.seen[-1]

    def before(self, run: Any, latents: torch.Tensor) -> None:
        super().before(run, latents)
        self.own = run.state(self).own.tokens
        self.texts.append(run.text.tokens)


def shown(name: str, **more: Any) -> list[Evidence]:
    """Evidence of two random pictures' latents."""
    latents, call = sampled(name, num_inference_steps=2), keywords(name)
    options = {key: call[key] for key in bridge_of(name).adapter.text_options & call.keys()}
    more = {"levels": (101, 701), "map_levels": (20, 200), **more}
    classes = more.pop("classes", CLASSES)
    return evidence(bridge_of(name), latents, classes, **options, **more)


def test_relative_losses_by_hand() -> None:
    losses = torch.tensor([[2.0, 4.0, 3.0], [5.0, 1.0, 9.0]])
    there = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.allclose(relative(losses, there), torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]]))
    assert relative(torch.tensor([7.0])).tolist() == [0.0]


def test_calibration_by_hand() -> None:
    maps = torch.tensor([[[1.0, 0.5, 0.0]], [[0.0, 0.5, 1.0]]])
    found = Evidence(torch.tensor([0.1, 0.2]), maps, torch.eye(3))
    sharp = torch.tensor([[[1.0, 0.5, 0.0]], [[0.0, 0.125, 1.0]]])  # what is explained badly is cubed
    assert torch.allclose(found.calibrated(), sharp)
    assert torch.equal(found.calibrated(strength=1.0), maps)
    assert torch.allclose(found.calibrated(power=torch.tensor([1.0, 0.0])), sharp.flip(0, 2))
    # Each place takes the mean of what it attends to: here place 0 from 0 and 1.
    spread = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    refined = Evidence(found.losses, maps, spread).calibrated(strength=1.0)
    assert torch.allclose(refined[0], torch.tensor([[1.0, 2 / 3, 0.0]]))


@pytest.mark.parametrize("name", hosts("elbo_t2ialign", *UNET, *MMDIT))
def test_it_attaches(name: str) -> None:
    plain, technique = sampled(name, num_inference_steps=2), Watched(until=0.5)
    changed = sampled(name, technique, num_inference_steps=2)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    [weights] = technique.seen  # the ring and the star, the dog and the table
    assert (weights.amin(dim=1) == 1).all() and torch.allclose(weights.amax(dim=1), torch.tensor(1.2))
    words, lift = words_of(name, PROMPTS[0]), (technique.texts[0] - technique.own)[0].abs().amax(dim=-1) > 0
    heavier = "a red ring" if weights[0, 0] > 1 else "a blue star"
    assert set(lift.nonzero().flatten().tolist()) == set(words[heavier])
    assert torch.equal(technique.texts[1], technique.own), "weights are 1 again after `until`"
    assert torch.equal(sampled(name, PhraseWeights(strength=1.0), num_inference_steps=2), plain)

    first, second = shown(name)
    for found in (first, second):
        maps = found.calibrated()
        assert torch.isfinite(maps).all() and found.losses.shape == (2,) and float(found.losses.min()) > 0
        assert maps.shape == found.maps.shape and len(found.attention) == maps[0].numel()
        assert float(maps.amin()) == 0 and float(maps.amax()) == 1
    assert float(first.losses[0]) != float(first.losses[1])


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_losses_are_those_of_training(name: str) -> None:
    latents, bridge = sampled(name, num_inference_steps=1)[:1].float(), bridge_of(name)
    [found] = evidence(bridge, latents, [["dog", "cat"]], levels=(101,), map_levels=(20,))
    noising, noise = Noising(bridge, 32, 32), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    at = noising.at_level(latents, noise, 101)
    with torch.no_grad():
        losses = [float(noising.loss(at, noising.text([f"a photo of {one}"]))) for one in ("dog", "cat")]
    assert found.losses.tolist() == pytest.approx(losses, rel=1e-3)
    shift = float(noising.scheduler.config.get("shift", 1.0))
    if noising.flow:
        assert at.sigma.item() == pytest.approx(shift * 0.101 / (1 + (shift - 1) * 0.101))


def test_images_and_samples_alone() -> None:
    both, [alone] = shown("sd"), evidence(
        bridge_of("sd"), sampled("sd", num_inference_steps=2)[1:], CLASSES[1:], levels=(101, 701), map_levels=(20, 200)
    )  # fmt: skip
    assert torch.allclose(both[1].losses, alone.losses, atol=1e-4) and torch.allclose(
        both[1].maps, alone.maps, atol=1e-4
    )
    together = sampled("sd", PhraseWeights(), guidance_scale=1.0, num_inference_steps=2)
    single = sampled("sd", PhraseWeights(), prompts=PROMPTS[:1], guidance_scale=1.0, num_inference_steps=2)
    assert torch.allclose(together[0], single[0], atol=1e-3)
    one = sampled("sd", PhraseWeights(), prompts=["a red ring"], num_inference_steps=2)
    assert torch.equal(one, sampled("sd", prompts=["a red ring"], num_inference_steps=2)), "one phrase stays as it is"


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="2 images, 1 lists of classes"):
        shown("sd", classes=CLASSES[:1])
    with pytest.raises(ShowtellError, match="not among the words"):
        shown("sd", texts=lambda classes: "a photo of a cup")


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elbo_t2ialign, "ELBO_LEVELS", (101,)), monkeypatch.setattr(elbo_t2ialign, "MAP_LEVELS", (20,))
    segmented, generated = elbo_t2ialign.experiment(Laboratory(seeds=1))
    assert next(iter(segmented.scores)) == "elbo-t2ialign" and next(iter(generated.scores)) == "phrase weights"
    assert all(((scores >= 0) & (scores <= 1)).all() for scores in segmented.scores.values())
    found = run_example(elbo_t2ialign.EXAMPLE, monkeypatch)
    assert found["maps"].shape[0] == 3
