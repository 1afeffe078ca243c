"""RAG: regions alone and then pasted, attention re-assembled by regions, repainting that leaves the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import LEFT, MMDIT, PROMPTS, RIGHT, UNET, hosts, keywords, sampled
from laboratory import Laboratory, run_example

from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from showtell.papers.compose import rag_diffusion
from showtell.papers.compose.rag_diffusion import Part, RagDiffusion, shared_out
from showtell.steer.blend import RecordLatents, RepaintLatents

PARTS = [Part(LEFT, "a red ring", "a big red ring"), Part(RIGHT, "a blue star")]
WHOLE = (0.0, 0.0, 1.0, 1.0)


class Streams(Technique):
    """Notes, per place, how far the branches' image tokens are apart, and what the text reads."""

    def __init__(self) -> None:
        self.apart: list[float] = []
        self.branches: set[tuple[str, ...]] = set()

    def attention(self, run: Any, site: Any) -> None:
        self.branches.add(tuple(site.branches))
        if "part 0" in site.branches:
            # Values, where there are any: Lumina's queries are turned by the length of the text.
            part, span = (site.value, site.image_keys) if site.image_keys is not None else (site.query, site.image)
            own, *others = [part[site.branches[name], :, span] for name in ("text", "part 0", "part 1")]
            self.apart += [float((own - other).abs().max() / own.abs().max()) for other in others]


