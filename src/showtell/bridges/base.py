"""The two interfaces of this room: `Bridge` (an architecture seen from outside) and `Technique` (what a
paper does at inference).

A `Bridge` turns language into vision, vision into language, or both. A `Technique` overrides the hooks it
needs; the loops
call the hooks of every technique of `using=[A(...), B(...)]` in list order. What a technique learns or
collects during a call
is kept in `run.state(self)`, never on the technique, so one instance may serve many calls and threads at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import ShowtellError, UnsupportedError

if TYPE_CHECKING:
    import torch

    from .attention import Place, Site
    from .words import Words

ABILITIES = {
    "generate": "text to images",
    "animate": "text (and images) to clips",
    "edit": "images and instructions to images",
    "caption": "images to text",
    "answer": "images and questions to text",
    "embed": "images or texts to vectors",
    "invert": "images to the noise they come from, and back",
    "attend": "techniques can see and edit attention",
}


def as_list(value: Any) -> list[Any]:
    """One thing or a list of things, always as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def spread(value: Any, count: int, what: str) -> list[Any]:
    """`value` as a list of `count`: one thing is repeated, a list must have that length."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ShowtellError(f"{what}: got {len(value)} for {count} inputs; give one, or exactly {count}.")
    return list(value)


@dataclass(frozen=True)
class Text:
    """Encoded prompts as the denoiser takes them: `n` rows in every tensor.

    tokens: (n, text tokens, channels), one row per prompt.
    pooled: (n, channels) where the architecture has a pooled embedding.
    mask: (n, text tokens), 1 on tokens that are attended, 0 on padding, where the architecture masks.
    extra: further tensors with n rows that one family needs (reference image latents, size conditioning,
        ...).
    make_empty: makes the token embeddings of the empty prompt for `text.empty`.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    make_empty: Callable[[], torch.Tensor] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def empty(self) -> torch.Tensor:
        """Token embeddings of the empty prompt, (1, text tokens, channels)."""
        if self.make_empty is None:
            raise UnsupportedError("This text was not encoded by a bridge, so its empty prompt is unknown.")
        return self.make_empty()

    def with_tokens(self, tokens: torch.Tensor) -> Text:
        return replace(self, tokens=tokens)

    def rows(self, index: Any) -> Text:
        """The chosen rows (a slice, a list of indices or an index tensor)."""
        return self._each(lambda tensor: tensor[index])

    def repeat(self, count: int) -> Text:
        """Every row `count` times, neighbours together: row 0, row 0, row 1, row 1, ..."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Text:
        return Text(
            tokens=change(self.tokens),
            pooled=None if self.pooled is None else change(self.pooled),
            mask=None if self.mask is None else change(self.mask),
            extra={name: change(tensor) for name, tensor in self.extra.items()},
            make_empty=self.make_empty,
        )

    @staticmethod
    def cat(texts: Sequence[Text]) -> Text:
        """Rows of all texts in one. Shorter ones are padded with masked zeros, which needs a mask."""
        import torch

        if len(texts) == 1:
            return texts[0]
        longest = max(text.tokens.shape[1] for text in texts)
        texts = [text._padded(longest) for text in texts]

        def join(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
            present = [part for part in parts if part is not None]
            return torch.cat(present) if len(present) == len(parts) else None

        return Text(
            tokens=torch.cat([text.tokens for text in texts]),
            pooled=join([text.pooled for text in texts]),
            mask=join([text.mask for text in texts]),
            extra={name: torch.cat([text.extra[name] for text in texts]) for name in texts[0].extra},
            make_empty=texts[0].make_empty,
        )

    def _padded(self, length: int) -> Text:
        import torch.nn.functional as F

        missing = length - self.tokens.shape[1]
        if missing == 0:
            return self
        if self.mask is None:
            raise ShowtellError(
                f"Texts of {self.tokens.shape[1]} and {length} tokens cannot share a batch: "
                "this model masks no padding."
            )
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, missing)), mask=F.pad(self.mask, (0, missing)))


class Run:
    """One call of a bridge, from prompts to outputs. Handed to every hook; it and what it holds end with
    the call.

    Fields of every run:
        bridge: the bridge that was called.
        prompts, negative_prompts: list[str], one per sample (negative_prompts may be None).
        techniques: the techniques of `using`, in order.
        generators: the random generators as the scheduler takes them: one, a list (one per sample) or None.
        options: remaining keywords of the call. own: what the bridge's own code keeps during the call.
    Fields of a denoising run (see `showtell.bridges.loop`):
        text, negative: `Text` of the prompts and of the negative prompts (None where guidance is off); both
            may be replaced.
        guidance: classifier-free guidance scale; 1.0 means the conditional prediction alone.
        scheduler: this call's own copy of the diffusers scheduler. timesteps: its timesteps.
        step: index of the current step; steps: how many there are. timestep: timesteps[step].
        latents: the current latents, (n, channels, height, width) or (n, channels, frames, height, width).
        given: inside a `prediction` hook, the latents whose prediction it combines (`latents`, or what a
            technique passed to `predict`).
        height, width, num_frames: size of the output in pixels and frames.
    """

    bridge: Bridge
    prompts: list[str]
    negative_prompts: list[str] | None
    techniques: list[Technique]
    generators: Any
    options: dict[str, Any]
    text: Text
    negative: Text | None
    guidance: float
    scheduler: Any
    timesteps: torch.Tensor
    step: int
    steps: int
    latents: torch.Tensor
    given: torch.Tensor | None
    height: int
    width: int
    num_frames: int | None

    def __init__(self, bridge: Bridge, prompts: list[str], techniques: Sequence[Technique] = ()) -> None:
        self.bridge = bridge
        self.prompts = prompts
        self.negative_prompts = None
        self.techniques = list(techniques)
        self.generators = None
        self.options = {}
        self.own: dict[str, Any] = {}
        self.negative = None
        self.guidance = 1.0
        self.step = 0
        self.steps = 0
        self.num_frames = None
        self._states: dict[int, SimpleNamespace] = {}

    def state(self, technique: Technique) -> SimpleNamespace:
        """What `technique` keeps during this call: a namespace, empty at first, gone afterwards."""
        return self._states.setdefault(id(technique), SimpleNamespace())

    def words(self, prompt: str) -> Words:
        """Which text tokens stand for which word of a prompt of this call."""
        names = getattr(getattr(self.bridge, "adapter", None), "text_options", ())
        return self.bridge.words(prompt, **{name: value for name, value in self.options.items() if name in names})

    @property
    def timestep(self) -> torch.Tensor:
        """The scheduler's timestep of the current step, a scalar tensor."""
        return self.timesteps[self.step]

    @property
    def progress(self) -> float:
        """How much of the sampling is done before the current step, in [0, 1)."""
        return self.step / max(self.steps, 1)

    def encode(self, prompts: str | list[str]) -> Text:
        """Further prompts as this bridge encodes them (cached); for region prompts, targets, directions."""
        raise UnsupportedError(f"{self.bridge.name} encodes no prompts for a denoiser.")

    def evaluate(self, latents: torch.Tensor, text: Text | None = None, timestep: Any = None) -> torch.Tensor:
        """The denoiser's prediction for one text (default: the conditional one), without guidance or
        `prediction` hooks.

        Shape and noise level as `predict`. Attention hooks are called.
        """
        raise UnsupportedError(f"{self.bridge.name} has no denoiser to evaluate.")

    def look(self, latents: torch.Tensor) -> None:
        """A conditional evaluation for the sake of its attention alone, which ends where no technique wants to see more
        of it; what is read can be differentiated inside `torch.enable_grad()`.
        """
        raise UnsupportedError(f"{self.bridge.name} has no denoiser to evaluate.")

    def predict(self, latents: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The guided prediction for `latents` (n, ...), of the same shape, with every technique's hooks.

        The noise level is that of the latents the current hook was given (`start`: the first; `latents`:
        the next one),
        or `timestep`. Differentiable inside `torch.enable_grad()`. Not to be called inside a `prediction`
        hook.
        """
        raise UnsupportedError(f"{self.bridge.name} has no denoiser to evaluate.")

    def clean(self, prediction: torch.Tensor, latents: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The clean latents x_0 that `prediction` implies for `latents`, whatever the scheduler's
        prediction type is.
        """
        raise UnsupportedError(f"{self.bridge.name} has no denoiser to evaluate.")


class Technique:
    """What a paper does at inference. Override only what it touches; every hook may return None for
    "unchanged".

    Hooks are called in the order below. Instances hold settings only; anything that changes belongs in
    `run.state(self)`.
    """

    unconditional: bool = False
    """True asks for the unconditional prediction even where guidance is off (scale 1)."""

    def prompt(self, run: Run, prompts: list[str]) -> list[str] | None:
        """Rewrite the prompts, one per sample, before they are encoded."""

    def start(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        """Choose, replace or optimise the starting noise, (n, channels, [frames,] height, width). Text is
        encoded already.
        """

    def before(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        """Change the latents at their noise level, before the prediction of the current step."""

    def conditioning(self, run: Run, text: Text) -> Text | torch.Tensor | None:
        """Edit the conditional text; a tensor replaces `text.tokens`. Called before every prediction, with
        the original text.
        """

    def beside(self, run: Run) -> Mapping[str, Text] | None:
        """Further texts (name -> one row per sample) to be evaluated in the batch of each prediction: `attention` finds
        their rows as `site.branches[name]`. They take no part in guidance.
        """

    def wants(self, run: Run, place: Place) -> bool:
        """Whether `attention` is to be called at this place (depth, kind, grid, step); other places stay on
        the fused kernel.
        """
        return True

    def attention(self, run: Run, site: Site) -> None:
        """Observe or edit one attention site; see `showtell.bridges.attention.Site`."""

    def differentiates(self, run: Run) -> bool:
        """Whether autograd is to record the prediction of this step, so that `prediction` can take gradients with
        respect to what the network was given (latents, `run.text`) without another evaluation.
        """
        return False

    def prediction(
        self, run: Run, guided: torch.Tensor, conditional: torch.Tensor, unconditional: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Combine predictions: `guided` is the result so far; `unconditional` is None where it was not
        computed.
        """

    def latents(self, run: Run, latents: torch.Tensor) -> torch.Tensor | None:
        """Change the latents after the scheduler's step."""

    def logits(self, run: Run, logits: torch.Tensor) -> torch.Tensor | None:
        """Edit the logits of the tokens to be decoded, (n, [positions,] vocabulary)."""

    def tokens(self, run: Run, tokens: torch.Tensor) -> torch.Tensor | None:
        """Edit the tokens just decoded, (n, [positions])."""

    def around(self, run: Run) -> AbstractContextManager[Any]:
        """A context for every evaluation of the denoiser, such as `showtell.steer.features.features`."""
        return nullcontext()

    def decode(self, run: Run, decoder: Any) -> torch.Tensor | None:
        """Every image token of a token-decoding bridge, (n, positions), decoded in another order than one per step.

        `decoder.begin` has been called. The first technique that returns tokens replaces the loop.
        """

    def finish(self, run: Run, outputs: list[Any]) -> list[Any] | None:
        """Change the outputs, one per sample, in the requested output type."""


def overriding(techniques: Sequence[Technique], hook: str) -> list[Technique]:
    """The techniques that do something at `hook`, so that nothing is done for the others."""
    return [t for t in techniques if getattr(type(t), hook) is not getattr(Technique, hook)]


def apply_hooks(run: Run, hook: str, value: Any) -> Any:
    """Passes `value` through `hook` of every technique in order; None leaves it as it is."""
    for technique in overriding(run.techniques, hook):
        changed = getattr(technique, hook)(run, value)
        value = value if changed is None else changed
    return value


class Bridge:
    """One interface over every architecture. Prompts, images and questions: one or a list; always a list
    comes back.

    `can` says what this bridge offers (keys of `ABILITIES`); anything else raises `UnsupportedError` naming
    bridges that do.
    """

    name: str = "This bridge"
    can: frozenset[str] = frozenset()

    def generate(
        self,
        prompts: str | list[str],
        *,
        using: Sequence[Technique] = (),
        seed: int | list[int] = 0,
        generator: Any = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        **more: Any,
    ) -> list[Any]:
        """Images for prompts.

        using: techniques, applied in order.
        seed: sample i draws from its own generator, seeded by (seed, i); a list gives sample i the
            generator of seed[i] alone.
        generator: one torch.Generator, or one per sample, drawn from exactly as the library pipeline does;
            overrides seed.
        height, width: pixels. latents: the starting noise instead of a drawn one.
        output_type: "pil", "np" (height, width, 3) in [0, 1], "pt" (3, height, width) in [0, 1], or "latent".
        more: the library pipeline's further keywords; `batch_size` bounds how many samples run together.
        """
        raise self.unsupported("generate")

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        """A sentence per image."""
        raise self.unsupported("caption")

    def answer(self, images: Any, questions: str | list[str], **more: Any) -> list[str]:
        """An answer per image and question; one image may take several questions, one question several
        images.
        """
        raise self.unsupported("answer")

    def edit(self, images: Any, instructions: str | list[str], *, seed: int | list[int] = 0, **more: Any) -> list[Any]:
        """Each image changed as its instruction says."""
        raise self.unsupported("edit")

    def animate(
        self, prompts: str | list[str], images: Any = None, *, seed: int | list[int] = 0, **more: Any
    ) -> list[Any]:
        """A clip (list of frames) per prompt, starting from its image where images are given."""
        raise self.unsupported("animate")

    def embed(self, images: Any = None, texts: str | list[str] | None = None, **more: Any) -> torch.Tensor:
        """Unit vectors, (n, d), of images or of texts in the bridge's shared space."""
        raise self.unsupported("embed")

    def words(self, prompt: str, **options: Any) -> Words:
        """Which token positions stand for which word of `prompt`. options: those of the call that move tokens."""
        raise self.unsupported("attend")

    def save(self, directory: str | Path) -> None:
        """Writes the Hugging Face layout that diffusers / transformers load themselves."""
        raise UnsupportedError(f"{self.name} cannot be saved.")

    def unsupported(self, ability: str) -> UnsupportedError:
        """The error for an ability that this bridge lacks, naming families that have it."""
        from .families import offering

        others = "; ".join(offering(ability)) or "none of the installed families"
        offers = ", ".join(sorted(self.can)) or "nothing"
        return UnsupportedError(
            f"{self.name} cannot {ability} ({ABILITIES.get(ability, ability)}); it offers: {offers}. "
            f"Bridges that can: {others}."
        )
