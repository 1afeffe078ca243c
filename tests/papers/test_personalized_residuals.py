"""Personalized residuals: which weights they change, masks that decide where, prompts without the concept, hosts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hosts import hosts, keywords
from test_popalign import fresh
from test_spin_diffusion import run_small
from worlds import WorldLab, bright

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.measure.concepts import ConceptPrompts
from showtell.papers.personalize import personalized_residuals as module
from showtell.papers.personalize.personalized_residuals import AnyPlace, Localised, closing, learn
from showtell.train.lora import Adapted, add_lora, load_lora, lora_weights, use_lora
from unet_variants import pictures

HOSTS = ("sd", "sdxl", "pixart", "sd3", "flux")
PROMPTS = ["a red ring left of a blue star", "a dog on the table"]


@cache
def taught(name: str) -> Any:
    """A bridge with residuals of random numbers."""
    bridge, _ = fresh(name)
    add_lora(bridge, "sks", 2, closing(bridge.adapter.denoiser))
    weights, generator = lora_weights(bridge, "sks"), torch.Generator().manual_seed(0)
    load_lora(bridge, {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in weights.items()})
    return bridge


def sampled(bridge: Any, name: str, *using: Any, prompts: Any = PROMPTS) -> torch.Tensor:
    return torch.stack(bridge.generate(prompts, using=list(using), **keywords(name)))


@pytest.mark.parametrize("name", hosts("personalized_residuals", *HOSTS))
def test_masks_decide_where(name: str) -> None:
    bridge = taught(name)
    everywhere, nowhere = sampled(bridge, name), sampled(Adapted(bridge, None), name)
    use_lora(bridge, "sks")
    assert not torch.allclose(everywhere, nowhere, atol=1e-3)
    one = PROMPTS[:1]
    assert torch.allclose(sampled(bridge, name, Localised("ring", -1e9), prompts=one), everywhere[:1], atol=1e-3)
    assert torch.allclose(sampled(bridge, name, Localised("ring", 1e9), prompts=one), nowhere[:1], atol=1e-3)
    some = sampled(bridge, name, Localised("red ring"))
    for other in (everywhere, nowhere):
        assert not torch.allclose(some[0], other[0], atol=1e-3)
    assert torch.allclose(some[1], nowhere[1], atol=1e-3), "a prompt without the concept is drawn as before"


def test_outside_the_mask_a_layer_is_what_it_was() -> None:
    bridge, seen = taught("sd"), []

    class Watched(Localised):
        def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> None:
            seen.append({name: mask.clone() for name, mask in run.state(self).masks.items()})

    technique = Watched("ring")
    layer = closing(bridge.adapter.denoiser)[0]
    module_ = bridge.adapter.denoiser.get_submodule(layer)
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    class Outside(Technique):
        """Looks at what the layer gives once it is mixed."""

        def around(self, run: Any) -> Any:
            from showtell.steer.features import features

            following = {layer: lambda output: outputs.append(output)}
            return features(run.adapter.denoiser, {layer: lambda args, kwargs: inputs.append(args[0])}, following)

    sampled(bridge, "sd", technique, Outside(), prompts=PROMPTS[:1])
    [mask] = seen[0][layer.removesuffix(".proj_out")]
    with torch.no_grad():
        plain = module_.base_layer(inputs[0])
    changed = (outputs[0] - plain).abs()
    changed = changed.amax(1) if changed.ndim == 4 else changed.amax(-1).unflatten(1, mask.shape)
    assert ((changed > 1e-6) == mask.bool()).all() and 0 < float(mask.sum()) < mask.numel()
    assert len(changed) == 2, "with and without words"


def test_masks_by_hand() -> None:
    values = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.6]])
    assert Localised("x").mask(values).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    moved = AnyPlace("x").mask(values)
    assert moved.sum() == 2 and not torch.equal(moved, Localised("x").mask(values))


@pytest.mark.parametrize("name", HOSTS)
def test_learning_changes_nothing_but_residuals(name: str) -> None:
    bridge, options = fresh(name)
    denoiser = bridge.adapter.denoiser
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    layers = closing(denoiser)
    plain = sampled(bridge, name)
    found = learn(bridge, "sks", pictures(2), "a photo of a sks cat", 3, rank=2, batch_size=2, **options)
    assert {key.split(".lora_")[0] for key in found} == set(layers)
    assert not torch.equal(sampled(bridge, name), plain)
    now = {key.replace(".base_layer", ""): value for key, value in denoiser.state_dict().items()}
    assert all(torch.equal(value, now[key]) for key, value in before.items())
    assert torch.allclose(sampled(Adapted(bridge, None), name), plain, atol=1e-4 * float(plain.abs().max()))


def test_what_is_refused() -> None:
    bridge, _ = fresh("sd")
    with pytest.raises(ShowtellError, match="learn"):
        sampled(bridge, "sd", Localised("ring"))
    with pytest.raises(ShowtellError, match="closing"):
        closing(torch.nn.Linear(2, 2))


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"STEPS": 1, "SAMPLING": 1}.items():
        monkeypatch.setattr(module, name, small)
    for metric in ("identity", "rest", "both"):
        monkeypatch.setattr(ConceptPrompts, metric, lambda self, images, judge="first": bright(images))
    both, rest, identity = module.experiment(WorldLab(seeds=1))
    assert next(iter(both.scores)) == "localised" and identity.control == "random mask"  # type: ignore[attr-defined]
    assert rest.name == "rest"
    run_small(module.EXAMPLE, monkeypatch)
