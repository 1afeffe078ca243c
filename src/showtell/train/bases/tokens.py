"""The bases that write images as tokens: autoregressive, masked, and scale by scale."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.data.signal import to_signal
from showtell.data.text import train_tokenizer
from showtell.train.bases import text
from showtell.train.bases.attention import plain_attention
from showtell.train.bases.codes import SCALES, fit_scales, packaged_vq, read_codes, to_scales, unit_range
from showtell.train.bases.pool import packaged_vae, pool_scenes, read_pool
from showtell.train.bases.saving import save_model, save_pipeline
from showtell.train.bases.seeing import CAPTION, WHOLE, Turn, asked, padded
from showtell.train.recipe import Recipe
from showtell.world import draw

Loss = tuple[Tensor, dict[str, Tensor]]
Make = Callable[[np.random.Generator, int], dict[str, np.ndarray]]
MARKS = ("<boi>", "<eoi>", "<image>")


class Saved(nn.Module):
    """A model that is saved with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with plain_attention():
            return self.model(*inputs, **named)

    def save_pretrained(self, target: str | Path) -> None:
        save_model(self.model, self.tokenizer, target)


def settings(model: Any) -> dict[str, Any]:
    """What a diffusers model was made with, as a config may hold it."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


# --- ar --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def lm_tokenizer() -> Any:
    """A PreTrainedTokenizerFast that opens every text with <bos>; every word of the world is one token."""
    from tokenizers import processors

    requests = [CAPTION, WHOLE, "Yes No", " ".join(text.vocabulary())]
    tokenizer = train_tokenizer([*text.sentences(), *requests * 20], vocab_size=2048, special=MARKS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def ar(width: int = 128, layers: int = 5) -> Saved:
    """An ImageTextLM: prompt, then 256 image tokens; or image tokens, then a question and its answer."""
    from showtell.nets.image_text_lm import ImageTextLM, ImageTextLMConfig

    tokenizer, vq = lm_tokenizer(), packaged_vq()
    model = ImageTextLM(
        ImageTextLMConfig(
            words=len(tokenizer), vocab_size=len(tokenizer) + vq.config.num_vq_embeddings, side=16, vq=settings(vq),
            hidden_size=width, intermediate_size=5 * width // 2, num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64), max_position_embeddings=512, tie_word_embeddings=True,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.vq.load_state_dict(vq.state_dict())
    model.generation_config.do_sample = True
    return Saved(model, tokenizer)


def told_and_shown(source: str) -> Make:
    """Batches of {ids (n, length), shown, wanted (n, length) bool: the tokens of the image, and of the reply}.

    Two rows in three are a prompt (one in ten empty) and its image, one an image, a request and the reply.
    """
    codes, captions = read_codes()
    tokenizer, vq = lm_tokenizer(), packaged_vq()
    words = len(tokenizer)
    opens, closes, ends = (tokenizer.convert_tokens_to_ids(name) for name in ("<boi>", "<eoi>", "<eos>"))

    def shown(rng: np.random.Generator, pick: random.Random, count: int) -> list[Turn]:
        rows = []
        for row in rng.integers(len(codes), size=count):
            told = "" if pick.random() < 0.1 else pick.choices(captions[row], text.WORDING_SHARES)[0]
            rows.append(([*tokenizer(told)["input_ids"], opens], [*(codes[row] + words).tolist(), closes]))
        return rows

    def read(rng: np.random.Generator, pick: random.Random, count: int) -> list[Turn]:
        scenes, rows = pool_scenes(rng, count), []
        with torch.no_grad():
            latents = vq.encode(to_signal(torch.from_numpy(draw(scenes)))).latents.permute(0, 2, 3, 1).flatten(1, 2)
            book = vq.quantize.embedding.weight
            tokens = (latents @ book.T - book.square().sum(dim=1) / 2).argmax(dim=-1)
        for scene, seen in zip(scenes, (tokens + words).tolist(), strict=True):
            request, reply = asked(scene, pick.choice(scenes), pick)
            first, *rest = tokenizer(f"{request}<sep>")["input_ids"]
            answer = tokenizer(reply, add_special_tokens=False)["input_ids"]
            rows.append(([first, opens, *seen, closes, *rest], [*answer, ends]))
        return rows

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        pick = random.Random(int(rng.integers(2**62)))
        reading = size // 3
        rows = shown(rng, pick, size - reading) + read(rng, pick, reading)
        batch = padded([[row] for row in rows], tokenizer.pad_token_id)
        return {**batch, "shown": batch["ids"] >= words}

    return make


def token_loss(model: Saved, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Cross entropy of image tokens among the codes, and of replies among everything."""
    net = model.model
    with plain_attention():
        hidden = net.model(input_ids=batch["ids"], use_cache=False).last_hidden_state[:, :-1]
    ids, words = batch["ids"][:, 1:], net.config.words
    shown = batch["shown"][:, 1:]
    image = F.cross_entropy(net.head(hidden[shown]).float(), ids[shown] - words)
    wanted = batch["wanted"][:, 1:] & ~shown
    reply = F.cross_entropy(net.lm_head(hidden[wanted]).float(), ids[wanted])
    return image + 0.5 * reply, {"image": image.detach(), "reply": reply.detach()}


