"""A small image encoder with a cosine classifier: the emoji retrieval model, and the eye of other metrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from showtell.nets.scene_parser import conv_trunk


class ImageEncoderConfig(PretrainedConfig):
    """width: channels of the trunk; embedding_size: of the unit vectors; classes: how many pictures it tells apart."""

    model_type = "showtell_image_encoder"

    def __init__(self, width: int = 64, embedding_size: int = 128, classes: int = 4000, **kwargs: Any) -> None:
        self.width, self.embedding_size, self.classes = width, embedding_size, classes
        super().__init__(**kwargs)


class ImageEncoder(PreTrainedModel):
    """Images (n, 3, 64, 64) in [-1, 1] -> unit vectors (n, embedding_size)."""

    config_class = ImageEncoderConfig
    config: ImageEncoderConfig
    main_input_name = "images"

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__(config)
        width = config.width
        self.trunk = conv_trunk(width, 1)
        self.deep = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, width, 3, stride=2, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(16 * width, config.embedding_size)
        self.classes = nn.Linear(config.embedding_size, config.classes, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, which suits convolutions better than the default of PreTrainedModel."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(self.deep(self.trunk(images)).flatten(1)).float(), dim=-1)

    def logits(self, images: Tensor, scale: float = 24.0) -> Tensor:
        """Scaled cosines (n, classes) to the class vectors."""
        return scale * self(images) @ nn.functional.normalize(self.classes.weight.float(), dim=-1).T
