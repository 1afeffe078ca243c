"""Where in the image the words are: heat maps and masks from text-to-image attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..bridges.base import Bridge, Run
from ..errors import ShowtellError
from .maps import RecordMaps, TokenMaps, Where, averaged
from .regions import Box, cells, positions_of, words_of


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Each map (..., height, width) stretched to [0, 1]; one that is flat becomes 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=1e-12), 0.0)


def otsu(values: torch.Tensor, bins: int = 64) -> float:
    """The threshold that separates values into two classes with the largest variance between them (Otsu, 1979).

    It is the middle between the two neighbouring bins' contents; values above it are the upper class.
    """
    flat = values.detach().float().flatten()
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        return high
    counts = torch.histc(flat, bins, low, high).double()
    centres = torch.linspace(low, high, 2 * bins + 1, dtype=torch.float64)[1::2]
    weight = counts.cumsum(0) / counts.sum()
    mean = (counts * centres).cumsum(0) / counts.sum()
    between = (mean[-1] * weight - mean) ** 2 / (weight * (1 - weight)).clamp(min=1e-12)
    best = between[:-1] >= between[:-1].max() * (1 - 1e-9)  # every cut through an empty gap is as good
    cuts = torch.linspace(low, high, bins + 1, dtype=torch.float64)[1:-1]
    return float(cuts[best].mean())


def masks_of(maps: torch.Tensor, threshold: float | None = None) -> torch.Tensor:
    """Masks (bool) of maps (..., height, width): where the normalised map exceeds `threshold`, by default Otsu's."""
    stretched = normalised(maps)
    if threshold is not None:
        return stretched > threshold
    flat = stretched.reshape(-1, *maps.shape[-2:])
    return torch.stack([one > otsu(one) for one in flat]).reshape(maps.shape)


def phrase_masks(run: Run, maps: Sequence[TokenMaps], phrase: str) -> list[torch.Tensor]:
    """Where the samples of a run show a phrase of their prompts: a mask (height, width), 0 or 1, for each.

    maps: of all samples, several places and steps; their mean over the phrase's tokens is cut at Otsu's threshold. A
    prompt without the phrase gets a single 1, which is everywhere on any grid.
    """
    together = averaged(maps)
    each = [(together[row], positions_of(run, prompt, phrase)) for row, prompt in enumerate(run.prompts)]
    return [masks_of(one[at].mean(0)).float() if at else torch.ones(1, 1) for one, at in each]


def partition(maps: torch.Tensor) -> torch.Tensor:
    """For maps (words, height, width) the index of the word that each cell belongs to, (height, width)."""
    return normalised(maps).argmax(dim=-3)


def clusters(points: torch.Tensor, count: int, iterations: int = 20) -> torch.Tensor:
    """Labels (n,) of points (n, features) in `count` clusters, by k-means (Lloyd's algorithm).

    The first centre is the point farthest from the mean, each next one the farthest from those before, so that the
    same points always give the same labels. Fewer clusters than `count` are left where points coincide.
    """
    if not 1 <= count <= len(points):
        raise ShowtellError(f"{len(points)} points cannot be put into {count} clusters.")
    distance = (points - points.mean(dim=0)).square().sum(dim=1)
    chosen = [int(distance.argmax())]
    nearest = (points - points[chosen[0]]).square().sum(dim=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(dim=1))
    centres = points[chosen]
    for _ in range(iterations):
        labels = torch.cdist(points, centres).argmin(dim=1)
        member = torch.nn.functional.one_hot(labels, count).to(points)
        sizes = member.sum(dim=0)[:, None]
        moved = torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return torch.cdist(points, centres).argmin(dim=1)


def subject_masks(
    attention: torch.Tensor, boxes: Sequence[Box], grid: Sequence[int], per_subject: int = 3
) -> list[Box | torch.Tensor]:
    """A mask (height, width) for each subject of an image, from self-attention; the box where a subject gets none.

    attention: (tokens, tokens), how each token of `grid` attends to the others. Its rows are put into `per_subject`
    clusters for each subject and one for the background; a cluster belongs to the subject whose box holds most of it.
    Bounded Attention (arXiv 2403.16990, section 4.3).
    """
    if not boxes:
        return []
    owned = torch.stack([cells(box, grid).flatten() for box in boxes]).to(attention)
    labels = clusters(attention, min(per_subject * len(boxes) + 1, len(attention)))
    member = torch.nn.functional.one_hot(labels).to(attention)
    share, owner = (owned @ member / member.sum(dim=0).clamp(min=1)).max(dim=0)  # of each cluster in its best box
    subject = torch.where(share > 0.5, owner, -1)[labels]
    masks = [(subject == k).view(*grid) for k in range(len(boxes))]
    return [mask.float() if bool(mask.any()) else box for mask, box in zip(masks, boxes, strict=True)]


def word_maps(
    bridge: Bridge,
    prompt: str,
    *,
    where: Where | None = None,
    steps: tuple[float, float] = (0.0, 1.0),
    over: str = "attended",
    **options: Any,
) -> tuple[Any, list[tuple[str, torch.Tensor]]]:
    """An image of the prompt, and for each of its words in order how much every place attends to it, (height, width).

    where, steps, over: see `RecordMaps`. options: keywords of `generate` or `animate`. A word of several tokens sums
    their maps. Of a clip the image is the middle frame, and the maps are means over all frames.
    Raises UnsupportedError where the bridge shows no attention or makes neither images nor clips of a prompt.
    """
    act = "animate" if "animate" in bridge.can and "generate" not in bridge.can else "generate"
    for ability in ("attend", act):
        if ability not in bridge.can:
            raise bridge.unsupported(ability)
    found: list[tuple[str, torch.Tensor]] = []

    def receive(run: Run, maps: torch.Tensor) -> None:
        words = words_of(run, run.prompts[0])
        found.extend((word.text, maps[0, list(word.positions)].sum(0)) for word in words if word.positions)

    using = [*options.pop("using", ()), RecordMaps(receive, where, steps, over)]
    [image] = getattr(bridge, act)(prompt, using=using, **options)
    if act == "animate":
        image = image[len(image) // 2]
    if not found:
        raise ShowtellError(f"{bridge.name} showed no attention between this prompt's words and the image.")
    return image, found
