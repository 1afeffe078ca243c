"""One transformer over words and image tokens: next-token (Chameleon-style) or masked prediction (Show-o-style).

Both directions are sequences of the same vocabulary: `text_vocab` words, then the codes of an `FSQModel`, then a mask
token. Autoregressive: arXiv 2405.09818 with an image in raster order. Masked: MaskGIT decoding of images (arXiv
2202.04200, cosine schedule), causal text as in Show-o (arXiv 2408.12528), image positions attend bidirectionally.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from showtell.nets.fsq import FSQModel
from showtell.nets.segments import for_attention, greedy, picked, segment_mask, segment_positions, tell


class TokenLMConfig(PretrainedConfig):
    """Sizes of a TokenLM. masked: images by masked prediction instead of next-token prediction."""

    model_type = "showtell_token_lm"

    def __init__(
        self,
        text_vocab: int = 2048,
        codes: int = 1000,
        image_tokens: int = 256,
        masked: bool = False,
        hidden_size: int = 192,
        intermediate_size: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 2,
        text_length: int = 96,
        tokenizer_channels: tuple[int, ...] = (16, 32, 64),
        **kwargs: Any,
    ) -> None:
        self.text_vocab, self.codes, self.image_tokens, self.masked = text_vocab, codes, image_tokens, masked
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.text_length, self.tokenizer_channels = text_length, tuple(tokenizer_channels)
        super().__init__(**kwargs)


class TokenLM(PreTrainedModel):
    """LlamaModel over [source image tokens] [words] [target image tokens], with its own image tokenizer inside.

    Images are (n, 3, 64, 64) in [-1, 1]; ids (n, length) int64, padded at the end; valid is False at padding.
    """

    config_class = TokenLMConfig
    config: TokenLMConfig
    _supports_sdpa = True
    main_input_name = "ids"

    def __init__(self, config: TokenLMConfig) -> None:
        super().__init__(config)
        self.mask_id = config.text_vocab + config.codes
        self.backbone = LlamaModel(
            LlamaConfig(
                vocab_size=self.mask_id + 1,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                max_position_embeddings=2 * config.image_tokens + config.text_length,
                attn_implementation="sdpa",
            )
        )
        self.place = torch.nn.Parameter(0.02 * torch.randn(2, config.image_tokens, config.hidden_size))
        self.tokenizer = FSQModel(block_out_channels=config.tokenizer_channels).requires_grad_(False)
        self.post_init()

    def embed(self, ids: Tensor | None, source: Tensor | None, target: Tensor | None) -> Tensor:
        """Embeddings of the segments that are there; source and target hold codes (n, up to image_tokens)."""
        words, offset, parts = self.backbone.embed_tokens, self.config.text_vocab, []
        if source is not None:
            parts.append(words(source + offset) + self.place[0])
        if ids is not None:
            parts.append(words(ids))
        if target is not None:
            parts.append(words(target + offset) + self.place[1, : target.shape[1]])
        return torch.cat(parts, dim=1)

    def positions(self, source: bool, text: int, target: int, device: Any) -> Tensor:
        return segment_positions(self.config.image_tokens, self.config.text_length, source, text, target, device)

    def mask(self, source: bool, valid: Tensor, target: int) -> Tensor:
        allowed = segment_mask(self.config.image_tokens, source, valid, target, self.config.masked)
        return for_attention(self.backbone, allowed, self.dtype)

    def forward(
        self, ids: Tensor, valid: Tensor, source: Tensor | None = None, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (text (n, text, vocab), image (n, image_tokens, codes) | None) for source and target codes.

        Autoregressive: image logits i come from the token before i (the last word for i = 0). Masked: from i itself,
        target entries equal to `codes` being masked.
        """
        text, start = ids.shape[1], self.config.image_tokens if source is not None else 0
        count = 0 if target is None else target.shape[1]
        hidden = self.backbone(
            inputs_embeds=self.embed(ids, source, target),
            attention_mask=self.mask(source is not None, valid, count),
            position_ids=self.positions(source is not None, text, count, ids.device),
            use_cache=False,
        ).last_hidden_state
        words = self.logits(hidden[:, start : start + text])
        if target is None:
            return words, None
        shown = hidden[:, start + text :]
        if not self.config.masked:
            last = hidden[torch.arange(len(ids), device=ids.device), start + valid.sum(dim=1) - 1]
            shown = torch.cat([last[:, None], shown[:, :-1]], dim=1)
        return words, self.image_logits(shown)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.backbone.embed_tokens.weight[: self.config.text_vocab].T

    def image_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.backbone.embed_tokens.weight[self.config.text_vocab : self.mask_id].T

    # --- use -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefix(self, ids: Tensor, valid: Tensor, source: Tensor | None = None) -> tuple[DynamicCache, Tensor]:
        """Runs source codes and text once; returns the cache and the hidden text states."""
        cache = DynamicCache()
        hidden = self.backbone(
            inputs_embeds=self.embed(ids, source, None),
            attention_mask=self.mask(source is not None, valid, 0),
            position_ids=self.positions(source is not None, ids.shape[1], 0, ids.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return cache, hidden[:, -ids.shape[1] :]

    def _continue(self, cache: DynamicCache, keys: Tensor, target: Tensor, first: int) -> Tensor:
        """Hidden states of the target codes from position `first` on, with `keys` (n, past + new) attended."""
        start = self.config.image_tokens + self.config.text_length + first
        count = target.shape[1]
        place = self.place[1, first : first + count]
        return self.backbone(
            inputs_embeds=self.backbone.embed_tokens(target + self.config.text_vocab) + place,
            attention_mask=for_attention(self.backbone, keys[:, None, None].expand(-1, 1, count, -1), self.dtype),
            position_ids=torch.arange(start, start + count, device=keys.device)[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    @torch.no_grad()
    def show(
        self,
        ids: Tensor,
        valid: Tensor,
        source: Tensor | None,
        uniform: Any,
        guidance: float = 1.0,
        steps: int = 16,
        temperature: float = 1.0,
    ) -> Tensor:
        """Codes (n, image_tokens). ids hold n conditional rows, then n unconditional ones if guidance != 1.

        uniform(shape) gives one random number in [0, 1) per entry for shape (n, ...): the randomness of each sample.
        """
        cache, hidden = self.prefix(ids, valid, source)
        rows = torch.arange(len(ids), device=ids.device)
        past = valid if source is None else torch.cat([valid.new_ones(len(ids), self.config.image_tokens), valid], 1)
        last = hidden[rows, valid.sum(dim=1) - 1]
        if self.config.masked:
            return self._unmask(cache, past, uniform, guidance, steps, temperature)
        codes: list[Tensor] = []
        for i in range(self.config.image_tokens):
            logits = self._guide(self.image_logits(last), guidance) / temperature
            code = picked(logits.float().softmax(dim=-1), uniform((len(logits), 1)))
            codes.append(code)
            if i + 1 < self.config.image_tokens:
                past = torch.cat([past, past.new_ones(len(past), 1)], dim=1)
                both = code.repeat(len(ids) // len(code))
                last = self._continue(cache, past, both[:, None], i)[:, -1]
        return torch.stack(codes, dim=1)

    def _guide(self, logits: Tensor, guidance: float) -> Tensor:
        if guidance == 1.0:
            return logits
        told, blank = logits.chunk(2)
        return blank + guidance * (told - blank)

    def _unmask(
        self, cache: DynamicCache, past: Tensor, uniform: Any, guidance: float, steps: int, temperature: float
    ) -> Tensor:
        count, blank = self.config.image_tokens, self.config.codes
        n = len(past) // (1 if guidance == 1.0 else 2)
        codes = torch.full((n, count), blank, device=past.device)
        keys = torch.cat([past, past.new_ones(len(past), count)], dim=1)
        for step in range(steps):
            hidden = self._continue(cache, keys, codes.repeat(len(past) // n, 1), 0)
            cache.crop(-count)
            probability = (self._guide(self.image_logits(hidden), guidance) / temperature).float().softmax(dim=-1)
            drawn = picked(probability, uniform((n, count, 1)))
            score = probability.gather(-1, drawn[..., None])[..., 0].clamp(min=1e-9).log()
            heat = 3.0 * (1 - (step + 1) / steps)  # annealed Gumbel noise on the confidence, as MaskGIT samples
            score = score - heat * (-(uniform((n, count)).clamp(1e-6, 1 - 1e-6)).log()).log()
            masked = codes == blank
            drawn = torch.where(masked, drawn, codes)
            keep = count - math.floor(count * math.cos(math.pi / 2 * (step + 1) / steps))
            keep = count if step + 1 == steps else max(keep, 1)
            order = score.masked_fill(~masked, float("inf")).argsort(dim=-1, descending=True)
            kept = torch.zeros_like(masked).scatter(1, order[:, :keep], True)
            codes = torch.where(kept, drawn, blank)
        return codes

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
        return tell(self, cache, hidden, valid, self.config.image_tokens, stop, length, choose)
