"""Caption detailness: coverage, detailness and ranks by hand; length misleads; any model trains on what is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hosts import DIT, MMDIT, UNET, hosts
from test_popalign import fresh, latents
from test_spin_diffusion import run_small
from worlds import WorldLab

from showtell.errors import ShowtellError
from showtell.measure.curation import best
from showtell.papers.curate import caption_detailness as module
from showtell.papers.curate.caption_detailness import Detailness, corpus, coverage, detailness, seen_in
from showtell.train.denoising import denoising_loss, finetune
from showtell.world import Scene, SceneObject

RING, STAR = SceneObject("ring", "red", x=0.25, y=0.5), SceneObject("star", "blue", "large", x=0.7, y=0.5)
SCENE = Scene((RING, STAR), "sand")


def scored(*captions: str, scene: Scene = SCENE) -> Detailness:
    return detailness(captions, seen_in([scene] * len(captions)))


def test_coverage_by_hand() -> None:
    regions = np.zeros((3, 4, 4), bool)
    regions[0, 0], regions[1, 1], regions[2, 1:3] = True, True, True  # 12 cells in all, the second within the third
    assert coverage(regions[:1], regions) == pytest.approx(4 / 12)
    assert coverage(regions[1:], regions) == pytest.approx(8 / 12)
    assert coverage(regions[:0], regions) == 0 and coverage(regions, regions) == 1
    assert coverage(regions[:0], np.zeros((1, 4, 4), bool)) == 1


def test_scores_by_hand() -> None:
    whole = "a red ring left of a large blue star on a sand background"
    found = scored(whole, "a red ring", "a large striped blue star", "a green heart")
    # Attributes: red; large and blue; and both touch the relation. Red. Large, striped and blue. Green.
    assert found.objects.tolist() == [(3 + 2) / 2, 1, 3, 1]
    assert found.counted.tolist() == [1, 1 / 3, 1 / 3, 0]
    assert found.coverage[0] == 1 and found.coverage[3] == 0
    sizes = (module.masks(SCENE) > 0.5).reshape(2, -1).sum(1)
    assert found.coverage[1:3] == pytest.approx(sizes / (64 * 64))
    assert found.length.tolist() == [13, 3, 5, 3]


def test_without_a_background_objects_are_all_there_is() -> None:
    found = scored("a red ring", "a red ring and a large blue star", scene=replace(SCENE, background="white"))
    assert found.counted.tolist() == [0.5, 1] and found.coverage[1] == 1


def test_filler_is_long_and_says_nothing() -> None:
    plain, filled = "a red ring left of a large blue star", "a red ring" + module.FILLER
    found = scored(plain, filled)
    assert found.length[1] > found.length[0]
    assert found.objects[1] < found.objects[0] and found.coverage[1] < found.coverage[0]
    assert best(found.combined(), 0.5) == [0] and best(found.length, 0.5) == [1]


def test_two_ways_to_combine() -> None:
    found = Detailness(np.array([0.1, 0.5, 0.9]), np.zeros(3), np.array([3.0, 2.0, 1.0]), np.zeros(3))
    assert found.combined().tolist() == [0.5, 0.5, 0.5]
    assert found.combined("product").tolist() == [0, 0.25, 0]
    with pytest.raises(ShowtellError, match="product"):
        found.combined("sum")


def test_the_corpus_of_the_experiment() -> None:
    scenes, captions = corpus(120, 1)
    assert (scenes, captions) == corpus(120, 1)
    found = detailness(captions, seen_in(scenes))
    kept = best(found.combined())
    assert len(kept) == 24
    rest = np.setdiff1d(np.arange(120), kept)
    for values in (found.coverage, found.objects):
        assert values[kept].mean() > values[rest].mean() + 0.3
    filled = [text.endswith(module.FILLER) for text in captions]
    assert 0.3 < np.mean(filled) < 0.7 and abs(np.mean([filled[i] for i in kept]) - np.mean(filled)) < 0.3
    assert np.mean([filled[i] for i in best(found.length)]) > 0.7, "the longest ones are filled"


@pytest.mark.parametrize("name", hosts("caption_detailness", *UNET, *DIT, *MMDIT))
def test_any_model_trains_on_what_is_chosen(name: str) -> None:
    bridge, options = fresh(name)
    captions = ["a ring", "a small red ring left of a blue star", "a star"]
    kept, x = [1], latents(bridge, options, 3)
    loss = denoising_loss(bridge, captions, **options)

    def error(row: int) -> float:
        batch = {"latents": x[[row] * 8], "row": torch.tensor([row] * 8)}
        with torch.no_grad():
            return float(loss(bridge.adapter.denoiser, batch, torch.Generator().manual_seed(0))[0])

    before = error(1)
    net = finetune(bridge, x[kept], [captions[i] for i in kept], 8, 2, 1e-3, **options)
    assert error(1) < before and not any(p.requires_grad for p in net.parameters())


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"CORPUS": 6, "STEPS": 1, "BATCH": 2, "SAMPLING": 1}.items():
        monkeypatch.setattr(module, name, small)
    attributes, objects = module.experiment(WorldLab(seeds=1))
    assert next(iter(attributes.scores)) == "detailed" and attributes.control == "permuted scores"  # type: ignore[attr-defined]
    assert objects.scores["random"].shape == (1, 2)  # type: ignore[attr-defined]
    space: dict[str, Any] = run_small(module.EXAMPLE, monkeypatch)
    assert space["kept"] == [1]
