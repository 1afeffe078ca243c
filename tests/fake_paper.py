"""A paper, a base and a prompt set of a few kilobytes, so that the laboratory's tests rest on nothing but itself."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from showtell.papers import Paper

SOURCE = '''"""Fake paper: brighter pictures. Nobody, 2020, arXiv 2001.00001.

Pictures are made brighter. Faithful: everything. Scaled down: nothing.
"""

import os

import numpy as np
from PIL import Image

EXAMPLE = """
import showtell
bridge = showtell.load("nobody/anything")
"""


def pictures(lab, brightness, name):
    def arm(seed):
        with open(os.environ["FAKE_LOG"], "a") as file:
            file.write(f"{name} {seed}\\n")
        if os.environ.get("FAKE_STOP") == f"{name} {seed}":
            raise KeyboardInterrupt
        noise = np.random.default_rng([seed, len(name)]).normal(0, 0.1, lab.n)
        values = np.clip(brightness + noise, 0, 1) * 255
        return [Image.new("RGB", (8, 8), (int(v), int(v), int(v))) for v in values]

    return arm


def experiment(lab):
    lab.base("vae")
    prompts = lab.prompts("pairs")
    arms = {name: pictures(lab, value, name) for name, value in (("fake", 0.7), ("plain", 0.4), ("off", 0.4))}
    return lab.compare(arms, metric=prompts.binding, expect="fake > plain", control="off")
'''


@dataclass(frozen=True)
class FakePaper(Paper):
    """place: the file its module lies in."""

    place: Path = Path()

    @property
    def file(self) -> Path:
        return self.place

    def module(self) -> ModuleType:
        name = f"fake_{self.place.stem}"
        spec = importlib.util.spec_from_file_location(name, self.place)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def brightness(images: Any, judge: str = "first") -> np.ndarray:
    return np.array([np.asarray(image).mean() / 255 for image in images])


def fake_prompts(name: str, n: int, seed: int, split: str = "test") -> Any:
    texts = [f"{name} {split} {seed} {number}" for number in range(n)]
    return SimpleNamespace(name=name, texts=texts, binding=brightness)


class FakeWorld:
    """Folders of weights and of results that are this test's own, a paper in them, and what its arms did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.log = folder / "log"
        monkeypatch.setenv("SHOWTELL_CACHE", str(folder / "cache"))
        monkeypatch.setenv("SHOWTELL_WEIGHTS", str(folder / "weights"))
        monkeypatch.setenv("FAKE_LOG", str(self.log))
        monkeypatch.setitem(sys.modules, "showtell.measure.prompts", SimpleNamespace(prompt_set=fake_prompts))  # type: ignore[arg-type]
        self.weights("vae", 1)

    def weights(self, name: str, value: float) -> None:
        """A base: an autoencoder whose weights all have one value."""
        import torch
        from diffusers import AutoencoderKL

        model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, value)
        model.save_pretrained(self.folder / "weights" / name)

    def paper(self, source: str = SOURCE, slug: str = "fake", shelf: str = "compose") -> FakePaper:
        place = self.folder / f"{slug}.py"
        place.write_text(source)
        os.utime(place, ns=(len(source), len(source)))  # edits within one tick of the clock count too
        row = {"mechanism": "Pictures are made brighter.", "experiment": {"task": "pairs"}, "parts": ["brightness"]}
        return FakePaper("2001.00001", "Fake Paper", slug, shelf, "technique", ("unet",), 1.0, row, place)

    def shelf(self, papers: list[FakePaper], bridge: Any, metric: str) -> Any:
        """The bridge, as the base of these papers; prompts have one box each and know `metric`, which is brightness."""
        from showtell.measure import experiment
        from showtell.reproduce import ground

        def with_boxes(name: str, n: int, seed: int, split: str = "test") -> Any:
            drawn = fake_prompts(name, n, seed, split)
            setattr(drawn, metric, brightness)
            drawn.phrases = [["a red ring"]] * n
            drawn.boxes = [np.array([[0.0, 0.0, 0.5, 1.0]])] * n
            return drawn

        self.monkeypatch.setattr(ground, "catalogue", lambda shelf: papers)
        self.monkeypatch.setattr(experiment, "_open", lambda place: bridge)
        self.monkeypatch.setitem(sys.modules, "showtell.measure.prompts", SimpleNamespace(prompt_set=with_boxes))  # type: ignore[arg-type]
        self.weights("unet", 1)
        return bridge

    @property
    def ran(self) -> list[str]:
        """What ran since the last look: "arm seed", in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return lines