# --- masked ----------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """The trained parts of an AmusedPipeline."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.transformer, self.text_encoder = pipeline.transformer, pipeline.text_encoder
        self.pipeline = pipeline

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Logits (n, codes, 16, 16) of tokens (n, 16, 16), some of them masked."""
        with plain_attention():
            told = self.text_encoder(ids, output_hidden_states=True)
            return self.transformer(
                tokens,
                micro_conds=torch.tensor([[64.0, 64, 0, 0, 6]], device=ids.device).expand(len(ids), -1),
                pooled_text_emb=told.text_embeds,
                encoder_hidden_states=told.hidden_states[-2],
            )

    def save_pretrained(self, target: str | Path) -> None:
        save_pipeline(self.pipeline, target)


def masked(width: int = 128, layers: int = 5, text_width: int = 128, text_layers: int = 3) -> Masked:
    """An AmusedPipeline: 16x16 tokens, brought to 8x8 inside."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel

    tokenizer, vq = text.clip_tokenizer(), packaged_vq()
    codes = vq.config.num_vq_embeddings
    pipeline = AmusedPipeline(
        vqvae=unit_range(vq),
        tokenizer=tokenizer,
        text_encoder=text.clip_text(tokenizer, text_width, text_layers, projection=True),
        transformer=UVit2DModel(
            hidden_size=width, cond_embed_dim=text_width, micro_cond_encode_dim=8, micro_cond_embed_dim=40,
            encoder_hidden_size=text_width, vocab_size=codes + 1, codebook_size=codes, in_channels=64,
            block_out_channels=64, num_res_blocks=1, downsample=True, upsample=True, block_num_heads=1,
            num_hidden_layers=layers, num_attention_heads=max(1, width // 64), intermediate_size=2 * width,
            attention_dropout=0.0, hidden_dropout=0.0, sample_size=16,
        ),
        scheduler=AmusedScheduler(mask_token_id=codes),
    )  # fmt: skip
    return Masked(pipeline)


def prompted_codes(source: str) -> Make:
    """Batches of {codes (n, 16, 16), ids (n, length)}."""
    codes, captions = read_codes()
    prompts = text.Prompts(text.clip_tokenizer(), captions)

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        rows = rng.integers(len(codes), size=size)
        return {"codes": codes[rows].astype(np.int64).reshape(size, 16, 16), "ids": prompts(rng, rows)["ids"]}

    return make


def hidden_tokens(codes: Tensor, generator: torch.Generator | None) -> Tensor:
    """Which tokens to mask, bool like the codes (n, ...), at least one in each row; the share follows a cosine
    (arXiv 2202.04200, section 3.3)."""
    flat = codes.flatten(1)
    share = torch.cos(math.pi / 2 * torch.rand(len(flat), 1, generator=generator, device=flat.device))
    order = torch.rand(flat.shape, generator=generator, device=flat.device).argsort(dim=1)
    return (order < (share * flat.shape[1]).ceil().clamp(min=1)).view_as(codes)


def mask_loss(model: Masked, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Cross entropy of the masked tokens."""
    codes = batch["codes"]
    hidden = hidden_tokens(codes, generator)
    blank = model.pipeline.scheduler.config.mask_token_id
    logits = model(torch.where(hidden, blank, codes), batch["ids"]).permute(0, 2, 3, 1)
    loss = F.cross_entropy(logits[hidden].float(), codes[hidden])
    return loss, {"right": (logits[hidden].argmax(dim=-1) == codes[hidden]).float().mean()}


# --- scalewise -------------------------------------------------------------------------------------------------------


def scalewise(rows: int = 3000, **sizes: Any) -> Saved:
    """A ScaleWise whose codebooks are fitted to the pool."""
    from showtell.nets.scalewise import ScaleWise, ScaleWiseConfig

    tokenizer, vae = text.clip_tokenizer(), packaged_vae()
    config = ScaleWiseConfig(text_vocab=len(tokenizer), scales=SCALES, vae=settings(vae), **sizes)
    model = ScaleWise(config)
    model.vae.load_state_dict(vae.state_dict())
    model.books.copy_(fit_scales(pool_latents()[:rows], config.codes))
    if not torch.cuda.is_available():
        model.backbone.config._attn_implementation = "eager"  # trains faster on a CPU than the fused kernel
    return Saved(model, tokenizer)


def pool_latents() -> Tensor:
    """(rows, 4, 16, 16) float32."""
    return torch.from_numpy(read_pool(packaged_vae())[0][:, 0].astype(np.float32))


def scaled_codes(source: str) -> Make:
    """Batches of {latents (n, 4, 16, 16), ids, real (n, length)}; the model holds the codebooks."""
    latents, captions = read_pool(packaged_vae())
    prompts = text.Prompts(text.clip_tokenizer(), captions)

    def make(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        rows = rng.integers(len(latents), size=size)
        return {"latents": latents[rows, 0].astype(np.float32), **prompts(rng, rows)}

    return make


def scale_loss(model: Saved, batch: dict[str, Tensor], generator: torch.Generator | None) -> Loss:
    """Cross entropy of every token of every scale (arXiv 2404.02905, section 3.2)."""
    net = model.model
    with torch.no_grad():
        codes = to_scales(batch["latents"], net.books.float(), net.config.scales)
    found = model(batch["ids"], batch["real"], codes)
    each = [F.cross_entropy(one.flatten(0, 1).float(), part.flatten()) for one, part in zip(found, codes, strict=True)]
    counts = [part.shape[1] for part in codes]
    loss = sum(one * count for one, count in zip(each, counts, strict=True)) / sum(counts)
    return loss, {f"scale {k}": value.detach() for k, value in enumerate(each)}  # type: ignore[return-value]


RECIPES: dict[str, Recipe] = {
    "ar": Recipe(
        "autoregressive: words and image tokens in one language model, both ways",
        ar, told_and_shown, token_loss, 9000, 16, 2e-3,
    ),
    "masked": Recipe(
        "aMUSEd: masked image tokens, prompted",
        masked, prompted_codes, mask_loss, 6000, 48, 2e-3,
    ),
    "scalewise": Recipe(
        "next-scale prediction: coarse to fine, prompted",
        scalewise, scaled_codes, scale_loss, 6000, 32, 2e-3,
    ),
}  # fmt: skip
