"""LayerFusion: the priors and the blending by hand, three layers that fit together, and what they are cut from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hosts import UNET, bridge_of, hosts, keywords, sampled, words_of
from laboratory import Laboratory, run_example
from PIL import Image

from showtell.errors import ShowtellError
from showtell.measure.prompts import PromptSet
from showtell.papers.compose import layerfusion as paper
from showtell.papers.compose.layerfusion import Elsewhere, LayerFusion, Layers, agreement, fused, layered

THREE = ("a red ring", "a blue star on the table", "a red ring left of a blue star on the table")
OTHER = ("a dog", "the table", "a dog on the table")


def short(name: str, **more: Any) -> dict[str, Any]:
    return {**{key: value for key, value in keywords(name).items() if key != "seed"}, "output_type": "pil", **more}


def pixels(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=float))


class Watched(LayerFusion):
    """Keeps the blended attention of the last call and how many were blended."""

    calls = 0

    def attention(self, run: Any, site: Any) -> None:
        before = site.output if site.kind == "self" else None
        super().attention(run, site)
        state = run.state(self)
        if before is not None and state.soft is not None:
            self.calls += 1
            rows = site.branches["text"]
            self.background = float((site.output - before)[rows][1::3].abs().max())
            inside = state.soft.amax((1, 2)) > 0
            self.moved = (site.output - before)[rows][2::3].flatten(1).abs().amax(1)[inside]


@pytest.mark.parametrize("name", hosts("layerfusion", *UNET))
def test_three_layers(name: str) -> None:
    apart = layered(bridge_of(name), [THREE, OTHER], strength=0.0, **short(name))
    made = layered(bridge_of(name), [THREE, OTHER], **short(name))
    assert len(made) == 2 and made[0].foreground.mode == "RGBA" and made[0].blended.mode == "RGB"
    for one, two in zip(made, apart, strict=True):
        assert torch.equal(pixels(one.background), pixels(two.background)), "the background takes nothing"
        assert not torch.equal(pixels(one.blended), pixels(two.blended))
        assert 0 < (pixels(one.foreground)[..., 3] == 255).float().mean() < 1
    texts = [*THREE, *OTHER]
    plain = sampled(name, prompts=texts)
    assert torch.equal(sampled(name, LayerFusion(strength=0.0), prompts=texts), plain)
    technique = Watched()
    together = sampled(name, technique, prompts=texts)
    assert technique.calls and technique.background == 0 and (technique.moved > 0).all()
    assert torch.allclose(sampled(name, LayerFusion(), prompts=texts[:3]), together[:3], atol=1e-3)


def test_blending_by_hand() -> None:
    output = torch.arange(12.0).view(6, 1, 2, 1)  # two branches of one image: foreground, background, both
    branches = {"negative": slice(0, 3), "text": slice(3, 6)}
    soft, hard = torch.tensor([0.25, 0.0]).view(1, 1, 2, 1), torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    blended = fused(output, branches, soft, hard)[:, 0, :, 0]
    assert blended[:3].tolist() == [[3.0, 1.0], [2.0, 3.0], [3.0, 5.0]]
    assert blended[3:].tolist() == [[9.0, 7.0], [8.0, 9.0], [9.0, 11.0]], "they meet, and do not change places"


def test_priors_by_hand() -> None:
    """Compact attention and attention to the end of the text, where both are."""
    technique = LayerFusion()
    structure = torch.tensor([[[4.0, 1.0], [1.0, 4.0]]])  # how many tokens each one attends to
    content = torch.tensor([[[0.1, 0.5], [0.1, 0.3]]])
    assert torch.allclose(technique.mask(structure, content), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
    assert torch.allclose(Elsewhere().mask(structure, content), torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))
    state: Any = SimpleNamespace(structure=[], content=[], soft=None, read=torch.tensor([[False, True]]))
    run: Any = SimpleNamespace(state=lambda one: state, grids=[(1, 2)])
    seen = torch.tensor([[0.5, 0.5], [1.0, 0.0]])[None, None].repeat(3, 1, 1, 1)
    place: Any = SimpleNamespace(grid=(1, 2))
    technique.attention(run, SimpleNamespace(kind="self", grid=(1, 2), place=place, probabilities=lambda branch: seen))
    assert state.structure[0].tolist() == [[[2.0, 1.0]]]
    maps = torch.tensor([[0.9, 0.1], [0.4, 0.6]])[None, None].repeat(3, 1, 1, 1)  # image tokens, text tokens
    technique.attention(
        run, SimpleNamespace(kind="cross", grid=(1, 2), place=place, maps=lambda: maps, text=slice(0, 2))
    )
    assert torch.allclose(state.content[0], torch.tensor([[[0.1, 0.6]]]))


def test_agreement() -> None:
    red, blue = (np.full((16, 16, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, :8] = 255
    front = Image.fromarray(np.dstack([red, alpha]))
    joined = np.where(alpha[..., None] > 0, red, blue)
    layers = Layers(front, Image.fromarray(blue), Image.fromarray(joined))
    assert np.array_equal(np.asarray(layers.composite), joined) and agreement(layers) == 1
    other = Layers(front, Image.fromarray(blue), Image.fromarray(blue))
    assert agreement(other) == pytest.approx(1 - (2 / 3) / 2), "the left half is another colour, in two of its channels"
    narrow = alpha * (np.arange(16) < 4)
    small = Layers(Image.fromarray(np.dstack([red, narrow])), Image.fromarray(blue), Image.fromarray(blue))
    assert agreement(small) == pytest.approx(1 - (2 / 3) / 2), "however little it is"
    nothing = Layers(Image.fromarray(np.dstack([red, 0 * alpha])), Image.fromarray(blue), Image.fromarray(blue))
    assert agreement(nothing) == 0.5, "no foreground fits nothing"


def test_the_content_is_read_from_the_end_or_the_words() -> None:
    class Keep(LayerFusion):
        def latents(self, run: Any, latents: torch.Tensor) -> None:
            self.read = run.state(self).read

    words = list(words_of("sd", THREE[0]).positions)
    end, said = Keep(), Keep(content="words")
    for technique in (end, said):
        sampled("sd", technique, prompts=list(THREE))
    assert said.read[0].nonzero().flatten().tolist() == words and end.read[0].nonzero().tolist() == [[words[-1] + 1]]


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="2 prompts: give three"):
        sampled("sd", LayerFusion())
    with pytest.raises(ShowtellError, match="content='noun'"):
        LayerFusion(content="noun")
    with pytest.raises(ShowtellError, match="no self- and cross-attention"):
        sampled("sd3", LayerFusion(), prompts=list(THREE))


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bright = lambda self, images, *more, **options: np.array([np.asarray(one).mean() / 255 for one in images])  # noqa: E731
    monkeypatch.setattr(PromptSet, "complete", bright)
    fits, right = paper.experiment(Laboratory(seeds=1))
    assert list(fits.scores) == list(right.scores) and next(iter(fits.scores)) == "layerfusion"
    assert all((one >= 0).all() and (one <= 1).all() for one in fits.scores.values())
    found = run_example(paper.EXAMPLE, monkeypatch, "sdxl")
    assert found["layers"].composite.size == found["layers"].blended.size == (32, 32)
