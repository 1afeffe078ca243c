"""Alchemist: a pool spoilt in hidden ways; activations that tell labelled pictures apart, on every host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hosts import hosts
from test_popalign import HOSTS, fresh, latents
from test_spin_diffusion import run_small
from worlds import WorldLab, bright

from showtell.data.spoilt import uneven_pool
from showtell.errors import ShowtellError
from showtell.measure.curation import auc, sharpness
from showtell.papers.curate import alchemist_sft as module
from showtell.papers.curate.alchemist_sft import Estimator
from showtell.world import draw

PROMPT = "a red ring left of a blue star"


def test_the_pool_is_spoilt_as_it_says() -> None:
    pictures, scenes, good = uneven_pool(160, 2)
    clean = draw(scenes)
    same = (pictures == clean).all((1, 2, 3))
    assert same[good].all() and 0.1 < good.mean() < 0.4
    bare = np.array([len(scene.objects) == 1 for scene in scenes])
    assert not bare[good].any() and (same == (good | bare)).all()
    again, _, _ = uneven_pool(160, 2)
    assert (again == pictures).all()


def test_the_general_measure_prefers_good_pictures_to_noise_and_blur() -> None:
    pictures, _, good = uneven_pool(240, 2)
    chosen = np.argsort(-sharpness(pictures, median=5))[:40]
    assert good[chosen].mean() > 2 * good.mean()


@pytest.mark.parametrize("name", hosts("alchemist_sft", *HOSTS))
def test_activations_tell_labelled_pictures_apart(name: str) -> None:
    bridge, options = fresh(name)
    estimator = Estimator(bridge, PROMPT, top=4, **options)
    assert estimator.words == ["a", "red", "ring", "left", "of", "blue", "star"]
    smooth = latents(bridge, options, 12) * 0.1
    rough = latents(bridge, options, 12, 5) * 4
    found = estimator.activations(torch.cat([smooth[:2], rough[:2]]))
    assert found.shape[0] == 4 and found.shape[1] % 7 == 0 and np.isfinite(found).all()
    assert np.allclose(found[1:2], estimator.activations(smooth[1:2]), atol=1e-4), "a picture's are its own"
    with pytest.raises(ShowtellError, match="calibrate"):
        estimator.score(smooth)
    areas = estimator.calibrate(torch.cat([smooth[:6], rough[:6]]), [True] * 6 + [False] * 6)
    assert areas.shape == (found.shape[1],)
    scores = estimator.score(torch.cat([smooth[6:], rough[6:]]))
    assert float(auc(scores[:, None], np.arange(12) < 6)[0]) > 0.9
    estimator.calibrate(torch.cat([smooth[:6], rough[:6]]), [False] * 6 + [True] * 6)
    assert np.allclose(estimator.score(torch.cat([smooth[6:], rough[6:]])), -scores, atol=1e-3)
    with pytest.raises(ShowtellError, match="one kind"):
        estimator.calibrate(smooth, [True] * 12)


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"POOL": 24, "LABELLED": 12, "KEPT": 4, "STEPS": 1, "BATCH": 2, "SAMPLING": 1}
    for name, small in sizes.items():
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(module, "legibility", lambda images, judge="first": bright(images))
    clean, facts = module.experiment(WorldLab(seeds=1))
    assert next(iter(clean.scores)) == "alchemist" and clean.control == "shuffled labels"  # type: ignore[attr-defined]
    assert facts.scores["before"].shape == (1, 2)  # type: ignore[attr-defined]
    assert len(run_small(module.EXAMPLE, monkeypatch)["kept"]) == 2
