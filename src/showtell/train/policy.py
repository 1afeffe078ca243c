"""Causal language models that learn to write prompts: by imitation, and by policy gradients on rewards.

Any causal language model of transformers with its tokenizer will do; `word_tokenizer` and `small_writer` make one for a
closed vocabulary.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.train.batches import Pool
from showtell.train.trainer import fit


def word_tokenizer(texts: Iterable[str], tags: Sequence[str] = ()) -> Any:
    """A tokenizer of whole words and punctuation, those of the texts; tags (such as "<think>") are one token each."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = ["<pad>", "<end>", "<unk>", *tags]
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    model = models.WordLevel({word: i for i, word in enumerate([*named, *words])}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=list(tags),
    )  # fmt: skip


def small_writer(tokenizer: Any, width: int = 128, layers: int = 3, heads: int = 2, seed: int = 0) -> Any:
    """A small `LlamaForCausalLM` with random weights for this tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Drawn:
    """Requests with answers, (n, length) each: padding, request, answer, padding.

    mask: True where something is written. said: True on the answer, its end token included.
    """

    ids: Tensor
    mask: Tensor
    said: Tensor

    def arrays(self) -> dict[str, Tensor]:
        return {"ids": self.ids, "mask": self.mask, "said": self.said}

    @property
    def asked(self) -> Tensor:
        """The place of every request's last token, (n,)."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        return torch.where(self.mask & ~self.said, places, 0).amax(dim=1)


def tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _padded(tokenizer: Any, requests: Sequence[str]) -> tuple[Tensor, Tensor]:
    rows = [tokens(tokenizer, text) for text in requests]
    width = max(map(len, rows))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def joined(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Drawn:
    """Requests with the answers that they should get, each with an end token."""
    ids, mask = _padded(tokenizer, [request for request, _ in pairs])
    rows = [[*tokens(tokenizer, answer), tokenizer.eos_token_id] for _, answer in pairs]
    longest = max(map(len, rows))
    answers = torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row in rows])
    said = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    return Drawn(torch.cat([ids, answers], 1), torch.cat([mask, said], 1), F.pad(said, (ids.shape[1], 0)))


@torch.no_grad()
def write(
    model: Any, tokenizer: Any, requests: Sequence[str], temperature: float = 1.0, max_tokens: int = 64, seed: int = 0
) -> Drawn:
    """An answer to every request; temperature 0 for the likeliest one."""
    from transformers import GenerationConfig

    ids, mask = (part.to(model.device) for part in _padded(tokenizer, requests))
    end = tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_tokens, do_sample=temperature > 0, temperature=temperature or None, top_k=0,
        eos_token_id=end, pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
    ends = made[:, ids.shape[1] :] == end
    said = (ends.long().cumsum(1) - ends.long()) == 0
    return Drawn(made, torch.cat([mask, said], 1), F.pad(said, (ids.shape[1], 0)))


def texts_of(tokenizer: Any, drawn: Drawn) -> list[str]:
    """The answers as texts, tags included."""
    return [answer(tokenizer, row[said]) for row, said in zip(drawn.ids, drawn.said, strict=True)]


def answer(tokenizer: Any, ids: Tensor) -> str:
    """A text of tokens without its end; a tokenizer of words leaves spaces before punctuation, which go."""
    kept = [token for token in ids.tolist() if token not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]
    return re.sub(r" +([,.;:?!])", r"\1", tokenizer.decode(kept)).strip()


def phrases(tokenizer: Any, ids: Tensor, said: Tensor) -> list[tuple[str, list[int]]]:
    """The phrases of an answer, between commas and full stops: the text and the places of the tokens of each.

    ids, said: (length,), a row of `Drawn`. Phrases of no text are left out.
    """
    groups: list[list[int]] = [[]]
    for place in said.nonzero().flatten().tolist():
        if answer(tokenizer, ids[place : place + 1]) in (",", "."):
            groups.append([])
        else:
            groups[-1].append(place)
    found = [(answer(tokenizer, ids[places]), places) for places in groups if places]
    return [(text, places) for text, places in found if text]


