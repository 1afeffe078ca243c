"""SPDiffusion: regions worked out by hand, nothing of another concept is attended in them, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import DIT, MMDIT, PROMPTS, UNET, bridge_of, hosts, keywords, sampled, words_of
from laboratory import Laboratory, run_example

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.papers.compose import spdiffusion
from showtell.papers.compose.spdiffusion import Scattered, SPDiffusion, concept_regions
from showtell.steer.noise import BestNoise


class Watched(SPDiffusion):
    """Notes, of the first prompt, how much attention regions pay to other concepts' words."""

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__(**more)
        words = words_of(name, PROMPTS[0])
        self.groups = [list(words["red ring"]), list(words["blue star"])]
        self.astray: list[float] = []
        self.cells, self.masked, self.kept = 0, set[int](), 0

    def attention(self, run: Any, site: Any) -> None:
        super().attention(run, site)
        self.kept += 1
        if run.state(self).looking or site.text is None:
            return
        grid = torch.nn.functional.interpolate(run.state(self).regions[:1].float(), site.grid, mode="nearest")
        self.masked.add(run.step)
        for region, other in zip(grid[0].bool().flatten(1), self.groups[::-1], strict=False):
            self.cells += int(region.sum())
            if region.any():
                self.astray.append(float(site.maps()[0][:, region][..., other].max()))


@pytest.mark.parametrize("name", hosts("spdiffusion", *UNET, *(one for one in DIT if one != "sana"), *MMDIT))
def test_it_attaches(name: str) -> None:
    call: dict[str, Any] = {"seed": 3 if name == "sd3" else 4, "num_inference_steps": 2}  # else nouns share an anchor
    plain, technique = sampled(name, **call), Watched(name, look=1)
    changed = sampled(name, technique, **call)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    assert technique.cells > 0 and max(technique.astray) == 0 and technique.masked == {0, 1}
    nothing = Watched(name, look=0)
    assert torch.equal(sampled(name, nothing, **call), plain) and not nothing.kept, "without a look nothing is kept"


@pytest.mark.host("spdiffusion", "sana", "its linear self-attention has no maps to refine regions by")
def test_linear_self_attention_shows_no_maps() -> None:
    with pytest.raises(ShowtellError, match="refine=False"):
        sampled("sana", SPDiffusion(look=1))
    technique = Watched("sana", look=1, refine=False)
    assert not torch.equal(sampled("sana", technique), sampled("sana")) and max(technique.astray) == 0


def test_regions_by_hand() -> None:
    cross = torch.zeros(2, 4, 4)
    cross[0, 1, 1], cross[1, 2, 3] = 1.0, 0.8  # anchors
    cross[0, 0, 0], cross[1, 1, 1] = 0.05, 0.3
    left = torch.zeros(4, 4, dtype=torch.bool)
    left[:, :2] = True
    same = (left.flatten()[:, None] == left.flatten()).float()  # each half attends to itself
    regions = concept_regions(cross, same)
    assert torch.equal(regions[0], left) and torch.equal(regions[1], ~left)
    raw = concept_regions(cross, None)
    assert raw.nonzero().tolist() == [[0, 1, 1], [1, 2, 3]], "on a small grid the border counts"
    large = torch.zeros(2, 16, 16)
    large[0, 3, 3], large[1, 9, 9], large[:, 0, 5] = 1.0, 0.8, 5.0
    assert concept_regions(large, None).nonzero().tolist() == [[0, 3, 3], [1, 9, 9]], "on a large one it does not"
    assert torch.equal(Scattered().placed(regions).flatten(1).sum(1), regions.flatten(1).sum(1))
    assert not concept_regions(torch.ones(2, 4, 4), same).any(), "flat maps say nothing"


def test_the_look_ahead_leaves_the_run_where_it_stood() -> None:
    """Where nothing is protected, the images are those of a plain run, with schedulers that draw noise too."""

    class Nothing(SPDiffusion):
        def attention(self, run: Any, site: Any) -> None:
            looked.append((run.state(self).looking, run.step))
            if run.state(self).looking:
                super().attention(run, site)

    for scheduler in ({}, {"scheduler": ancestral()}):
        looked: list[tuple[bool, int]] = []
        call = {**keywords("sd"), **scheduler, "output_type": "latent"}
        plain, same = (
            torch.stack(bridge_of("sd").generate(PROMPTS, using=using, **call)) for using in ([], [Nothing()])
        )
        assert torch.equal(plain, same)
        assert {step for looking, step in looked if looking} == {0, 1}


def ancestral() -> Any:
    from diffusers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler()


def test_first_steps_replay_self_attention() -> None:
    class Queries(Technique):
        def __init__(self) -> None:
            self.seen: dict[tuple[int, int], list[torch.Tensor]] = {}

        def attention(self, run: Any, site: Any) -> None:
            if site.kind == "self":
                self.seen.setdefault((run.step, site.depth), []).append(site.query)

    class Watch(SPDiffusion):
        def attention(self, run: Any, site: Any) -> None:
            super().attention(run, site)
            queries.attention(run, site)

        def wants(self, run: Any, place: Any) -> bool:
            return super().wants(run, place) or place.kind == "self"

    queries = Queries()
    with pytest.raises(KeyError):  # only the steps that were looked at are kept
        sampled("sd", Watch(look=2))
    assert queries.seen and all(len(pair) == 2 and torch.equal(*pair) for pair in queries.seen.values())


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_samples_alone_and_without_guidance(scale: float) -> None:
    call: dict[str, Any] = {"guidance_scale": scale, "num_inference_steps": 2}
    together = sampled("sd", SPDiffusion(look=1), **call)
    alone = sampled("sd", SPDiffusion(look=1), prompts=PROMPTS[:1], **call)
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    one = ["a red ring"]
    assert torch.equal(sampled("sd", SPDiffusion(), prompts=one, **call), sampled("sd", prompts=one, **call))


def test_with_others_given_things_and_scattered_regions() -> None:
    call: dict[str, Any] = {"prompts": PROMPTS[:1], "num_inference_steps": 1}
    own = sampled("sd", SPDiffusion(look=1), **call)
    given = SPDiffusion(look=1, things={"ring": ["red"], "star": ["blue"], "cat": ["old"]})
    assert torch.equal(sampled("sd", given, **call), own)
    assert not torch.equal(sampled("sd", Scattered(look=1), **call), own)
    best = BestNoise(lambda run, z: run.predict(z).flatten(1).mean(1), 2)
    assert torch.isfinite(sampled("sd", best, SPDiffusion(look=1), **call)).all()


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    binding, complete = spdiffusion.experiment(Laboratory(steps=1, seeds=1))
    assert list(binding.scores) == list(complete.scores) and next(iter(binding.scores)) == "SPDiffusion"
    assert run_example(spdiffusion.EXAMPLE.replace(", num_inference_steps=20", ""), monkeypatch, "sdxl")["image"]
