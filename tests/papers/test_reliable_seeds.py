"""Reliable seeds: mining finds planted ones, fine-tuning moves queries and keys alone, every host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from examples import Small, run_example
from hosts import DIT, MMDIT, PROMPTS, UNET, bridge_of, hosts, keywords, pipeline_of
from laboratory import Laboratory

import showtell
from showtell.errors import ShowtellError
from showtell.papers.compose import reliable_seeds
from showtell.papers.compose.reliable_seeds import finetune, group_of, mine, reliability, top_seeds
from showtell.steer.noise import seeded_noise
from showtell.train.denoising import denoising_loss, only
from showtell.world import Scene


def options(name: str) -> dict[str, Any]:
    return {key: value for key, value in keywords(name).items() if key not in ("seed", "output_type", "scheduler")}


def test_reliability_and_ranking_by_hand() -> None:
    right = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=bool)
    found = reliability(right, ["two", "two", "three"])
    assert found["two"].tolist() == [0.5, 1.0, 0.0, 1.0] and found["three"].tolist() == [1, 0, 1, 1]
    assert top_seeds(found, [7, 8, 9, 10], keep=2) == {"two": [8, 10], "three": [7, 9]}
    assert top_seeds(found, [7, 8, 9, 10], keep=2, best=False) == {"two": [9, 7], "three": [8, 7]}


def test_mining_finds_a_planted_habit() -> None:
    """What is "right" depends on the noise alone, so the seeds whose noise has it are the reliable ones."""
    seeds = list(range(6))
    noise = seeded_noise(seeds, (4, 8, 8))
    planted = [seed for seed in seeds if noise[seed, 0].mean() > 0]
    assert 0 < len(planted) < 6

    class Mirror:
        def generate(self, prompts: list[str], seed: list[int]) -> torch.Tensor:
            return seeded_noise(seed, (4, 8, 8))

    right = mine(Mirror(), PROMPTS, seeds, lambda images: images[:, 0].mean(dim=(1, 2)) > 0)
    assert right.shape == (6, 2) and right.all(axis=1).nonzero()[0].tolist() == planted
    found = reliability(right, ["a", "b"])
    assert set(top_seeds(found, seeds, keep=len(planted))["a"]) == set(planted)


@pytest.mark.parametrize("name", hosts("reliable_seeds", *UNET, *DIT))
def test_it_trains_queries_and_keys_alone(name: str) -> None:
    with torch.random.fork_rng():
        bridge: Any = showtell.load(fresh(name))
        before = {key: value.clone() for key, value in bridge.adapter.denoiser.state_dict().items()}
        plain = bridge.generate(PROMPTS, seed=[1, 2], output_type="latent", **options(name))
        trained = finetune(bridge, PROMPTS, [1, 2], steps=2, lr=1e-2, batch_size=2, **options(name))
    after = bridge.adapter.denoiser.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed and changed == set(trained)
    assert all(key.split(".")[-2] in ("to_q", "to_k") for key in changed)
    moved = bridge.generate(PROMPTS, seed=[1, 2], output_type="latent", **options(name))
    assert not torch.allclose(torch.stack(moved), torch.stack(plain), atol=1e-4)


def fresh(name: str) -> Any:
    import copy

    return copy.deepcopy(pipeline_of(name))


@pytest.mark.parametrize("name", [*UNET, *DIT[:1], *DIT[2:], *MMDIT])
def test_the_loss_is_the_denoiser_s_error(name: str) -> None:
    """Zero for a denoiser that answers with the target, and differentiable for the real one."""
    bridge, call = bridge_of(name), options(name)
    latents = torch.stack(bridge.generate(PROMPTS, seed=[1, 2], output_type="latent", **call)).float()
    loss = denoising_loss(bridge, PROMPTS, **call)
    batch = {"latents": latents, "row": torch.tensor([1, 0])}
    found, numbers = loss(bridge.adapter.denoiser, batch, torch.Generator().manual_seed(0))
    assert float(found.detach()) == pytest.approx(float(numbers["mse"])) and 0 < float(numbers["mse"]) < 1e4
    again, _ = loss(bridge.adapter.denoiser, batch, torch.Generator().manual_seed(0))
    other, _ = loss(bridge.adapter.denoiser, {**batch, "row": torch.tensor([0, 1])}, torch.Generator().manual_seed(0))
    assert torch.equal(found, again) and not torch.equal(found, other), "each row has its own prompt"
    assert found.requires_grad


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_perfect_denoiser_has_no_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, clean = bridge_of(name), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def perfect(run: Any, noisy: torch.Tensor, times: torch.Tensor, text: Any) -> torch.Tensor:
        if name == "sd3":
            sigma = times.view(-1, 1, 1, 1) / 1000
            return (noisy - clean) / sigma  # the velocity
        level = run.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - level.sqrt() * clean) / (1 - level).sqrt()  # the noise

    monkeypatch.setattr(bridge.adapter, "predict", perfect)
    loss = denoising_loss(
        bridge, PROMPTS, height=32, width=32, **({"max_sequence_length": 16} if name == "sd3" else {})
    )
    found, _ = loss(
        bridge.adapter.denoiser, {"latents": clean, "row": torch.arange(2)}, torch.Generator().manual_seed(0)
    )
    assert float(found) < 1e-6


def test_only_some_layers_train_and_what_is_refused() -> None:
    model = torch.nn.ModuleDict({"to_q": torch.nn.Linear(2, 2), "to_v": torch.nn.Linear(2, 2)})
    assert set(only(model)) == {"to_q.weight", "to_q.bias"}
    assert not model["to_v"].weight.requires_grad and model["to_q"].weight.requires_grad
    with pytest.raises(ShowtellError, match="no layers called to_k"):
        only(model, ["to_k"])


def test_groups() -> None:
    assert group_of(Scene.parse("three red rings")) == 3
    assert group_of(Scene.parse("a red ring left of a blue star")) == "left of"


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliable_seeds, "MINED", 2)
    monkeypatch.setattr(reliable_seeds, "SEEDS", range(50_000, 50_005))
    monkeypatch.setattr(reliable_seeds, "finetune", lambda *args, **more: finetune(*args, **{**more, "steps": 1}))
    counts, _, relations, sampling = reliable_seeds.experiment(Laboratory(steps=1, seeds=1))
    assert list(counts.scores) == list(relations.scores) == ["reliable seeds", "random seeds", "base"]
    assert next(iter(sampling.scores)) == "top seeds"

    class Checker:
        def answer(self, images: Any, question: str) -> list[str]:
            return ["two cats"] * len(images)

    source = reliable_seeds.EXAMPLE.replace("range(100)", "range(4)").replace(
        "steps=5000", "steps=1, height=32, width=32"
    )
    small = Small("sd")
    small._bridge = showtell.load(fresh("sd"))
    found = run_example(source, monkeypatch, {"stable-diffusion": small, "llava": Checker()})
    assert found["best"] == {"two": [0, 1, 2], "three": [0, 1, 2]} and len(found["images"]) == 3
