"""The judge's network: an image in, a set of objects and the scene's global facts out (DETR-style set prediction).

Two trunks of different architecture give two independent judges: "conv" (residual convolutions, queries read the
feature map by cross-attention) and "vit" (patches and queries in one encoder). Source of the set loss: arXiv 2005.12872.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from showtell.data.targets import LETTERS, OBJECT_VALUES, SCENE_VALUES

OBJECT_HEADS = {name: len(values) for name, values in OBJECT_VALUES.items()}
GLOBAL_HEADS = {name: len(values) for name, values in SCENE_VALUES.items()}


class SceneParserConfig(PretrainedConfig):
    """Sizes of a SceneParser. trunk: "conv" or "vit"; queries: how many objects can be found; letters: word length."""

    model_type = "showtell_scene_parser"

    def __init__(
        self,
        trunk: str = "conv",
        width: int = 128,
        depth: int = 2,
        queries: int = 6,
        letters: int = 8,
        image_size: int = 64,
        patch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        self.trunk, self.width, self.depth, self.queries, self.letters = trunk, width, depth, queries, letters
        self.image_size, self.patch_size = image_size, patch_size
        super().__init__(**kwargs)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv_trunk(width: int) -> nn.Sequential:
    """(n, 3, h, w) -> (n, width, h / 4, w / 4)."""
    half, quarter = width // 2, width // 4
    return nn.Sequential(
        nn.Conv2d(3, quarter, 3, padding=1), _Residual(quarter),
        nn.Conv2d(quarter, half, 3, stride=2, padding=1), _Residual(half),
        nn.Conv2d(half, width, 3, stride=2, padding=1), _Residual(width),
    )  # fmt: skip


class SceneParser(PreTrainedModel):
    """Images (n, 3, size, size) in [-1, 1] -> dict of logits, see `forward`."""

    config_class = SceneParserConfig
    config: SceneParserConfig
    main_input_name = "images"

    def __init__(self, config: SceneParserConfig) -> None:
        super().__init__(config)
        width, slots = config.width, config.queries + 2
        self.queries = nn.Parameter(0.5 * torch.randn(slots, width))  # one per object, one for the scene, one for the word
        common = dict(d_model=width, nhead=width // 32, dim_feedforward=2 * width, dropout=0.0, batch_first=True)
        if config.trunk == "conv":
            self.trunk = conv_trunk(width)
            cells = (config.image_size // 4) ** 2
            layer = nn.TransformerDecoderLayer(**common, norm_first=True, activation="gelu")
            self.mixer: nn.Module = nn.TransformerDecoder(layer, config.depth, norm=nn.LayerNorm(width))
        else:
            patch = config.patch_size
            self.trunk = nn.Sequential(nn.Conv2d(3, width, patch, stride=patch))
            cells = (config.image_size // patch) ** 2
            encoder = nn.TransformerEncoderLayer(**common, norm_first=True, activation="gelu")
            self.mixer = nn.TransformerEncoder(encoder, config.depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.place = nn.Parameter(0.02 * torch.randn(cells, width))
        self.object_head = nn.Linear(width, 1 + 2 + 1 + sum(OBJECT_HEADS.values()))
        self.global_head = nn.Linear(width, sum(GLOBAL_HEADS.values()))
        self.word_head = nn.Linear(width, config.letters * len(LETTERS))
        self.post_init()

    def features(self, images: Tensor) -> Tensor:
        """(n, slots, width): the objects' queries, the scene's, the word's, after reading the image."""
        cells = self.trunk(images).flatten(2).transpose(1, 2) + self.place
        queries = self.queries.expand(len(images), -1, -1)
        if self.config.trunk == "conv":
            return self.mixer(queries, cells)
        return self.mixer(torch.cat([queries, cells], dim=1))[:, : queries.shape[1]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """present (n, q), place (n, q, 2) in [0, 1], depth (n, q) with smaller nearer, per-object logits by attribute
        (n, q, values), global logits by attribute (n, values), word (n, letters, alphabet), features (n, width)."""
        slots = self.features(images).float()
        things = self.object_head(slots[:, :-2])
        out = {"present": things[..., 0], "place": things[..., 1:3].sigmoid(), "depth": things[..., 3]}
        out |= zip(OBJECT_HEADS, things[..., 4:].split(list(OBJECT_HEADS.values()), dim=-1), strict=True)
        out |= zip(GLOBAL_HEADS, self.global_head(slots[:, -2]).split(list(GLOBAL_HEADS.values()), dim=-1), strict=True)
        out["word"] = self.word_head(slots[:, -1]).unflatten(-1, (self.config.letters, len(LETTERS)))
        out["features"] = slots[:, -2]
        return out


def assign(out: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """The cheapest one-to-one assignment of true objects to queries: (n, objects) query indices.

    truth: present (n, objects) bool, place (n, objects, 2), attributes (n, objects) int64. All assignments are
    enumerated, which for six queries and five objects is 720: exact, batched and free of host synchronisation.
    """
    n, objects = truth["present"].shape
    cost = 5 * (out["place"][:, :, None] - truth["place"][:, None]).abs().sum(-1)  # (n, q, objects)
    for name in ("shape", "colour", "size"):
        chosen = truth[name][:, None].expand(-1, out[name].shape[1], -1)
        cost = cost - out[name].softmax(-1).gather(-1, chosen)
    cost = (cost - out["present"].sigmoid()[..., None]) * truth["present"][:, None]
    picks = torch.tensor(list(itertools.permutations(range(out["present"].shape[1]), objects)), device=cost.device)
    total = sum(cost[:, picks[:, j], j] for j in range(objects))
    return picks[total.argmin(dim=1)]  # type: ignore[union-attr]


def set_loss(out: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch. truth as in `assign`, plus depth (n, objects), overlap (n, objects, objects) bool where the
    order in depth is visible, global attributes (n,), word (n, letters)."""
    picks = assign({k: v.detach() for k, v in out.items()}, truth)
    present, entropy = truth["present"].float(), nn.functional.cross_entropy
    found = torch.zeros_like(out["present"]).scatter(1, picks, present)
    parts = {"present": nn.functional.binary_cross_entropy_with_logits(out["present"], found)}

    def at(name: str) -> Tensor:
        value = out[name]
        index = picks if value.dim() == 2 else picks[..., None].expand(-1, -1, value.shape[-1])
        return value.gather(1, index)

    share = present / present.sum()
    for name in OBJECT_HEADS:
        each = entropy(at(name).flatten(0, 1), truth[name].flatten(), reduction="none")
        parts[name] = (each * share.flatten()).sum()
    parts["place"] = 5 * ((at("place") - truth["place"]).abs().sum(-1) * share).sum()
    depth, order = at("depth"), truth["depth"].float()
    nearer = (order[:, :, None] < order[:, None]) & truth["overlap"]
    ranked = nn.functional.softplus(depth[:, :, None] - depth[:, None]) * nearer
    parts["depth"] = ranked.sum() / nearer.sum().clamp(min=1)
    for name in GLOBAL_HEADS:
        parts[name] = entropy(out[name], truth[name])
    parts["word"] = entropy(out["word"].flatten(0, 1), truth["word"].flatten())
    return torch.stack(list(parts.values())).sum(), parts
