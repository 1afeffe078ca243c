"""Isolated Diffusion: equation 2 by its identities, subjects that no other subject's text reaches, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import LEFT, MMDIT, PROMPTS, RIGHT, UNET, bridge_of, hosts, keywords, sampled
from laboratory import Laboratory, run_example

from showtell import language
from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.papers.compose import isolated_diffusion
from showtell.papers.compose.isolated_diffusion import (
    IsolatedAttachments,
    IsolatedSubjects,
    attachments,
    for_prompts,
)
from showtell.steer.guidance import ComposedGuidance
from showtell.steer.masks import entity_regions
from showtell.steer.regions import Region
from test_bridges_clip import make as make_clip

ALL = (0.0, 0.0, 1.0, 1.0)
SUBJECTS = [Region("a red ring", LEFT), Region("a blue star", RIGHT)]


def test_attachments_by_hand() -> None:
    lm = language.load()
    base, attached = attachments(lm.split("a large orange frame"))
    assert base == "a frame" and attached == ["a large frame", "an orange frame"]
    assert attachments(lm.split("a large orange frame"), kept=1) == ("an orange frame", ["a large orange frame"])
    base, attached = attachments(lm.split("an orange ring left of a blue star"))
    assert base == "a ring left of a star"
    assert attached == ["an orange ring left of a star", "a ring left of a blue star"]


@pytest.mark.parametrize("name", hosts("isolated_diffusion", *UNET, *MMDIT))
def test_it_attaches(name: str) -> None:
    plain = sampled(name)
    changed = sampled(name, IsolatedSubjects(SUBJECTS))
    assert not torch.allclose(changed, plain, atol=1e-3) and torch.isfinite(changed).all()
    assert torch.equal(sampled(name, IsolatedSubjects(SUBJECTS, layout=1.0)), plain)
    # A subject that fills the image, with the call's own prompt, is the image.
    own = IsolatedSubjects([[Region(prompt, ALL)] for prompt in PROMPTS])
    assert torch.allclose(sampled(name, own), plain, atol=1e-4)
    # The base plus what one attachment changes in it is the attachment's prompt.
    single = IsolatedAttachments([("a ring", [PROMPTS[0]]), (PROMPTS[1], [])])
    assert torch.allclose(sampled(name, single), plain, atol=2e-4)


def test_subjects_are_isolated() -> None:
    """Every subject starts from the common latents with noise in the others' places, and ends in its own place."""
    seen: dict[str, Any] = {}

    class Watched(IsolatedSubjects):
        def before(self, run: Any, latents: torch.Tensor) -> None:
            first = run.progress >= self.layout and not run.state(self).alone
            super().before(run, latents)
            if first:
                seen["common"] = latents
            if run.step == run.steps - 1:
                seen["alone"] = [one.latents for one in run.state(self).alone]

    starts: list[torch.Tensor] = []
    companion = isolated_diffusion.Companion.of

    def noted(run: Any, latents: torch.Tensor, text: Any) -> Any:
        starts.append(latents)
        return companion(run, latents, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated_diffusion.Companion, "of", noted)
        image = sampled("sd", Watched(SUBJECTS, layout=0.3))
    half = image.shape[-1] // 2
    common, (ring, star) = seen["common"], starts
    assert torch.equal(ring[..., :half], common[..., :half]) and torch.equal(star[..., half:], common[..., half:])
    noise = ring[..., half:]
    assert not torch.allclose(noise, common[..., half:]) and 0.8 < float(noise.std()) < 1.2 and len(starts) == 2
    assert torch.allclose(image[..., :half], seen["alone"][0][..., :half], atol=1e-5)
    assert torch.allclose(image[..., half:], seen["alone"][1][..., half:], atol=1e-5)