@pytest.mark.parametrize("name", hosts("rag_diffusion", *UNET, *MMDIT))
def test_it_attaches(name: str) -> None:
    plain, streams = sampled(name), Streams()
    changed = sampled(name, RagDiffusion(PARTS), streams)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    assert {len(one) for one in streams.branches} in ({1, 3}, {2, 4}), "the parts are evaluated after two steps"
    assert max(streams.apart) < 1e-4, "there is one image stream"
    assert torch.equal(sampled(name, RagDiffusion(PARTS, hard=0, soft=0.0)), plain)
    for alone in ({"hard": 0}, {"soft": 0.0}):
        assert not torch.equal(sampled(name, RagDiffusion(PARTS, **alone)), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_a_part_of_the_whole_image_is_its_own_prompt(name: str) -> None:
    """Hard binding of one part as large as the image is sampling with the part's prompt."""
    part = [[Part(WHOLE, "a red ring")], [Part(WHOLE, "a blue star")]]
    bound = sampled(name, RagDiffusion(part, hard=3, soft=0.0))
    assert torch.allclose(bound, sampled(name, prompts=["a red ring", "a blue star"]), atol=1e-4)
    # So is soft refinement, where what the text does to the image passes through attention alone.
    if name == "sd":
        refined = sampled(name, RagDiffusion(part, hard=0), guidance_scale=1.0)
        wanted = sampled(name, prompts=["a red ring", "a blue star"], guidance_scale=1.0)
        assert torch.allclose(refined, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_same_words_change_nothing(name: str) -> None:
    part = [[Part(LEFT, "x", PROMPTS[0])], [Part(RIGHT, "x", PROMPTS[1])]]
    assert torch.allclose(sampled(name, RagDiffusion(part, hard=0)), sampled(name), atol=1e-4)


def test_strength_lies_between() -> None:
    """One place of one step: what `soft` mixes is linear."""

    class Look(Technique):
        seen: torch.Tensor | None = None

        def attention(self, run: Any, site: Any) -> None:
            if self.seen is None and site.text is not None and run.step == 0:
                self.seen = site.output[site.branches["text"], :, site.image].clone()

    found = []
    for soft in (0.0, 0.25, 1.0):
        look = Look()
        sampled("sd", RagDiffusion(PARTS, hard=0, soft=soft), look)
        found.append(look.seen)
    none, quarter, full = found
    assert none is not None and full is not None and not torch.allclose(none, full, atol=1e-3)
    assert torch.allclose(quarter, torch.lerp(none, full, 0.25), atol=1e-5)


def test_what_lies_in_no_part_follows_the_prompt() -> None:
    class Look(Technique):
        inside, outside = 0.0, 0.0

        def attention(self, run: Any, site: Any) -> None:
            if site.text is None or site.depth > 3 or run.step > 0:
                return
            left = torch.zeros(site.grid, dtype=torch.bool)
            left[:, : site.grid[1] // 2] = True
            before = torch.nn.functional.scaled_dot_product_attention(site.query, site.key, site.value)
            rows = site.branches["text"]
            change = (site.output - before)[rows].abs().amax(dim=(0, 1, 3))
            self.inside = max(self.inside, float(change[left.flatten()].max()))
            self.outside = max(self.outside, float(change[~left.flatten()].max()))

    look = Look()
    sampled("sd", RagDiffusion(PARTS[:1], hard=0), look)
    assert look.inside > 1e-3 and look.outside < 1e-5


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_repainting_leaves_the_rest(name: str) -> None:
    kept: list[torch.Tensor] = []
    first = sampled(name, RagDiffusion(PARTS), RecordLatents(kept))
    assert len(kept) == 4 and torch.equal(kept[-1], first)
    other = [PARTS[0], Part(RIGHT, "a green square")]
    second = sampled(name, RagDiffusion(other), RepaintLatents(kept, RIGHT))
    half = first.shape[-1] // 2
    assert torch.equal(second[..., :half], first[..., :half])
    assert (second - first)[..., half:].abs().mean() > 0.05
    again = sampled(name, RagDiffusion(PARTS), RepaintLatents(kept, torch.zeros(4, 4)))
    assert torch.equal(again, first)
    with pytest.raises(ShowtellError, match="3 steps"):
        sampled(name, RepaintLatents(kept, RIGHT), num_inference_steps=2)


def test_a_sample_is_alone_and_its_parts_are_its_own() -> None:
    parts = [PARTS, [Part(RIGHT, "a dog")]]
    together = sampled("sd", RagDiffusion(parts))
    assert torch.allclose(together[:1], sampled("sd", RagDiffusion([PARTS]), prompts=PROMPTS[:1]), atol=1e-3)
    seed = {"seed": [keywords("sd")["seed"]] * 2}
    both = sampled("sd", RagDiffusion([PARTS, PARTS[:1]]), prompts=PROMPTS[:1] * 2, **seed)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_the_picture_is_shared_out() -> None:
    parts = [Part((0.0, 0.0, 0.25, 0.25), "a"), Part((0.5, 0.0, 0.75, 0.5), "b"), Part((0.25, 0.75, 0.5, 1.0), "c")]
    areas = torch.stack([one.refined for one in shared_out(parts, 8)])  # type: ignore[misc]
    assert torch.equal(areas.sum(dim=0), torch.ones(8, 8)), "every place once"
    assert (areas[0, :2, :2] == 1).all() and (areas[1, :4, 4:6] == 1).all() and (areas[2, 6:, 2:4] == 1).all()


def test_a_part_without_an_area_owns_nothing() -> None:
    none = Part(RIGHT, "a blue star", area=torch.zeros(8, 8))
    together = sampled("sd", RagDiffusion([PARTS[0], none], hard=0))
    assert torch.allclose(together, sampled("sd", RagDiffusion(PARTS[:1], hard=0)), atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_details_count_in_their_areas(name: str) -> None:
    small = (0.0, 0.0, 0.25, 0.25)
    box, area = Part(LEFT, "a red ring"), Part(small, "a red ring", area=LEFT)
    images = [sampled(name, RagDiffusion([one], hard=0)) for one in (box, area, Part(small, "a red ring"))]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="soft from 0 to 1"):
        RagDiffusion(PARTS, soft=1.5)
    with pytest.raises(ShowtellError, match="parts: got 3 for 2"):
        sampled("sd", RagDiffusion([PARTS] * 3))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    binding, relations, repainting = rag_diffusion.experiment(Laboratory(steps=3, seeds=1))
    assert list(binding.scores) == list(relations.scores) and next(iter(binding.scores)) == "rag"
    assert list(repainting.scores) == ["repaint", "new run"] and (repainting.scores["repaint"] > 0).all()
    found = run_example(rag_diffusion.EXAMPLE, monkeypatch, "flux")
    assert found["image"].size == found["changed"].size == (32, 32)
