"""f-divergences: rewards and their slopes by hand, Diffusion-DPO as the special case, every host."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from hosts import hosts
from test_popalign import HOSTS, PROMPTS, fresh, latents
from test_spin_diffusion import run_small
from worlds import WorldLab

from showtell.errors import ShowtellError
from showtell.papers.align import f_dpo_t2i as module
from showtell.papers.align.f_dpo_t2i import DIVERGENCES, f_preference, judged, reward
from showtell.train.networks import with_denoiser
from showtell.train.noising import Noising
from showtell.train.preference import gains, paired_preference, prefer
from showtell.world import Scene, SceneObject, sample
from showtell.world.scene import SHAPES


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rewards_and_their_slopes(divergence: str) -> None:
    """f'(u) against the definition, and u f''(u), which is what the loss pushes by."""
    u = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    derivative = {
        "reverse kl": u.log(),
        "jensen-shannon": (u / (1 + u)).log(),
        "forward kl": -1 / u,
        "alpha": (1 - u**-0.5) / 0.5,
    }[divergence]
    log_u = u.log().requires_grad_()
    found = reward(log_u, divergence)
    assert torch.allclose(found, derivative)
    [slope] = torch.autograd.grad(found.sum(), log_u)
    factor = {"reverse kl": torch.ones(3), "jensen-shannon": 1 / (1 + u), "forward kl": 1 / u, "alpha": u**-0.5}
    assert torch.allclose(slope, factor[divergence].double())
    assert torch.isfinite(reward(torch.tensor([-1e4, 1e4]), divergence)).all()


def test_reverse_kl_is_diffusion_dpo() -> None:
    won, lost = torch.tensor([2e-3, -1e-3]), torch.tensor([1e-3, 4e-3])
    ours = f_preference(won, lost, "reverse kl", beta=2.5)
    assert float(ours) == pytest.approx(float(paired_preference(won, lost, beta=5000.0)))
    with pytest.raises(ShowtellError, match="jensen-shannon"):
        reward(won, "hellinger")


def test_jensen_shannon_stops_at_what_is_already_likelier() -> None:
    """The same margin, at larger ratios, pulls the winner less and pushes the loser as before."""
    slopes = {}
    for name in ("reverse kl", "jensen-shannon"):
        for at in (0.0, 4e-3):
            won, lost = (torch.tensor([at], requires_grad=True), torch.tensor([-4e-3], requires_grad=True))
            pulled, pushed = torch.autograd.grad(f_preference(won, lost, name, beta=0.1), [won, lost])
            slopes[name, at] = -float(pulled), float(pushed)
    assert slopes["jensen-shannon", 4e-3][0] < 0.05 * slopes["jensen-shannon", 0.0][0]
    assert slopes["reverse kl", 4e-3][0] > 0.5 * slopes["reverse kl", 0.0][0]
    assert slopes["jensen-shannon", 4e-3][1] > 0.9 * slopes["jensen-shannon", 0.0][1]


@pytest.mark.parametrize("name", hosts("f_dpo_t2i", *HOSTS))
def test_hosts_come_to_prefer_the_winners(name: str) -> None:
    bridge, options = fresh(name)
    before = copy.deepcopy(bridge.adapter.denoiser)
    sides = [latents(bridge, options, 2), latents(bridge, options, 2, 9) + 1.0]
    pairs = {"winner": sides[0], "loser": sides[1], "row": [0, 1]}
    prefer(bridge, PROMPTS, pairs, 10, 4, lr=1e-3, objective=f_preference, **options)
    noising, reference = Noising(bridge, **options), with_denoiser(bridge.adapter, before)
    apart = []
    for side in sides:
        at = noising.noised(side.repeat(8, *[1] * (side.ndim - 1)), torch.Generator().manual_seed(4))
        with torch.no_grad():
            apart.append(float(gains(noising, reference, at, noising.text(PROMPTS * 8)).mean()))
    assert apart[0] > apart[1]


def test_pairs_of_the_experiment() -> None:
    scenes = sample(60, 0, "train", 2, distinct=("shape", "colour"), relation=module.SIDES, **module.PLAIN)
    both = judged(scenes, random.Random(0))
    left = [one.objects[0].x < one.objects[1].x for one, _ in both]
    assert 0.8 < np.mean(left) <= 1
    for scene, (right, wrong) in zip(scenes, both, strict=True):
        named = [(o.colour, o.shape) for o in scene.objects]
        assert [(o.colour, o.shape) for o in right.objects] == named
        assert len({(o.colour, o.shape) for o in wrong.objects} & set(named)) == 1


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"PAIRS": 2, "STEPS": 1, "BATCH": 2, "SAMPLING": 1, "SHOWN": 2}.items():
        monkeypatch.setattr(module, name, small)
    lab = WorldLab(seeds=1)
    lab.n = 4
    scenes = lab.prompts("pairs", 2).scenes
    unwanted = {thing.shape for thing in scenes[1].objects}
    nothing = Scene((SceneObject(next(shape for shape in SHAPES if shape not in unwanted), "red"),))

    def read(images: Any, fast: bool = False) -> list[Any]:
        """Both images of the first prompt are exact, those of the second show nothing wanted."""
        return [scenes[0], scenes[0], nothing, nothing]

    monkeypatch.setattr(module, "read", read)
    right, kept, variety = module.experiment(lab)
    assert right.scores["base"].tolist() == [[1.0, 0.0]] and right.control == "half swapped"  # type: ignore[attr-defined]
    assert variety.scores["base"].tolist() == [[0.0, 0.0]] and kept.control is None  # type: ignore[attr-defined]
    run_small(module.EXAMPLE, monkeypatch)