def test_overlaps_missing_subjects_and_samples_alone() -> None:
    first = [Region("a red ring", ALL), Region("a blue star", RIGHT)]
    assert torch.allclose(
        sampled("sd", IsolatedSubjects(first)), sampled("sd", IsolatedSubjects(first[:1])), atol=1e-5
    ), "the earlier subject has the place"
    nowhere = [Region("a cat", torch.zeros(4, 4))]
    assert torch.equal(sampled("sd", IsolatedSubjects(nowhere)), sampled("sd"))
    together = sampled("sd", IsolatedSubjects([SUBJECTS, SUBJECTS[:1]]))
    alone = sampled("sd", IsolatedSubjects([SUBJECTS]), prompts=PROMPTS[:1])
    assert torch.allclose(together[0], alone[0], atol=1e-4)
    with pytest.raises(ShowtellError, match="subjects: got 1 for 2"):
        sampled("sd", IsolatedSubjects([SUBJECTS]))
    with pytest.raises(ShowtellError, match="parts: got 1 for 2"):
        sampled("sd", IsolatedAttachments([("a ring", [])]))


def test_equation_2_against_composed() -> None:
    """Without guidance eq. 2 is the base plus the differences; composed, guidance of parts adds up from nothing."""
    parts = ("a ring", ["a red ring", "a large ring"])
    both, one = (IsolatedAttachments((parts[0], parts[1][:count])) for count in (2, 1))
    free = {"guidance_scale": 1.0, "num_inference_steps": 1, "prompts": PROMPTS[:1]}
    apart = [
        sampled("sd", IsolatedAttachments(("a ring", texts)), **free) for texts in ([], parts[1][:1], parts[1][1:])
    ]
    total = apart[1] + apart[2] - apart[0]  # one step of DDIM is linear in the prediction
    assert torch.allclose(sampled("sd", both, **free), total, atol=1e-3) and not torch.allclose(total, apart[1])
    composed = sampled("sd", ComposedGuidance(parts[1][:1]))
    assert torch.allclose(composed, sampled("sd", one), atol=1e-3), "of one part both are that part's guidance"
    assert not torch.allclose(sampled("sd", ComposedGuidance(parts[1])), sampled("sd", both), atol=1e-2)
    assert torch.isfinite(sampled("sd", ComposedGuidance(parts[1]), **free)).all(), "it asks for the unconditional one"


def test_attachments_that_share_one_scale() -> None:
    """Two equal attachments are as one; without a split this is plain sampling, and alone they add up."""
    twice = ("a ring", ["a red ring", "a red ring"])
    once = sampled("sd", IsolatedAttachments((twice[0], twice[1][:1])))
    assert torch.allclose(sampled("sd", IsolatedAttachments(twice, shared=True)), once, atol=1e-3)
    assert not torch.allclose(sampled("sd", IsolatedAttachments(twice)), once, atol=1e-2)
    unsplit = [("a ring", [prompt] * (2 + i)) for i, prompt in enumerate(PROMPTS)]
    assert torch.allclose(sampled("sd", IsolatedAttachments(unsplit, shared=True)), sampled("sd"), atol=1e-3)


def test_subjects_are_looked_for_in_a_first_image_of_the_same_noise() -> None:
    lm = language.load()
    splits = [lm.split(prompt) for prompt in PROMPTS]
    _, regions = entity_regions(bridge_of("sd"), splits, **keywords("sd"))
    given, looked = sampled("sd", IsolatedSubjects(regions)), sampled("sd", IsolatedSubjects(splits))
    assert torch.allclose(looked, given, atol=1e-4) and not torch.allclose(looked, sampled("sd"), atol=1e-3)


def test_attachments_are_for_one_thing_and_subjects_for_several() -> None:
    lm = language.load()
    assert isinstance(for_prompts(["a striped green square"], lm), IsolatedAttachments)
    assert isinstance(for_prompts(["a striped green square", "a red ring and a blue star"], lm), IsolatedSubjects)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    several, single = isolated_diffusion.experiment(Laboratory(seeds=1, bases={"clip": ClipBridge(*make_clip("clip"))}))
    assert next(iter(several.scores)) == next(iter(single.scores)) == "isolated"
    found = run_example(isolated_diffusion.EXAMPLE, monkeypatch, "sdxl")
    assert found["image"].size == found["penguin"].size == (32, 32)
