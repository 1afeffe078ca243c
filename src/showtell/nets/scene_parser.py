"""The judge's network: an image in, its objects and the scene's global facts out, densely predicted.

Every cell of a 16x16 grid says, per size class, whether an object of that size is centred in it, and what it is; so
objects of different sizes may share a centre (one inside another). Two trunks of different architecture give two
judges: "conv" (dilated residual convolutions at one resolution) and "unet" (down and up again, with a skip). A parser
may look again, closely, at what it found: a second network sees each object by itself and corrects what the first said.
Source of centre-point detection: Objects as Points, arXiv 1904.07850; of a second stage that sees crops: Faster R-CNN,
arXiv 1506.01497 (crops of the picture here, not of features), which corrects by residuals, arXiv 1712.00726.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from showtell.data.targets import LETTERS, OBJECT_VALUES, SCENE_VALUES
from showtell.world.scene import RADIUS

SIZES = len(OBJECT_VALUES["size"])
OBJECT_HEADS = {name: len(values) for name, values in OBJECT_VALUES.items() if name != "size"}
GLOBAL_HEADS = {name: len(values) for name, values in SCENE_VALUES.items()}
POSSIBLE = 0.01  # at which an object deserves a closer look
_CHANNELS = 1 + 2 + 1 + sum(OBJECT_HEADS.values())  # present, offset, depth, attributes


class SceneParserConfig(PretrainedConfig):
    """Sizes of a SceneParser. trunk: "conv" or "unet"; width and depth of it; letters: of the longest word; closer:
    channels of the network that looks again at single objects, at full, half and quarter resolution; none without."""

    model_type = "showtell_scene_parser"

    def __init__(
        self,
        trunk: str = "conv",
        width: int = 80,
        depth: int = 2,
        letters: int = 8,
        image_size: int = 64,
        closer: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> None:
        self.trunk, self.width, self.depth, self.letters, self.image_size = trunk, width, depth, letters, image_size
        self.closer = tuple(closer)
        super().__init__(**kwargs)


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv_trunk(width: int, depth: int) -> nn.Sequential:
    """(n, 3, h, w) -> (n, width, h / 4, w / 4); each cell sees at least 40 pixels around it."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 4, stride=2, padding=1), _Residual(half),
        nn.Conv2d(half, width, 4, stride=2, padding=1), *(_Residual(width, dilation=2) for _ in range(depth)),
        nn.GroupNorm(8, width), nn.SiLU(),
    )  # fmt: skip


