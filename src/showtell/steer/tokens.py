"""Embeddings of tokens found by gradient descent: of one call's encoded prompt, or of a new word that prompts may use.

`OptimisedText` moves what the denoiser reads; `learn_word` moves what the text encoders read (textual inversion,
arXiv 2208.01618).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from ..bridges.base import Run, Technique, Text
from ..errors import ShowtellError
from .regions import positions_of

TextLoss = Callable[[Any, Text], torch.Tensor]
"""A run and its text -> a loss per sample, (n,). `run.evaluate(latents, text)` may be used; a sample's loss may use no
other sample's."""


class OptimisedText(Technique):
    """Lowers a loss over the encoded prompt by gradient descent (Adam) before sampling.

    loss: see `TextLoss`. words: phrases whose tokens may move; all tokens by default. size: the step, in the
    embeddings' own unit. receive: called with the losses after every step, (steps, n). steps 0 changes nothing.
    """

    def __init__(
        self,
        loss: TextLoss,
        steps: int = 10,
        size: float = 0.01,
        words: Sequence[str] = (),
        receive: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self.loss, self.steps, self.size, self.words, self.receive = loss, steps, size, list(words), receive

    def start(self, run: Run, latents: torch.Tensor) -> None:
        if self.steps == 0:
            return
        run.latents = latents  # for losses that look at them
        given, may = run.text, self._may_move(run)
        with torch.enable_grad():
            moved = torch.zeros_like(given.tokens).requires_grad_()
            optimiser, losses = torch.optim.Adam([moved], lr=self.size), []
            for _ in range(self.steps):
                loss = self.loss(run, given.with_tokens(given.tokens.detach() + moved * may))
                losses.append(loss.detach())
                [moved.grad] = torch.autograd.grad(loss.sum(), moved)
                optimiser.step()
        run.text = given.with_tokens(given.tokens + (moved * may).detach())
        if self.receive is not None:
            self.receive(torch.stack(losses))

    def _may_move(self, run: Run) -> torch.Tensor:
        """1 on the tokens that may move, (n, tokens, 1)."""
        if not self.words:
            return torch.ones_like(run.text.tokens[..., :1])
        may = torch.zeros_like(run.text.tokens[..., :1])
        for row, prompt in enumerate(run.prompts):
            for phrase in self.words:
                may[row, positions_of(run, prompt, phrase)] = 1
            if not may[row].any():
                raise ShowtellError(f"the prompt {prompt!r} has none of the words {', '.join(map(repr, self.words))}.")
        return may


class DenoisingError:
    """The error of the predicted noise at `draws` of the run's timesteps, mean square, (n,): how badly the text
    explains given clean latents (arXiv 2006.11239, eq. 14, for any prediction type and for flow models).

    latents: clean ones, (n, ...). Noise and timesteps follow from the seed and are the same for every sample and call.
    """

    def __init__(self, latents: torch.Tensor, draws: int = 4, seed: int = 0) -> None:
        self.clean, self.draws, self.seed = latents, draws, seed

    def __call__(self, run: Any, text: Text) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randint(len(run.timesteps), (self.draws,), generator=generator).tolist()
        noises = [torch.randn(self.clean.shape[1:], generator=generator) for _ in chosen]
        return torch.stack(
            [noise_error(run, text, self.clean, *pair) for pair in zip(noises, chosen, strict=True)]
        ).mean(0)


def noise_error(run: Any, text: Text, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
    """Mean square error of the noise that the denoiser sees in noised latents, (n,). index: of the timestep."""
    timestep = run.timesteps[index]
    clean, noise = clean.to(run.latents), noise.to(run.latents)
    noisy = run.add_noise(clean, noise, timestep)
    alpha, sigma = run.noise_level(timestep)
    found = run.clean(run.evaluate(noisy, text, timestep), noisy, timestep)
    return ((noisy - alpha * found) / sigma - noise).square().flatten(1).mean(dim=1)


def learn_word(
    bridge: Any,
    word: str,
    images: Any,
    prompts: Sequence[str],
    like: str,
    steps: int = 100,
    size: float = 5e-3,
    batch_size: int = 4,
    seed: int = 0,
    **options: Any,
) -> list[float]:
    """Teaches the text encoders of a diffusion bridge a new word from images: textual inversion (arXiv 2208.01618,
    eq. 2). The denoiser and all other words stay as they are; gives the loss of every step.

    word: a new one, such as "<my-cup>". prompts: that use it, such as "a photo of <my-cup>"; drawn from at random.
    like: a known word to begin with. options: keywords of `generate` (height, width, num_inference_steps: the noise
    levels to learn at, ...). Afterwards prompts may use the word, and `bridge.save` keeps it.
    Raises ShowtellError: a word that is known already, not in every prompt or beyond what an encoder reads; nothing to
    begin with; a bridge without text encoders.
    """
    if not all(word in prompt for prompt in prompts) or not prompts:
        raise ShowtellError(f"every prompt must use the word {word!r}.")
    _encoders(bridge, word, like)
    wanted = {name: value for name, value in options.items() if name in bridge.adapter.text_options}
    if any(bridge.words(prompt[: prompt.index(word)] + like, **wanted).cut for prompt in prompts):
        raise ShowtellError(f"{word!r} is cut off: put it nearer to the beginning of every prompt.")
    options.setdefault("num_inference_steps", 50)
    sizes = {name: options[name] for name in ("height", "width") if name in options}
    clean = bridge.to_latents(images, **sizes)
    new = NewWord(bridge, word, like)
    generator = torch.Generator().manual_seed(seed)
    count = min(batch_size, len(clean))
    run = bridge.begin([prompts[0]] * count, **options)
    optimiser, losses = torch.optim.Adam(new.vectors, lr=size), []
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randperm(len(clean), generator=generator)[:count]
            asked = [prompts[int(i)] for i in torch.randint(len(prompts), (count,), generator=generator)]
            index = int(torch.randint(len(run.timesteps), (), generator=generator))
            noise = torch.randn((count, *clean.shape[1:]), generator=generator)
            with new.reading():
                text = bridge.adapter.encode(asked, False, **wanted)
            loss = noise_error(run, text, clean[rows], noise, index).mean()
            for vector, gradient in zip(new.vectors, torch.autograd.grad(loss, new.vectors), strict=True):
                vector.grad = gradient
            optimiser.step()
            losses.append(float(loss.detach()))
    new.keep()
    return losses


class NewWord:
    """A word that a bridge's text encoders get to know, with an embedding in each of them that may be trained.

    vectors: one for each encoder, (channels,) float32 with gradients; they begin as the mean of the tokens of `like`.
    Raises ShowtellError: a word that is known already, nothing to begin with, a bridge without text encoders.
    """

    def __init__(self, bridge: Any, word: str, like: str) -> None:
        self.word, self.pairs = word, _encoders(bridge, word, like)
        self.vectors = [_added(tokenizer, encoder, word, like) for tokenizer, encoder in self.pairs]
        self.ids = [tokenizer.convert_tokens_to_ids(word) for tokenizer, _ in self.pairs]

    def reading(self) -> AbstractContextManager[None]:
        """Inside the `with` the encoders read the word as these vectors, with gradients to them."""
        return _reading(self.pairs, self.ids, self.vectors)

    @torch.no_grad()
    def keep(self) -> None:
        """Writes the vectors into the encoders: prompts may use the word, and `bridge.save` keeps it."""
        for (_, encoder), token, vector in zip(self.pairs, self.ids, self.vectors, strict=True):
            encoder.get_input_embeddings().weight[token] = vector


def _encoders(bridge: Any, word: str, like: str) -> list[tuple[Any, Any]]:
    """(tokenizer, text encoder) pairs of the pipeline, of which none knows `word` and all know `like`."""
    parts = bridge.pipeline.components if hasattr(bridge, "pipeline") else {}
    ends = ("", "_2", "_3", "_4")
    found = [(parts.get(f"tokenizer{end}"), parts.get(f"text_encoder{end}")) for end in ends]
    pairs = [(one, two) for one, two in found if one is not None and hasattr(two, "get_input_embeddings")]
    if not pairs:
        raise ShowtellError(f"{bridge.name} has no text encoder that could learn a word.")
    for tokenizer, _ in pairs:
        if word in tokenizer.get_vocab():
            raise ShowtellError(f"the model knows {word!r} already; choose another word.")
        if not tokenizer(like, add_special_tokens=False)["input_ids"]:
            raise ShowtellError(f"like={like!r}: give a word that the new one begins as.")
    return pairs


def _added(tokenizer: Any, encoder: Any, word: str, like: str) -> torch.Tensor:
    """Makes the word known; what its embedding begins as, to be optimised: the mean of the tokens of `like`."""
    known = tokenizer(like, add_special_tokens=False)["input_ids"]
    tokenizer.add_tokens([word])
    if encoder.get_input_embeddings().weight.shape[0] < len(tokenizer):
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return encoder.get_input_embeddings().weight[known].detach().float().mean(dim=0).clone().requires_grad_()


@contextmanager
def _reading(pairs: Sequence[tuple[Any, Any]], ids: Sequence[int], vectors: Sequence[torch.Tensor]) -> Iterator[None]:
    """The encoders read each token of `ids` as its vector meanwhile."""

    def reads(token: int, vector: torch.Tensor) -> Any:
        def hook(module: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return torch.where((given[0] == token)[..., None], vector.to(output), output)

        return hook

    with ExitStack() as stack:
        for (_, encoder), token, vector in zip(pairs, ids, vectors, strict=True):
            handle = encoder.get_input_embeddings().register_forward_hook(reads(token, vector))
            stack.callback(handle.remove)
        yield
