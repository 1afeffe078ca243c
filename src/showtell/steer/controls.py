"""Further networks that control a UNet beside its prompt (ControlNet, arXiv 2302.05543), several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..bridges.base import Run, Technique


class Summed(Technique):
    """The outputs of several controls, each for a condition of its own, added up (Multi-ControlNet).

    controls: techniques that put what they give the UNet into `run.own["residuals"]` when a run starts.
    """

    def __init__(self, controls: Sequence[Technique]) -> None:
        self.controls = list(controls)

    def start(self, run: Run, latents: torch.Tensor) -> None:
        own: dict[str, Any] = run.own  # type: ignore[attr-defined]
        each = []
        for control in self.controls:
            control.start(run, latents)
            each.append(own["residuals"])

        def residuals(*args: Any) -> dict[str, Any]:
            found = [one(*args) for one in each]
            down = [sum(parts) for parts in zip(*(x["down_block_additional_residuals"] for x in found), strict=True)]
            middle = sum(x["mid_block_additional_residual"] for x in found)
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

        own["residuals"] = residuals