class _UNet(nn.Module):
    """Down to 8x8 cells and up again to 16x16, with a skip. (n, 3, h, w) -> (n, width, h / 4, w / 4)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        half, wide = width // 2, 3 * width // 2
        self.fine = nn.Sequential(
            nn.Conv2d(3, half, 3, padding=1), nn.AvgPool2d(2), _Residual(half),
            nn.Conv2d(half, width, 3, padding=1), nn.AvgPool2d(2), _Residual(width),
        )  # fmt: skip
        self.coarse = nn.Sequential(
            nn.Conv2d(width, wide, 3, padding=1), nn.AvgPool2d(2), *(_Residual(wide) for _ in range(depth)),
            nn.Conv2d(wide, width, 3, padding=1), nn.Upsample(scale_factor=2, mode="nearest"),
        )  # fmt: skip
        self.merge = nn.Sequential(nn.Conv2d(2 * width, width, 1), _Residual(width), nn.GroupNorm(8, width), nn.SiLU())

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        return self.merge(torch.cat([fine, self.coarse(fine)], dim=1))


class _Closer(nn.Module):
    """Logits (m, values) of all attributes from crops (m, 3, side, side) and the first network's states (m, width)
    where the objects are: to be added to the first network's, which begin at zero; and from the crops alone, which only
    guide training: where the first network is nearly always right, what is left teaches little."""

    side = 32

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        first, *others = channels
        layers: list[nn.Module] = [nn.Conv2d(3, first, 3, padding=1), _Residual(first)]
        for a, b in zip(channels, others, strict=False):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), _Residual(b)]
        self.trunk = nn.Sequential(*layers, nn.GroupNorm(8, channels[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(2))
        self.alone = nn.Linear(4 * channels[-1], sum(OBJECT_HEADS.values()))
        self.out = nn.Linear(4 * channels[-1] + width, sum(OBJECT_HEADS.values()))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, crops: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.trunk(crops).flatten(1)
        return self.out(torch.cat([seen, states], dim=1)).float(), self.alone(seen).float()

    def crops(self, images: Tensor, rows: Tensor, place: Tensor, size: Tensor) -> Tensor:
        """Of images[rows] around place (m, 2), one and a half times as wide as an object of that size class."""
        half = 1.5 * images.new_tensor(list(RADIUS.values()))[size]
        axis = (torch.arange(self.side, device=images.device) + 0.5) / self.side * 2 - 1
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
        grid = 2 * (place[:, None, None] + half[:, None, None, None] * grid) - 1
        return F.grid_sample(images[rows], grid.to(images), padding_mode="border", align_corners=False)


class SceneParser(PreTrainedModel):
    """Images (n, 3, size, size) in [-1, 1] -> dict of predictions, see `forward`."""

    config_class = SceneParserConfig
    config: SceneParserConfig
    main_input_name = "images"

    def __init__(self, config: SceneParserConfig) -> None:
        super().__init__(config)
        width = config.width
        self.stride = 4
        self.grid = config.image_size // self.stride
        trunks = {"conv": conv_trunk, "unet": _UNet}
        self.trunk: nn.Module = trunks[config.trunk](width, config.depth)
        self.object_head = nn.Sequential(nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, SIZES * _CHANNELS, 1))
        self.global_head = nn.Linear(2 * width, sum(GLOBAL_HEADS.values()))
        self.rows = 16 // self.stride  # words are written within the lowest 16 pixels
        self.word_in = nn.Linear(width * self.rows, width)
        self.word_head = nn.Linear(width * self.grid, config.letters * len(LETTERS))
        if config.closer:
            self.closer = _Closer(config.closer, width)
        self.post_init()
        with torch.no_grad():  # most slots are empty: start from there
            last = self.object_head[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.bias.view(SIZES, _CHANNELS)[:, 0] = -5.0

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, which suits convolutions better than the default of PreTrainedModel."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Per slot (size class x cell; s = 3 * grid * grid of them): present (n, s) logits, place (n, s, 2) in canvas
        units, depth (n, s) with smaller nearer, attributes (n, s, values) logits. Global attributes (n, values), word
        (n, letters, alphabet) logits, features (n, 2 * width)."""
        return self._dense(self.trunk(images))

    def _dense(self, cells: Tensor) -> dict[str, Tensor]:
        n, g = len(cells), self.grid
        maps = self.object_head(cells).float().reshape(n, SIZES, _CHANNELS, g * g).transpose(2, 3).flatten(1, 2)
        axis = (torch.arange(g, device=maps.device) + 0.5) / g
        centres = torch.stack([axis.repeat(g), axis.repeat_interleave(g)], dim=-1).repeat(SIZES, 1)
        out = {"present": maps[..., 0], "place": centres + maps[..., 1:3].tanh() / g, "depth": maps[..., 3]}
        out |= zip(OBJECT_HEADS, maps[..., 4:].split(list(OBJECT_HEADS.values()), dim=-1), strict=True)
        features = torch.cat([cells.mean(dim=(2, 3)), cells.amax(dim=(2, 3))], dim=1)
        out |= zip(
            GLOBAL_HEADS, self.global_head(features).float().split(list(GLOBAL_HEADS.values()), dim=-1), strict=True
        )
        strip = cells[:, :, -self.rows :].flatten(1, 2).transpose(1, 2)  # (n, grid, width * rows)
        letters = self.word_head(F.silu(self.word_in(strip)).flatten(1))
        out["word"] = letters.float().unflatten(-1, (self.config.letters, len(LETTERS)))
        out["features"] = features.float()
        return out

    def look(
        self, images: Tensor, cells: Tensor, rows: Tensor, place: Tensor, size: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(what a closer look adds to the logits of m objects, what it says by itself), per attribute: rows (m,) of
        their images, place (m, 2), size class (m,); cells: the trunk's states of all images."""
        column, line = self._cell(place).unbind(dim=-1)
        found = self.closer(self.closer.crops(images, rows, place, size), cells[rows, :, line, column])
        parts = zip(*(logits.split(list(OBJECT_HEADS.values()), dim=-1) for logits in found), strict=True)
        return dict(zip(OBJECT_HEADS, parts, strict=True))

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 128) -> Iterator[dict[str, np.ndarray]]:
        """What `forward` gives, as probabilities, image by image, after a closer look at what may be there;
        `data.targets.things` makes objects of it."""
        for part in images.split(batch):
            part = part.to(self.device, self.dtype)
            cells = self.trunk(part)
            out = self._dense(cells)
            out["present"] = out["present"].sigmoid()
            if self.config.closer:
                self._look_again(part, cells, out)
            for name in (*OBJECT_HEADS, *GLOBAL_HEADS, "word"):
                out[name] = out[name].softmax(dim=-1)
            arrays = {name: value.float().cpu().numpy() for name, value in out.items()}
            yield from ({name: value[i] for name, value in arrays.items()} for i in range(len(part)))

    def _look_again(self, images: Tensor, cells: Tensor, out: dict[str, Tensor]) -> None:
        """Corrects the logits of what may be there; out: of `forward`, with probabilities of presence."""
        rows, slots = (out["present"] > POSSIBLE).nonzero(as_tuple=True)
        if not len(rows):
            return
        place, size = out["place"][rows, slots].to(images), slots // self.grid**2
        for name, (more, _) in self.look(images, cells, rows, place, size).items():
            out[name][rows, slots] += more

    def _cell(self, place: Tensor) -> Tensor:
        """(column, row) of the cell that places (..., 2) in [0, 1] lie in."""
        return (place * self.grid).long().clamp(0, self.grid - 1)

    def slot(self, place: Tensor, size: Tensor) -> Tensor:
        """The slot of an object: place (..., 2) in [0, 1], size class (...)."""
        cell = self._cell(place)
        return (size * self.grid + cell[..., 1]) * self.grid + cell[..., 0]


