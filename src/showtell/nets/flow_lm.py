"""One model for both directions: a language model that plans and tells, an eye, and a denoiser that draws.

The language model reads text, and of a picture what the eye (a SceneParser) has found, a token for each object, of
which the words that name it are told (`Lookup`); or, where there is nothing of the kind, sixteen tokens of patches.
Before it draws, it plans, in words and place tokens; where there is nothing to place, it sketches: the mean thumbnail
of what the text means. A transformer then turns noise into latents of a KL autoencoder, attending to the language
model's states, with plan, sketch and, for edits, the source's latents beside them.
Source: a denoiser on a language model's states: arXiv 2505.09568 (section 3); a picture as its parsed objects, for
words to reason on: arXiv 1810.02338, and its objects as the sum of what they are: arXiv 1908.02265 (section 3, boxes
added to features); cross-attention in a transformer: arXiv 2310.00426 (section 2.3); rectified flow:
arXiv 2209.03003; the source beside the latents: arXiv 2211.09800 (section 3.2); grounded objects: GLIGEN, arXiv
2301.07093 (section 4.1; here laid onto the latents instead of attended to); a picture foretold from text before it is
drawn: arXiv 2204.06125 (section 2.2; here its thumbnail, by regression).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from showtell.nets.scene_parser import SceneParser, SceneParserConfig
from showtell.nets.segments import for_attention, greedy, segment_mask, tell


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


def small_dit(width: int = 144, layers: int = 6) -> dict[str, Any]:
    """Arguments of a PixArtTransformer2DModel for small latents: 2x2 of them to a token."""
    heads = 3
    return {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": width // heads, "patch_size": 2}


class FlowLMConfig(PretrainedConfig):
    """Sizes of a FlowLM. image_size in pixels, 16 to a patch; text_length in tokens; separator: the token after which a
    plan begins; first_place, places: the range of the place tokens, which all words follow; things: objects of a plan
    that are laid onto the latents, by grounds channels; sketch_size: hidden units of the sketch; glance: channels of
    the convolutions before patches; eye: arguments of SceneParserConfig; vae, dit: of diffusers' AutoencoderKL and
    PixArtTransformer2DModel, by default those of `small_vae` and `small_dit`."""

    model_type = "showtell_flow_lm"

    def __init__(
        self,
        vocab_size: int = 2048,
        hidden_size: int = 192,
        intermediate_size: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 2,
        image_size: int = 64,
        text_length: int = 160,
        separator: int = 3,
        first_place: int = 10,
        places: int = 64,
        things: int = 5,
        grounds: int = 24,
        embedding_size: int = 128,
        sketch_size: int = 512,
        glance: tuple[int, ...] = (32, 64, 96),
        eye: dict[str, Any] | None = None,
        vae: dict[str, Any] | None = None,
        dit: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.image_size, self.text_length = image_size, text_length
        self.separator, self.first_place, self.places = separator, first_place, places
        self.things, self.grounds = things, grounds
        self.embedding_size, self.sketch_size, self.glance = embedding_size, sketch_size, tuple(glance)
        self.eye = {} if eye is None else eye
        self.vae = small_vae() if vae is None else vae
        self.dit = small_dit() if dit is None else dit
        super().__init__(**kwargs)


class Things(NamedTuple):
    """What was found in pictures: words (n, k, w) of k objects each, as token ids, 0 beyond an object's last; places
    (n, k, 3) as (x, y, rank in depth / k), NaN where there is no object."""

    words: Tensor
    places: Tensor

    def rows(self, index: Tensor) -> Things:
        """Those of some pictures, by index (m,)."""
        return Things(self.words[index], self.places[index])

    @property
    def there(self) -> Tensor:
        """(n, k) bool."""
        return ~self.places.isnan().any(dim=-1)


Source = Tensor | Things
"""What the language model reads of pictures: their pixels, or what was found in them."""


class Grounding(nn.Module):
    """What a plan says, laid onto a grid: each object adds a function of its words, of its offset to every cell and of
    how many objects lie before it, without which of two that overlap neither would be known to hide the other."""

    def __init__(self, width: int, grid: int, channels: int, things: int, hidden: int = 96, waves: int = 5) -> None:
        super().__init__()
        self.grid, self.waves = grid, waves
        self.words = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        self.offset = nn.Linear(2 + 4 * waves, hidden, bias=False)
        self.before = nn.Embedding(things, hidden)
        nn.init.zeros_(self.before.weight)
        self.mix, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, channels, bias=False)

    def forward(self, things: Tensor, places: Tensor) -> Tensor:
        """things (n, k, width) from far to near, places (n, k, 2) as (x, y) in [0, 1), NaN for none -> (n, channels,
        grid, grid)."""
        there = ~places.isnan().any(dim=-1)
        centre = (torch.arange(self.grid, device=places.device) + 0.5) / self.grid
        centres = torch.cartesian_prod(centre, centre).flip(-1)  # (x, y)
        apart = centres - places.nan_to_num()[:, :, None]  # (n, k, cells, 2)
        waves = torch.pi * 2.0 ** torch.arange(self.waves, device=places.device)
        angles = (apart[..., None] * waves).flatten(-2)
        features = torch.cat([apart, angles.sin(), angles.cos()], dim=-1).to(things.dtype)
        nearer = there.flip(1).cumsum(dim=1).flip(1) - there.long()
        said = self.words(things) + self.before(nearer)
        hidden = nn.functional.silu(said[:, :, None] + self.offset(features))
        hidden = nn.functional.silu(self.mix(hidden)) * there[:, :, None, None]
        return self.out(hidden.sum(dim=1)).transpose(1, 2).unflatten(-1, (self.grid, self.grid))


class Relating(nn.Module):
    """What each thing is told of every other: how it lies to it, and which it is. A relation network, arXiv 1706.01427
    (equation 1), summed over the other things."""

    def __init__(self, width: int, hidden: int = 96, waves: int = 5) -> None:
        super().__init__()
        self.waves = waves
        self.apart = nn.Linear(wide(waves), hidden)
        self.self, self.other = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, things: Tensor, source: Things) -> Tensor:
        """(n, k, d), to be added to things (n, k, d)."""
        places, there = source.places.nan_to_num(), source.there
        apart = waved(places[:, :, None] - places[:, None], self.waves).to(things.dtype)  # (n, k, k, features)
        pairs = self.apart(apart) + self.self(things)[:, :, None] + self.other(things)[:, None]
        others = there[:, None] & ~torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
        return self.out((nn.functional.silu(pairs) * others[..., None]).sum(dim=2))


def waved(values: Tensor, waves: int) -> Tensor:
    """(..., m) -> (..., m * (1 + 2 * waves)): the values, and sines and cosines of them at doubling frequencies."""
    angles = values[..., None] * torch.pi * 2.0 ** torch.arange(waves, device=values.device)
    return torch.cat([values[..., None], angles.sin(), angles.cos()], dim=-1).flatten(-2)


def wide(waves: int) -> int:
    """Features that `waved` makes of a place in three dimensions."""
    return 3 * (1 + 2 * waves)


class Lookup(nn.Module):
    """What each word of a text is told of the things in a picture that go by this word: their sum, and which they are.

    A word matches a thing where its embedding is near that of a word of the thing (at the start, the same word). To
    attend to the few things among many words, as to everything else, is learned too late: from half a million prompts
    it was not. Aligned embeddings and exact matches as features: arXiv 1704.00051, section 3.2.
    """

    def __init__(self, width: int, things: int) -> None:
        super().__init__()
        self.match = nn.Linear(width, width, bias=False)
        self.bring = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.match.weight)
        nn.init.eye_(self.bring.weight)
        self.slot = nn.Parameter(0.13 * torch.randn(things, width))  # about as loud as a word
        self.sharpness, self.least = nn.Parameter(torch.tensor(20.0)), nn.Parameter(torch.tensor(0.75))

    def forward(self, text: Tensor, words: Tensor, there: Tensor, things: Tensor) -> Tensor:
        """(n, length, d), to be added to the words of a text: text (n, length, d), words (n, k, w, d) of things and
        whether they are there (n, k, w), things (n, k, d)."""
        asked = nn.functional.normalize(self.match(text), dim=-1)
        cosine = torch.einsum("nld,nkwd->nlkw", asked, nn.functional.normalize(words, dim=-1))
        matches = (torch.sigmoid(self.sharpness * (cosine - self.least)) * there[:, None]).amax(dim=-1)
        return matches.to(things.dtype) @ (self.bring(things) + self.slot[: things.shape[1]])


class FlowLM(PreTrainedModel):
    """LlamaModel over source patches and tokens, with heads for tokens, embeddings and sketches; SceneParser over
    images; PixArtTransformer2DModel over noisy latents.

    Images are (n, 3, image_size, image_size) in [-1, 1]; latents (n, 4, image_size / 4, image_size / 4), about unit
    variance; ids (n, length) int64, padded at the end, valid (n, length) bool.
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
        width = config.hidden_size
        self.grid = config.image_size // 16
        self.backbone = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=width,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                max_position_embeddings=self.grid**2 + config.text_length,
                attn_implementation="sdpa",
            )
        )
        self.eye = SceneParser(SceneParserConfig(image_size=config.image_size, **config.eye))
        self.glance = nn.Sequential(
            *(layer for a, b in zip((3, *config.glance), config.glance, strict=False)
              for layer in (nn.Conv2d(a, b, 4, stride=2, padding=1), nn.SiLU())),
        )  # fmt: skip
        self.glance_in = nn.Linear(config.glance[-1] * (16 // 2 ** len(config.glance)) ** 2, width)
        self.place = nn.Parameter(0.02 * torch.randn(self.grid**2, width))
        self.waves = 5
        self.thing_place = nn.Linear(wide(self.waves), width, bias=False)
        nn.init.normal_(self.thing_place.weight, std=0.02)  # no louder than a word, or it drowns the words
        self.lookup, self.relating = Lookup(width, config.things), Relating(width)
        self.image_embedding = nn.Linear(width, config.embedding_size, bias=False)
        self.text_embedding = nn.Linear(width, config.embedding_size, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.0))  # log of the contrastive scale
        thumbnail = 3 * self.latent_size**2
        self.sketch_head = nn.Sequential(
            nn.Linear(width, config.sketch_size), nn.SiLU(), nn.Linear(config.sketch_size, thumbnail)
        )
        self.grounding = Grounding(width, self.latent_size, config.grounds, config.things)
        self.dit = PixArtTransformer2DModel(
            sample_size=self.latent_size,
            in_channels=2 * self.channels + config.grounds + 3,
            out_channels=self.channels,
            cross_attention_dim=config.dit["num_attention_heads"] * config.dit["attention_head_dim"],
            caption_channels=width,
            use_additional_conditions=False,
            **config.dit,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The parts initialise themselves, and the rest keeps PyTorch's own initialisation; but the transformer's table
        of positions is in no checkpoint."""
        if isinstance(module, PatchEmbed):
            table = get_2d_sincos_pos_embed(
                module.proj.out_channels,
                module.height,
                base_size=module.base_size,
                interpolation_scale=module.interpolation_scale,
                output_type="pt",
            )
            module.pos_embed.copy_(table[None])

    # --- reading and telling ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents_of(self, images: Tensor) -> Tensor:
        """The mode of the autoencoder's distribution, shifted and scaled as its config says."""
        shift = self.vae.config.shift_factor or 0.0
        return (self.vae.encode(images).latent_dist.mode() - shift) * self.vae.config.scaling_factor

    def embed_source(self, images: Tensor) -> Tensor:
        """(n, grid * grid, d): the patches of images."""
        cells = self.glance(images)
        patch = cells.shape[-1] // self.grid
        return self.glance_in(nn.functional.unfold(cells, patch, stride=patch).transpose(1, 2)) + self.place

    def embed_things(self, source: Things) -> Tensor:
        """(n, k, d): of each object the sum of its words, of its place, of its number, and of how others lie to it."""
        words = self.backbone.embed_tokens(source.words) * (source.words > 0)[..., None]
        where = waved(source.places.nan_to_num(), self.waves).to(words.dtype)
        things = words.sum(dim=2) + self.thing_place(where) + self.lookup.slot[: words.shape[1]]
        return things + self.relating(things, source)

    def embed_text(self, ids: Tensor, source: Source | None) -> Tensor:
        """(n, length, d): tokens, each with what it names among the things that were found."""
        text = self.backbone.embed_tokens(ids)
        if not isinstance(source, Things):
            return text
        there = (source.words > 0) & source.there[..., None]
        return text + self.lookup(text, self.backbone.embed_tokens(source.words), there, self.embed_things(source))

    def _run(self, ids: Tensor, valid: Tensor, source: Source | None, cache: DynamicCache | None = None) -> Tensor:
        parts, there = [self.embed_text(ids, source)], None
        if isinstance(source, Things):
            parts.insert(0, self.embed_things(source))
            there = source.there
        elif source is not None:
            parts.insert(0, self.embed_source(source))
        image = 0 if source is None else parts[0].shape[1]
        first = self.grid**2 - image  # words have the same positions whether there is an image or not
        return self.backbone(
            inputs_embeds=torch.cat(parts, dim=1),
            attention_mask=for_attention(self.backbone, segment_mask(image, valid, there), self.dtype),
            position_ids=torch.arange(first, first + image + ids.shape[1], device=ids.device)[None],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def forward(self, ids: Tensor, valid: Tensor, source: Source | None = None) -> tuple[Tensor | None, Tensor]:
        """Hidden states: (of the source (n, its tokens, d) | None, of the text (n, length, d))."""
        hidden, text = self._run(ids, valid, source), ids.shape[1]
        return (None if source is None else hidden[:, :-text]), hidden[:, -text:]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits; the output matrix is the embedding matrix."""
        return hidden @ self.backbone.embed_tokens.weight.T

    def embed_images(self, seen: Tensor) -> Tensor:
        """Unit vectors (n, embedding_size) from hidden source states."""
        return nn.functional.normalize(self.image_embedding(seen.mean(dim=1)).float(), dim=-1)

    def embed_texts(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Unit vectors (n, embedding_size) from hidden text states at position `last` (n,)."""
        return nn.functional.normalize(self.text_embedding(at(hidden, last)).float(), dim=-1)

    @torch.no_grad()
    def tell(
        self,
        ids: Tensor,
        valid: Tensor,
        source: Source | None,
        stop: int,
        length: int,
        choose: Callable[[Tensor], Tensor] = greedy,
    ) -> list[list[int]]:
        """Continuation of each row (greedy, or as `choose` picks from logits) until `stop` or `length` new tokens."""
        cache = DynamicCache()
        hidden = self._run(ids, valid, source, cache)[:, -ids.shape[1] :]
        there = source.there if isinstance(source, Things) else None
        return tell(self, cache, hidden, valid, self.grid**2, stop, length, choose, there, source)

    # --- drawing ---------------------------------------------------------------------------------------------------

    def plan_of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The objects that token rows (n, length) plan: mean embeddings of their words (n, things, d), and places
        (n, things, 2) as (x, y) in [0, 1), NaN where there is no object.

        After the separator, the words up to a pair of place tokens tell what is there.
        """
        config = self.config
        planned = (ids == config.separator).cumsum(dim=1) > 0
        place = planned & (ids >= config.first_place) & (ids < config.first_place + config.places)
        before = nn.functional.pad(place, (1, -1))
        ends = place & before  # the second token of each pair
        number = ends.cumsum(dim=1) - ends.int()  # of the object that a token belongs to
        own = number[:, None] == torch.arange(config.things, device=ids.device)[:, None]  # (n, things, length)
        words = (own & (planned & (ids >= config.first_place + config.places))[:, None]).to(self.place.dtype)
        things = words @ self.backbone.embed_tokens(ids) / words.sum(dim=-1, keepdim=True).clamp(min=1)
        value = (ids - config.first_place + 0.5) / config.places
        pair = torch.stack([nn.functional.pad(value, (1, -1)), value], dim=-1)  # (n, length, 2)
        last = own & ends[:, None]
        places = (last[..., None] * pair[:, None]).sum(dim=2)
        return things, torch.where(last.any(dim=-1)[..., None], places, torch.nan)

    def sketch(self, hidden: Tensor, last: Tensor) -> Tensor:
        """What texts look like on average, (n, 3, h, w) in [-1, 1]: thumbnails of the latents' size, from hidden text
        states at position `last` (n,)."""
        side = self.latent_size
        return self.sketch_head(at(hidden, last)).unflatten(-1, (3, side, side))

    def beside(self, ids: Tensor, valid: Tensor, hidden: Tensor, before: Tensor | None = None) -> Tensor:
        """What lies beside the noisy latents, (n, 4 + grounds + 3, h, w): the latents of the image to edit, the plan
        that token rows (n, length) hold, and the sketch of prompts without a plan; zeros where there is none.

        hidden: states of the rows. A row of fewer than four tokens is an empty prompt.
        """
        side, count = self.latent_size, valid.sum(dim=1)
        things, places = self.plan_of(ids)
        grounds = self.grounding(things, places)
        bare = places.isnan().flatten(1).all(dim=1) & (count > 3) & (before is None)
        sketch = self.sketch(hidden, count - 1).to(grounds) * bare[:, None, None, None]
        if before is None:
            before = grounds.new_zeros(len(ids), self.channels, side, side)
        return torch.cat([before.to(grounds), grounds, sketch], dim=1)

    def draw(self, noisy: Tensor, time: Tensor, hidden: Tensor, valid: Tensor, beside: Tensor) -> Tensor:
        """The velocity noise - clean (n, 4, h, w) at noisy latents.

        time (n,) in [0, 1]: the share of noise. hidden (n, length, d): text states of `forward`.
        """
        return self.dit(
            torch.cat([noisy, beside], dim=1),
            encoder_hidden_states=hidden,
            timestep=1000 * time,
            encoder_attention_mask=valid,
            return_dict=False,
        )[0]


def at(hidden: Tensor, last: Tensor) -> Tensor:
    """The states (n, d) of hidden (n, length, d) at positions last (n,)."""
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
