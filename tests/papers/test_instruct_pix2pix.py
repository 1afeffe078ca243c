"""InstructPix2Pix: pairs drawn with shared attention, the filter by hand, an editor that begins blind and learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from examples import Small
from examples import run_example as run
from hosts import UNET, bridge_of, hosts, keywords
from worlds import WorldLab

from showtell import language
from showtell.bridges.clip import ClipBridge
from showtell.papers.edit import instruct_pix2pix as module
from showtell.papers.edit.instruct_pix2pix import NotShown, Triple, best, candidates, edits_of, train_editor
from showtell.steer.sharing import ShareAttention
from showtell.train.editors import editor_of
from showtell.train.noising import Noising
from test_bridges_clip import make as make_clip
from unet_variants import pictures

SIZE = {"height": 32, "width": 32}


def call(name: str) -> dict[str, Any]:
    return {key: value for key, value in keywords(name).items() if key not in ("seed", "scheduler")}


def test_edits_lead_from_caption_to_caption() -> None:
    captions = ["a red ring left of a blue star", "two green squares"]
    found = edits_of(captions, seed=3)
    assert [one.caption for one in found] == captions and found[0].before is None
    for one in found:
        assert language.load().edit(one.caption, one.instruction) == one.edited != one.caption


@pytest.mark.parametrize("name", hosts("instruct_pix2pix", *UNET))
def test_pairs_share_noise_and_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [Triple("a red ring", "make it blue", "a blue star"), Triple("a dog", "nothing", "a dog")]

    shares: list[Any] = []

    def shared(*args: Any) -> Any:
        shares.append(args)
        return ShareAttention(*args)

    monkeypatch.setattr(module, "ShareAttention", shared)
    found = candidates(bridge_of(name), edits, rounds=2, **call(name))
    assert [one.caption for one in found] == ["a red ring"] * 2 + ["a dog"] * 2
    assert torch.allclose(found[2].before, found[2].after, atol=1e-4), "one noise: one caption is one picture"
    assert not torch.allclose(found[0].before, found[1].before, atol=1e-3), "rounds differ"
    assert [(source, parts) for source, parts, _, _ in shares] == [([0, 1, 0, 1], "qk")] * 2
    (low, one), (_, two) = (steps for *_, steps in shares)
    assert low == 0 and one != two and 0.1 <= min(one, two) <= max(one, two) <= 0.9
    alone = bridge_of(name).generate(["a red ring", "a blue star"], seed=[0, 0], **call(name))
    assert torch.allclose(found[0].before, alone[0], atol=1e-3), "the first picture is drawn as ever"
    assert not torch.allclose(found[0].after, alone[1], atol=1e-3), "the second is not"


class Angles:
    """Embeds what it is given as the unit vector of that many degrees."""

    def embed(self, images: Any = None, texts: Any = None) -> torch.Tensor:
        said = [float(np.asarray(image)[0, 0, 0]) for image in images] if texts is None else [float(t) for t in texts]
        turned = torch.tensor(said) * torch.pi / 180
        return torch.stack([turned.cos(), turned.sin()], dim=1)


def angled(before: int, after: int, caption: int = 0, edited: int = 60, what: str = "turn") -> Triple:
    shown = [np.full((8, 8, 3), angle, np.uint8) for angle in (before, after)]
    return Triple(str(caption), what, str(edited), *shown)


def test_the_filter_by_hand() -> None:
    good, better = angled(10, 40), angled(0, 30)
    # The change of captions points to 120 degrees, that of the pictures to their mean angle and 90 degrees.
    found = [
        good, better,
        angled(0, 90),  # cosine 0 of the pictures
        angled(100, 130, what="else"),  # the first picture is not what its caption says
        angled(40, 10),  # changed the wrong way
        angled(20, 20),  # not changed
    ]  # fmt: skip
    clip = Angles()
    kept = best(found, clip)
    assert kept == [good, better] or kept == [better, good]
    turned = {id(one): np.cos(np.radians(abs((x + 90) - 120))) for one, x in ((good, 25), (better, 15))}
    assert kept[0] is max((good, better), key=lambda one: turned[id(one)])
    assert len(best(found, clip, most=1)) == 1
    assert best(found, clip, direction=0.999) == []
    assert len(best([angled(0, 30, what=str(i)) for i in range(6)], clip, most=1)) == 6
    assert len(best([angled(0, 30) for _ in range(6)], clip)) == 4


@pytest.mark.parametrize("name", UNET)
def test_the_editor_begins_blind_and_learns(name: str) -> None:
    editor, shown = editor_of(bridge_of(name)), pictures(2)
    options = {"num_inference_steps": 2, "output_type": "latent", "seed": 1, "image_guidance_scale": 1.5, **SIZE}

    def edited(image: Any, *using: Any) -> torch.Tensor:
        return torch.stack(editor.edit([image], ["make it blue"], using=list(using), **options))

    assert torch.allclose(edited(shown[0]), edited(shown[1]), atol=1e-4), "new channels weigh nothing"
    triples = [Triple("", "make it blue", "", shown[0], shown[1]), Triple("", "make it red", "", shown[1], shown[0])]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noising = Noising(editor, image=shown, **SIZE)
    at = noising.at(module.latents_of(editor, shown[::-1]), noise, torch.tensor([600, 300]))
    with torch.no_grad():
        text = noising.text([one.instruction for one in triples])
        before = float(noising.loss(at, text))
    train_editor(editor, triples, steps=30, batch_size=2, lr=3e-3, **SIZE)
    with torch.no_grad():
        assert float(noising.loss(at, text)) < 0.9 * before
    assert not torch.allclose(edited(shown[0]), edited(shown[1]), atol=1e-3), "it sees the picture now"
    assert torch.allclose(edited(shown[0], NotShown()), edited(shown[1], NotShown()), atol=1e-4)


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"CAPTIONS": 4, "KEPT": 2, "STEPS": 1, "BATCH": 2, "SAMPLING": 1}.items():
        monkeypatch.setattr(module, name, small)
    clip = ClipBridge(*make_clip("clip"))
    found = module.experiment(WorldLab(seeds=1, bases={"clip": clip}))
    assert next(iter(found.scores)) == "instruct_pix2pix" and found.control == "picture not shown"  # type: ignore[attr-defined]
    monkeypatch.setattr(module.best, "__defaults__", (-1, -1, -1, 4))
    space = run(module.EXAMPLE, monkeypatch, {"v1-5": Small("sd"), "clip": clip})
    assert len(space["triples"]) == 8 and space["image"] is not None