def parser_loss(
    model: SceneParser, images: Tensor, truth: dict[str, Tensor], generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch, of the first network and of the closer look where there is one; truth as
    `showtell.data.targets.targets` makes it."""
    cells = model.trunk(images)
    out = model._dense(cells)
    parts = _first_look(model, out, truth)
    if model.config.closer:
        parts |= _closer_look(model, images, cells.detach(), out, truth, generator)
    return torch.stack(list(parts.values())).sum(), parts


def _closer_look(
    model: SceneParser,
    images: Tensor,
    cells: Tensor,
    out: dict[str, Tensor],
    truth: dict[str, Tensor],
    generator: torch.Generator | None,
    apart: float = 0.01,
) -> dict[str, Tensor]:
    """Cross-entropy of the attributes as the closer look corrects them, the first network as it is, and of what the
    crops say alone. Objects are seen about as far from their true places (standard deviation `apart`, of the canvas) as
    they are found."""
    rows, number = truth["present"].nonzero(as_tuple=True)
    place, size = (truth[name][rows, number] for name in ("place", "size"))
    slots = model.slot(place, size)
    noise = torch.randn(place.shape, generator=generator, device=place.device)
    looked = model.look(images, cells, rows, (place + apart * noise).clamp(0, 1), size)
    parts: dict[str, Tensor] = {}
    for name, (more, alone) in looked.items():
        wanted = truth[name][rows, number]
        parts[f"{name} closer"] = F.cross_entropy(out[name].detach()[rows, slots] + more, wanted)
        parts[f"{name} alone"] = F.cross_entropy(alone, wanted)
    return parts


def _first_look(model: SceneParser, out: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, Tensor]:
    present = truth["present"].float()
    slots = model.slot(truth["place"], truth["size"])
    found = torch.zeros_like(out["present"]).scatter_reduce(1, slots, present, "amax")
    each = F.binary_cross_entropy_with_logits(out["present"], found, reduction="none")
    parts = {"present": each.sum(dim=1).mean()}

    def at(name: str) -> Tensor:
        value = out[name]
        return value.gather(1, slots if value.dim() == 2 else slots[..., None].expand(-1, -1, value.shape[-1]))

    share = present / present.sum()
    for name in OBJECT_HEADS:
        each = F.cross_entropy(at(name).flatten(0, 1), truth[name].flatten(), reduction="none")
        parts[name] = (each * share.flatten()).sum()
    parts["place"] = model.grid * ((at("place") - truth["place"]).abs().sum(-1) * share).sum()
    depth, order = at("depth"), truth["depth"].float()
    nearer = (order[:, :, None] < order[:, None]) & truth["overlap"]
    ranked = F.softplus(depth[:, :, None] - depth[:, None]) * nearer
    parts["depth"] = ranked.sum() / nearer.sum().clamp(min=1)
    for name in GLOBAL_HEADS:
        parts[name] = F.cross_entropy(out[name], truth[name])
    parts["word"] = F.cross_entropy(out["word"].flatten(0, 1), truth["word"].flatten())
    return parts