def states(model: Any, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """(logits, last hidden states), each (n, length, ...)."""
    places = (drawn.mask.long().cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=drawn.ids, attention_mask=drawn.mask.long(), position_ids=places, output_hidden_states=True,
        use_cache=False,
    )  # fmt: skip
    return out.logits.float(), out.hidden_states[-1].float()


def chosen(logits: Tensor, picks: Tensor, said: Tensor) -> Tensor:
    """Log-probabilities (n, length) of what was picked at each place by the logits (n, length, k) of the place before;
    0 where nothing was said."""
    found = logits[:, :-1].log_softmax(-1).gather(2, picks[:, 1:, None])[..., 0]
    return F.pad(found, (1, 0)) * said


def picked(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """A pick (n, length) for each place by the logits (n, length, k) of the place before; temperature 0 for the
    likeliest. generator: on the CPU. What the first place gets means nothing."""
    rows = ((logits / temperature).softmax(-1) if temperature else logits).flatten(0, 1).cpu()
    picks = torch.multinomial(rows, 1, generator=generator) if temperature else rows.argmax(-1, keepdim=True)
    return picks.view(logits.shape[:2]).roll(1, dims=1).to(logits.device)


def log_probabilities(model: Any, drawn: Drawn) -> Tensor:
    """Of every token of the answers, (n, length); 0 elsewhere."""
    return chosen(states(model, drawn)[0], drawn.ids, drawn.said)


def imitate(
    model: nn.Module, tokenizer: Any, pairs: Sequence[tuple[str, str]], steps: int, batch_size: int = 32,
    lr: float = 1e-3, seed: int = 0,
) -> Any:  # fmt: skip
    """Supervised fine-tuning on (request, answer), in place: the mean of -log p over the answers' tokens."""
    data = joined(tokenizer, pairs)

    def loss(model: Any, batch: dict[str, Tensor], generator: Any) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = Drawn(batch["ids"], batch["mask"], batch["said"])
        value = -log_probabilities(model, drawn).sum() / drawn.said.sum()
        return value, {"nll": value.detach()}

    pool = Pool({name: part.numpy() for name, part in data.arrays().items()}, min(batch_size, len(pairs)))
    fit(model, loss, pool, steps=steps, lr=lr, precision="no", seed=seed, progress=False)
    return model


def practise(
    model: nn.Module, rollout: Callable[[int], dict[str, Tensor]],
    loss: Callable[[Any, dict[str, Tensor]], Tensor], rounds: int, updates: int = 1, lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999), seed: int = 0,
) -> Any:  # fmt: skip
    """Online training, in place: every round draws from the model as it is, then takes `updates` steps on that."""
    kept: dict[str, Tensor] = {}

    def batches(index: int, seed: int) -> dict[str, Tensor]:
        if index % updates == 0:
            kept.update(rollout(index // updates))
        return dict(kept)

    def step(model: Any, batch: dict[str, Tensor], generator: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value = loss(model, batch)
        return value, {"return": batch["rewards"].float().mean()}

    return fit(
        model, step, batches, steps=rounds * updates, lr=lr, warmup=0, schedule="constant", betas=betas,
        weight_decay=0.0, ema=None, precision="no", seed=seed, log_every=max(1, updates), progress=False,
    )  # fmt: skip


# --- what the losses are made of -------------------------------------------------------------------------------------


def surrogate(new: Tensor, old: Tensor, advantage: Tensor, said: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's clipped objective as a loss (arXiv 1707.06347, eq. 7): the mean over answers of the mean over tokens.

    new, old: log-probabilities (n, length). advantage: (n,). said: (n, length).
    """
    ratio, gain = (new - old).exp(), advantage[:, None]
    each = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return -per_answer(each, said).mean()


def divergence(new: Tensor, other: Tensor, said: Tensor) -> Tensor:
    """An unbiased, never negative estimate of KL(new || other) per answer, (n,), from tokens drawn from new."""
    ratio = other - new
    return per_answer(ratio.exp() - 1 - ratio, said)


def per_answer(values: Tensor, said: Tensor) -> Tensor:
    """The mean over what was said, (n,)."""
    return (values * said).sum(1) / said.sum(1).clamp(min=1)


def group_advantages(rewards: Tensor) -> Tensor:
    """Rewards (groups, size) relative to their group: (r - mean) / std (GRPO, arXiv 2402.03300); 0 where all agree."""
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True, correction=0)
    return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), 0.0)


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float = 0.4) -> Tensor:
    """Squared error of what a critic expects, (n,), that does not gain from moving further than `clip` from before."""
    near = old + (new - old).clamp(-clip, clip)
    return torch.maximum((new - returns).square(), (near - returns).square()).mean()


class ActorCritic(nn.Module):
    """A writer and what it may expect of each request, from a network that begins as the writer's own model."""

    def __init__(self, actor: nn.Module, model: Any) -> None:
        super().__init__()
        self.actor: Any = actor
        self.critic = copy.deepcopy(model)
        self.value = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.value.weight)

    def values(self, drawn: Drawn) -> Tensor:
        """(n,), whatever the answers are."""
        hidden = states(self.critic, drawn)[1]
        return self.value(hidden[torch.arange(len(hidden)), drawn.asked])[:, 0]
