"""A linear image encoder: unit vectors in which pictures of one thing, shifted and noisy, lie close together."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


class ImageEncoderConfig(PretrainedConfig):
    """side: pictures are averaged down to side x side pixels; embedding_size: length of the vectors."""

    model_type = "showtell_image_encoder"

    def __init__(self, side: int = 24, embedding_size: int = 256, **kwargs: Any) -> None:
        self.side, self.embedding_size = side, embedding_size
        super().__init__(**kwargs)


class ImageEncoder(PreTrainedModel):
    """Images (n, 3, h, w) in [-1, 1] -> unit vectors (n, embedding_size)."""

    config_class = ImageEncoderConfig
    config: ImageEncoderConfig
    main_input_name = "images"

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__(config)
        self.project = nn.Linear(3 * config.side**2, config.embedding_size)
        self.post_init()

    def pixels(self, images: Tensor) -> Tensor:
        """(n, 3 * side * side) averaged pixels."""
        return nn.functional.adaptive_avg_pool2d(images, self.config.side).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.project(self.pixels(images)).float(), dim=-1)


def discriminant(between: np.ndarray, within: np.ndarray, size: int, ridge: float = 0.02) -> np.ndarray:
    """Fisher's linear discriminant: (d, size) directions of largest between-class for unit within-class variance.

    between: (classes, d) class means, centred. within: (d, d) covariance of the deviations from them. ridge: added to
    it, as a share of its mean variance.
    """
    from scipy.linalg import eigh

    scale = ridge * np.trace(within) / len(within)
    _, vectors = eigh(between.T @ between / len(between), within + scale * np.eye(len(within)),
                      subset_by_index=(len(within) - size, len(within) - 1))  # fmt: skip
    return np.ascontiguousarray(vectors[:, ::-1])
