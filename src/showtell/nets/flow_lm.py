"""One transformer for both directions: words by next-token prediction, images by rectified flow (Transfusion-style).

A sequence has up to three segments: a clean source image, text, a noisy target image. Text attends causally to the
source and itself; source and target attend bidirectionally within themselves; the target sees everything.
Images flow as latents of a KL autoencoder that lies in the checkpoint and is not trained further.
Source: Transfusion, arXiv 2408.11039 (mixed sequence and mask); latents: arXiv 2112.10752; prediction of the clean
latents with the velocity loss: Back to Basics, arXiv 2511.13720 (eq. 1-3); rectified flow: arXiv 2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from showtell.nets.scene_parser import conv_trunk
from showtell.nets.segments import for_attention, greedy, segment_mask, segment_positions, tell


def small_vae(channels: tuple[int, ...] = (16, 32, 64), latents: int = 4) -> dict[str, Any]:
    """Arguments of an AutoencoderKL for small pictures: one latent per 2 ** (len(channels) - 1) pixels each way."""
    return {
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 1,
        "latent_channels": latents,
        "norm_num_groups": 8,
        "sample_size": 64,
        "mid_block_add_attention": False,
    }


class FlowLMConfig(PretrainedConfig):
    """Sizes of a FlowLM. image_size in pixels; patch_size in latents (a patch must be 8 pixels, the eye's stride);
    text_length in tokens; eye_width, eye_depth: of the convolutions that read source images; vae: the arguments of
    diffusers' AutoencoderKL, by default those of `small_vae`."""

    model_type = "showtell_flow_lm"

    def __init__(
        self,
        vocab_size: int = 2048,
        hidden_size: int = 192,
        intermediate_size: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 2,
        image_size: int = 64,
        patch_size: int = 2,
        text_length: int = 96,
        embedding_size: int = 128,
        eye_width: int = 80,
        eye_depth: int = 2,
        vae: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.image_size, self.patch_size, self.text_length = image_size, patch_size, text_length
        self.embedding_size, self.eye_width, self.eye_depth = embedding_size, eye_width, eye_depth
        self.vae = small_vae() if vae is None else vae
        super().__init__(**kwargs)


class FlowLM(PreTrainedModel):
    """LlamaModel over source patches, tokens and noisy target patches; heads for tokens, clean patches, embeddings.

    Images are (n, 3, image_size, image_size) in [-1, 1]; latents (n, 4, image_size / 4, image_size / 4), about unit
    variance; ids (n, length) int64, padded at the end.
    """

    config_class = FlowLMConfig
    config: FlowLMConfig
    _supports_sdpa = True
    main_input_name = "ids"

    def __init__(self, config: FlowLMConfig) -> None:
        super().__init__(config)
        self.vae = AutoencoderKL(**config.vae).requires_grad_(False)
        stride = 2 ** (len(config.vae["block_out_channels"]) - 1)
        self.channels, self.latent_size = int(config.vae["latent_channels"]), config.image_size // stride
        width, patch = config.hidden_size, self.channels * config.patch_size**2
        self.grid = self.latent_size // config.patch_size
        self.backbone = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=width,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                max_position_embeddings=2 * self.grid**2 + config.text_length,
                attn_implementation="sdpa",
            )
        )
        self.eye = conv_trunk(config.eye_width, config.eye_depth)
        self.eye_in = nn.Linear(4 * config.eye_width, width)
        self.patch_in = nn.Linear(patch, width)
        self.place = nn.Parameter(0.02 * torch.randn(2, self.grid**2, width))  # source and target positions
        self.clock = Timesteps(128, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_in = TimestepEmbedding(128, width)
        self.patch_out = nn.Linear(width, patch)
        self.image_embedding = nn.Linear(width, config.embedding_size, bias=False)
        self.text_embedding = nn.Linear(width, config.embedding_size, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.0))  # log of the contrastive scale
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone initialises itself; the rest keeps PyTorch's own initialisation."""

    # --- pieces ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents_of(self, images: Tensor) -> Tensor:
        """The mode of the autoencoder's distribution, shifted and scaled as its config says."""
        shift = self.vae.config.shift_factor or 0.0
        return (self.vae.encode(images).latent_dist.mode() - shift) * self.vae.config.scaling_factor

    def patches(self, latents: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, grid * grid, channels * patch * patch)."""
        p = self.config.patch_size
        return nn.functional.unfold(latents, p, stride=p).transpose(1, 2)

    def unpatch(self, tokens: Tensor) -> Tensor:
        """Inverse of `patches`."""
        p, size = self.config.patch_size, self.latent_size
        return nn.functional.fold(tokens.transpose(1, 2), (size, size), p, stride=p)

    def embed_source(self, images: Tensor) -> Tensor:
        seen = nn.functional.unfold(self.eye(images), 2, stride=2).transpose(1, 2)
        return self.eye_in(seen) + self.patch_in(self.patches(self.latents_of(images))) + self.place[0]

    def embed_target(self, noisy: Tensor, time: Tensor) -> Tensor:
        """noisy latents, time (n,) in [0, 1] with 1 clean."""
        clock = self.time_in(self.clock(1000 * time).to(self.place.dtype))
        return self.patch_in(self.patches(noisy)) + self.place[1] + clock[:, None]

    def positions(self, source: bool, text: int, target: bool, device: Any) -> Tensor:
        image = self.grid**2
        return segment_positions(image, self.config.text_length, source, text, image * target, device)

    def mask(self, source: bool, valid: Tensor, target: bool) -> Tensor:
        allowed = segment_mask(self.grid**2, source, valid, self.grid**2 * target)
        return for_attention(self.backbone, allowed, self.dtype)

    # --- training --------------------------------------------------------------------------------------------------

    def forward(
        self,
        ids: Tensor,
        valid: Tensor,
        source: Tensor | None = None,
        noisy: Tensor | None = None,
        time: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Hidden states of each segment: (source (n, image, d) | None, text (n, text, d), clean latents | None).

        ids: (n, text) token ids, or (n, text, d) token embeddings. source: images; noisy: latents;
        time: (n,) in [0, 1], 1 being clean.
        """
        text = ids.shape[1]
        parts = [self.backbone.embed_tokens(ids) if ids.dim() == 2 else ids]
        if source is not None:
            parts.insert(0, self.embed_source(source))
        if noisy is not None:
            assert time is not None
            parts.append(self.embed_target(noisy, time))
        hidden = self.backbone(
            inputs_embeds=torch.cat(parts, dim=1),
            attention_mask=self.mask(source is not None, valid, noisy is not None),
            position_ids=self.positions(source is not None, text, noisy is not None, ids.device),
            use_cache=False,
        ).last_hidden_state
        image = self.grid**2
        seen = hidden[:, :image] if source is not None else None
        start = image if source is not None else 0
        shown = self.unpatch(self.patch_out(hidden[:, -image:]).float()) if noisy is not None else None
        return seen, hidden[:, start : start + text], shown

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits; the output matrix is the embedding matrix."""
        return hidden @ self.backbone.embed_tokens.weight.T

    def embed_images(self, seen: Tensor) -> Tensor:
        """Unit vectors (n, embedding_size) from hidden source states."""
        return nn.functional.normalize(self.image_embedding(seen.mean(dim=1)).float(), dim=-1)

    def embed_texts(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Unit vectors (n, embedding_size) from hidden text states at position `last` (n,)."""
        picked = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return nn.functional.normalize(self.text_embedding(picked).float(), dim=-1)

    # --- use -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefix(self, ids: Tensor, valid: Tensor, source: Tensor | None = None) -> tuple[DynamicCache, Tensor]:
        """Runs source and text once. Returns the key-value cache and the hidden text states."""
        parts = [self.backbone.embed_tokens(ids)]
        if source is not None:
            parts.insert(0, self.embed_source(source))
        cache = DynamicCache()
        hidden = self.backbone(
            inputs_embeds=torch.cat(parts, dim=1),
            attention_mask=self.mask(source is not None, valid, False),
            position_ids=self.positions(source is not None, ids.shape[1], False, ids.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return cache, hidden[:, -ids.shape[1] :]

    @torch.no_grad()
    def tell(
        self,
        ids: Tensor,
        valid: Tensor,
        source: Tensor | None,
        stop: int,
        length: int,
        choose: Callable[[Tensor], Tensor] = greedy,
    ) -> list[list[int]]:
        """Continuation of each row (greedy, or as `choose` picks from logits) until `stop` or `length` new tokens."""
        cache, hidden = self.prefix(ids, valid, source)
        return tell(self, cache, hidden, valid, self.grid**2, stop, length, choose)
