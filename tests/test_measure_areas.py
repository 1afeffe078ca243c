"""Areas of pictures: what covers them and how calm they are, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from showtell.measure import areas
from showtell.measure.areas import covered, edge_energy
from showtell.world import Scene, SceneObject

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def test_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Scene((SceneObject("square", "red", x=0.25, y=0.5),))
    other = Scene((SceneObject("circle", "red", x=0.25, y=0.5),))
    monkeypatch.setattr(areas, "read", lambda images, judge: [wanted, wanted, other])
    inside, outside, lost = covered([None] * 3, [wanted] * 3, [LEFT, RIGHT, LEFT])
    assert inside == pytest.approx(0.3 * 0.3 / 0.5, abs=0.05), "a medium square has a side of about 0.3"
    assert outside == 0 and np.isnan(lost), "another shape is no square"


def test_edge_energy() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 6:] = 255  # one edge down the right half, of one change in each of eight rows
    image = Image.fromarray(pixels)
    assert edge_energy([image, image], [LEFT, RIGHT]).tolist() == [0, 8 / 32]
    assert edge_energy([image.rotate(90)], [LEFT]).tolist() == [4 / 32], "rotated, half of the edge is on either side"
