"""The bridge that comes with the package: one small model for both directions, loaded without any download.

Text to image and edits pass through the one denoising loop, so techniques attach to it as to any other bridge.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from showtell import files
from showtell.bridges.adapter import Adapter
from showtell.bridges.base import Bridge, Run, Text, as_list, spread
from showtell.bridges.diffusion import DiffusionBridge
from showtell.bridges.layout import TokenLayout, self_then_cross
from showtell.bridges.words import Piece
from showtell.data.drafts import Draft
from showtell.data.mix import PLAN_LENGTH, Codec
from showtell.data.signal import signal, to_pixels
from showtell.data.synthesis import improve
from showtell.data.targets import found
from showtell.data.text import restore_case, unknown_words
from showtell.errors import ShowtellError
from showtell.nets.flow_lm import FlowLM, Things
from showtell.nets.segments import picked
from showtell.pictures import to_pil
from showtell.weights import folder
from showtell.world import Scene, SceneObject
from showtell.world.changes import changed, changes
from showtell.world.language import LANGUAGES

LONGEST = 80  # tokens of a prompt, question or instruction
TOLD = 48  # tokens of a caption or an answer
PLANS = 4  # drafts of a plan
RETOLD = 8  # drafts of a caption that, read back, does not say what the eye found
RETOLD_TEMPERATURE = 0.7
PLAN_TEMPERATURE = 0.25  # below 1: places vary, facts rarely do; chosen on validation prompts


class Reader:
    """Checked text in, token rows, plans, and greedy captions and answers.

    known: the words the model was trained on, as English writes them; others are named in a warning. rendering: what
    the eye finds in a scene is drawn, and whatever makes the drawing more like the picture is kept (analysis by
    synthesis, as the judges read); False leaves reading to the network alone.
    """

    rendering = True

    def __init__(self, model: FlowLM, codec: Codec, known: Collection[str] = ()) -> None:
        self.model, self.codec, self.words = model, codec, sorted(known)
        self.known = frozenset(word.lower() for word in known)
        self.forms = {word.lower(): word for word in known if word != word.lower()}

    def row(self, text: Any, what: str, layout: Callable[[str], list[int]]) -> list[int]:
        """Token ids of a text. Raises ShowtellError where it is empty or longer than the model reads."""
        if not isinstance(text, str) or not text.strip():
            raise ShowtellError(f"empty {what}; write a few words")
        if len(text) > 20 * LONGEST or len(row := layout(text)) > LONGEST:
            raise ShowtellError(
                f"the {what} has {len(text.split())} words, more than this model reads ({LONGEST} tokens); shorten it"
            )
        if self.known and (strange := unknown_words(text, self.known)):
            warnings.warn(f"words the model has never seen: {', '.join(strange)}", stacklevel=2)
        return row

    def tensors(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, valid = self.codec.pad(rows)
        return torch.from_numpy(ids).to(self.model.device), torch.from_numpy(valid).to(self.model.device)

    def plan(self, rows: Sequence[list[int]], seeds: Sequence[int], drafts: int = PLANS) -> list[list[int]]:
        """The rows (prompts or instructions, ending in <show>) with a plan drawn from the model before that token.

        Of several drafts of a prompt's plan the one is kept from which the prompt is likeliest to be read back (a noisy
        channel, arXiv 1611.02554).
        """
        drafts = drafts if all(row[0] == self.codec.special["<bos>"] for row in rows) else 1
        made = self._planned([row for row in rows for _ in range(drafts)], None, seeds, drafts)
        if drafts == 1:
            return made
        tried = [made[i : i + drafts] for i in range(0, len(made), drafts)]
        return [own[int(k)] for own, k in zip(tried, self._agreement(made).view(-1, drafts).argmax(dim=1), strict=True)]

    def _planned(
        self, rows: Sequence[list[int]], source: Things | None, seeds: Sequence[int], drafts: int = 1
    ) -> list[list[int]]:
        """The rows, ending in <show>, with what is drawn from the model before that token; a seed for so many rows."""
        show, choose = self.codec.special["<show>"], _drawn(seeds, drafts, PLAN_TEMPERATURE)
        begun = [row[:-1] for row in rows]
        plans = self.model.tell(*self.tensors(begun), source, show, PLAN_LENGTH, choose)
        return [[*row, *plan[:PLAN_LENGTH], show] for row, plan in zip(begun, plans, strict=True)]

    @torch.no_grad()
    def _agreement(self, rows: Sequence[list[int]]) -> Tensor:
        """(n,) log-probability of each row's prompt, read back from its plan."""
        told = self.codec.pad_told([self.codec.back(row) for row in rows])
        ids, valid, wanted = (torch.from_numpy(part).to(self.model.device) for part in told)
        log = self.model.logits(self.model(ids, valid)[1][:, :-1]).float().log_softmax(dim=-1)
        return (log.gather(2, ids[:, 1:, None])[..., 0] * wanted[:, 1:]).sum(dim=1)

    def changed(self, texts: Sequence[str], scenes: Sequence[Scene], seeds: Sequence[int]) -> list[Scene]:
        """The scenes as instructions leave them, as the model says what changes."""
        rows = [self.codec.change(text) for text in texts]
        made = self._planned(rows, self.things(scenes), seeds)
        return [changed(scene, self.codec.changes(row)) for scene, row in zip(scenes, made, strict=True)]

    def things(self, scenes: Sequence[Scene]) -> Things:
        """The objects of scenes as the language model reads them."""
        padded = self.codec.pad_things([self.codec.things(scene) for scene in scenes])
        return Things(*(torch.from_numpy(part).to(self.model.device) for part in padded))

    @torch.no_grad()
    def parse(self, source: Tensor) -> list[Scene | None]:
        """What the eye finds in pictures (n, 3, size, size); None where the language model sees nothing to parse."""
        ids, valid = self.tensors([self.codec.read(())[:1]] * len(source))
        nothing = self.model.logits(self.model(ids, valid, source)[1])[:, -1].argmax(dim=-1)
        seen = list(zip(nothing.tolist(), self.model.eye.probabilities(source), strict=True))
        rows = [i for i, (row, out) in enumerate(seen) if row != self.codec.special["<eos>"] and found(out, least=0)]
        drafts = [Draft.read(seen[i][1]) for i in rows]
        if self.rendering:
            improve(drafts, to_pixels(source[rows]))
        scenes: list[Scene | None] = [None] * len(seen)
        for i, draft in zip(rows, drafts, strict=True):
            scenes[i] = draft.scene().canonical()
        return scenes

    def caption(self, images: Any, language: str) -> list[str]:
        if language not in LANGUAGES:
            raise ShowtellError(f"unsupported language {language!r}; use one of: {', '.join(LANGUAGES)}")
        source = signal(images, 64, self.model.device)
        scenes, prompt = self.parse(source), self.codec.caption(language)
        told = self._tell([prompt] * len(source), source, scenes)
        for seed in range(RETOLD):
            wrong = [i for i, scene in enumerate(scenes) if scene is not None and not scene.told_by(told[i])]
            if not wrong:
                break
            drafts = self._tell([prompt] * len(wrong), source[wrong], [scenes[i] for i in wrong], seed)
            for i, draft in zip(wrong, drafts, strict=True):
                told[i] = draft if cast(Scene, scenes[i]).told_by(draft) else told[i]
        return [restore_case(text, self.forms) for text in told] if language == "en" else told

    def answer(self, images: Any, questions: Any) -> list[str]:
        source, asked = signal(images, 64, self.model.device), as_list(questions)
        count = max(len(source), len(asked))
        if len(source) == 1:
            source = source.expand(count, -1, -1, -1)
        texts = spread(asked if len(asked) > 1 else asked[0], len(source), "questions")
        return self._tell([self.row(text, "question", self.codec.ask) for text in texts], source, self.parse(source))

    def _tell(
        self, prompts: Sequence[Sequence[int]], source: Tensor, scenes: Sequence[Scene | None], seed: int | None = None
    ) -> list[str]:
        """The reply to each prompt: from what the eye finds, or else from the picture's patches. seed: to draw it."""
        facts = [self.codec.scenery(scene) if scene else [] for scene in scenes]
        rows = [[*self.codec.read(there), *prompt] for there, prompt in zip(facts, prompts, strict=True)]
        told = [""] * len(rows)
        for parsed in (True, False):
            which = [i for i, scene in enumerate(scenes) if (scene is not None) == parsed]
            if which:
                looked = self.things([scene for i in which if (scene := scenes[i])]) if parsed else source[which]
                ids, valid = self.tensors([rows[i] for i in which])
                how = () if seed is None else (_drawn([seed] * len(which), 1, RETOLD_TEMPERATURE),)
                replies = self.model.tell(ids, valid, looked, self.codec.special["<eos>"], TOLD, *how)
                for i, reply in zip(which, replies, strict=True):
                    told[i] = self.codec.text(reply)
        return told


def _drawn(seeds: Sequence[int], drafts: int, temperature: float) -> Callable[[Tensor], Tensor]:
    """Tokens drawn from logits (n, words), so many rows after one another with each seed's own generator."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose(logits: Tensor) -> Tensor:
        uniform = torch.cat([torch.rand(drafts, 1, generator=g) for g in generators]).to(logits.device)
        return picked((logits.float() / temperature).softmax(dim=-1), uniform)

    return choose


class _Parts:
    """The model, its tokenizer and its scheduler, with the few things that bridges expect of a pipeline."""

    def __init__(self, model: FlowLM, tokenizer: Any) -> None:
        self.model, self.vae, self.tokenizer = model, model.vae, tokenizer
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.vae_scale_factor = model.config.image_size // model.latent_size
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.components = {"model": model, "tokenizer": tokenizer, "scheduler": self.scheduler}

    @property
    def _execution_device(self) -> torch.device:
        return self.model.device

    def maybe_free_model_hooks(self) -> None:
        """Nothing is ever offloaded."""

    def progress_bar(self, total: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=total)


class EmbeddedAdapter(Adapter):
    """A FlowLM in the denoising loop: latents are (n, 4, 16, 16), time runs from 1000 to 0.

    Before the first step the model writes a plan after each prompt: what is where. `plan=False` leaves it out.
    """

    steps = 24
    scale = 3.0
    options = frozenset({"image", "task", "plan"})
    text_options = frozenset({"task"})
    text_encoders = ("model",)
    rescaled_input = False

    def __init__(self, parts: _Parts, reader: Reader) -> None:
        super().__init__(parts)
        self.reader = reader

    @property
    def model(self) -> FlowLM:
        model = self.pipeline.model
        assert isinstance(model, FlowLM)
        return model

    @property
    def denoiser(self) -> Any:
        return self.model.dit

    @property
    def channels(self) -> int:
        return self.model.channels

    @property
    def multiple(self) -> int:
        return self.model.config.image_size

    def size(self, height: int | None, width: int | None, **options: Any) -> tuple[int, int]:
        own = self.model.config.image_size
        if (height or own, width or own) != (own, own):
            raise ShowtellError(
                f"this model makes {own}x{own} images, not {height}x{width}; leave height and width out"
            )
        return own, own

    def pieces(self, **options: Any) -> list[Piece]:
        return [Piece(self.pipeline.tokenizer, LONGEST - 1, start=1, special=False)]

    def _rows(self, prompts: Sequence[str | None], **options: Any) -> list[list[int]]:
        layout = self.reader.codec.edit if options.get("task") == "edit" else self.reader.codec.show
        return [self.reader.row(text, "prompt", layout) if text else layout(None) for text in prompts]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        return self._read(self._rows(prompts, **options))

    def _read(self, rows: list[list[int]], source: Tensor | None = None) -> Text:
        ids, valid = self.reader.tensors(rows)
        hidden = self.model(ids, valid)[1]
        before = None if source is None else self.model.latents_of(source)
        return Text(hidden, mask=valid, extra={"beside": self.model.beside(ids, valid, hidden, before)})

    def set_timesteps(self, run: Run, steps: int) -> None:
        run.scheduler.set_timesteps(steps, device=self.device)
        run.timesteps = run.scheduler.timesteps

    def condition(self, run: Run) -> None:
        """Looks at the image to edit, and plans."""
        images, options = run.options.get("image"), run.options
        source = None if images is None else signal(images, self.model.config.image_size, self.device)
        planned = bool(options.get("plan", True))
        if source is None and not planned:
            return
        rows = self._rows(run.prompts, **options)
        if source is not None:
            self._plan_changes(run, rows, source, planned)
        elif planned:
            rows = self.reader.plan(rows, _seeds(run))
        run.text = replace(self._read(rows, source), make_empty=run.text.make_empty)
        if run.negative is not None and source is not None:
            negative = self._read(self._rows(run.negative_prompts or [None] * len(rows), **options), source)
            run.negative = replace(negative, make_empty=run.negative.make_empty)

    def _plan_changes(self, run: Run, rows: list[list[int]], source: Tensor, planned: bool) -> None:
        """Writes into the rows what is there and what shall be; notes where the picture stays as it is."""
        codec, split = self.reader.codec, self.reader.codec.split
        parsed = self.reader.parse(source)
        seen = [i for i, scene in enumerate(parsed) if scene is not None]
        before = [scene for scene in parsed if scene is not None]
        keep = torch.zeros(len(rows), 1, *(self.model.latent_size,) * 2, device=self.device)
        if planned and seen:
            seeds = _seeds(run)
            after = self.reader.changed([run.prompts[i] for i in seen], before, [seeds[i] for i in seen])
        else:
            after = before
        for i, was, shall in zip(seen, before, after, strict=True):
            there = [codec.special["<show>"], *codec.plan(was)]
            k = split(rows[i])
            rows[i] = [*rows[i][:k], *there, *rows[i][k:-1], *(codec.plan(shall) if planned else ()), rows[i][-1]]
            if planned:
                keep[i] = torch.from_numpy(kept(was, shall, self.model.latent_size))
        run.own["kept"] = keep, self.model.latents_of(source), source

    def predict(self, run: Run, latents: Tensor, timestep: Tensor, text: Text) -> Tensor:
        assert text.mask is not None
        time = (timestep.to(latents) / 1000).expand(len(latents))
        velocity = self.model.draw(latents, time, text.tokens, text.mask.bool(), text.extra["beside"])
        return velocity if "kept" not in run.own else self._keeping(run, velocity, latents, time)

    def _keeping(self, run: Run, velocity: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """The velocity that leads to the source's latents where an edit changes nothing."""
        keep, clean = (part.repeat(len(latents) // len(part), 1, 1, 1) for part in run.own["kept"][:2])
        return torch.where(keep > 0, (latents - clean) / time[:, None, None, None], velocity)

    def decode(self, run: Run, latents: Tensor, output_type: str) -> Any:
        """As `Adapter.decode`; where an edit changes nothing, the source's own pixels, with a soft border."""
        if "kept" not in run.own:
            return super().decode(run, latents, output_type)
        keep, _, source = run.own["kept"]
        pixels = self.pipeline.vae.decode(self.unscale(latents), return_dict=False)[0]
        stays = torch.nn.functional.interpolate(keep, size=source.shape[-2:], mode="bilinear").to(pixels)
        blended = stays * source + (1 - stays) * pixels
        return self.pipeline.image_processor.postprocess(blended.detach(), output_type=output_type)

    def layout(self, run: Run) -> TokenLayout:
        return self_then_cross(self.denoiser, self.grid(run, self.denoiser.config.patch_size))


def kept(before: Scene, after: Scene, grid: int) -> np.ndarray:
    """(grid, grid) float32, 1 where the picture of a scene stays as it is: away from every object that changes, by one
    and a half cells more than it reaches; nowhere where the scene's looks change."""
    made = changes(before, after)
    if any(change.look for change in made):
        return np.zeros((grid, grid), np.float32)
    there: dict[int | None, SceneObject] = dict(enumerate(before.objects))
    moving = [o for change in made for o in (there.get(change.index), change.thing) if o is not None]
    middle = (np.arange(grid) + 0.5) / grid
    stays = np.ones((grid, grid), bool)
    for thing in moving:
        reach = thing.radius + 1.5 / grid
        stays &= np.hypot(middle[None] - thing.x, middle[:, None] - thing.y) > reach
    return stays.astype(np.float32)


def _seeds(run: Run) -> list[int]:
    """A seed per sample for its plan, from the seeds of the noise; drawing plans leaves the noise as it is."""
    given = run.generators if isinstance(run.generators, list) else [run.generators] * len(run.prompts)
    shared = not isinstance(run.generators, list)
    return [(0 if g is None else g.initial_seed()) // 2 + i * shared for i, g in enumerate(given)]


class EmbeddedBridge(DiffusionBridge):
    """Text to 64x64 images and back, edits, answers and embeddings, by one FlowLM."""

    def __init__(self, model: FlowLM, codec: Codec, known: Collection[str] = ()) -> None:
        self.model = model.eval()
        self.reader = Reader(model, codec, known)
        adapter = EmbeddedAdapter(_Parts(model, codec.tokenizer), self.reader)
        can = frozenset({"generate", "caption", "answer", "edit", "embed", "attend"})
        super().__init__(adapter, "the embedded bridge", can)

    def generate(self, prompts: Any, **options: Any) -> list[Any]:  # type: ignore[override]
        """See `Bridge.generate`. Always 64x64; 24 steps and a guidance scale of 3 by default."""
        if not as_list(prompts):
            raise ShowtellError("no prompts given; write at least one")
        for prompt in as_list(prompts):  # before any work
            self.reader.row(prompt, "prompt", self.reader.codec.show)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="words the model has never seen")
            return super().generate(prompts, **options)

    def edit(self, images: Any, instructions: Any, *, seed: int | list[int] = 0, **more: Any) -> list[Any]:
        """See `Bridge.edit`. Instructions such as "make the ring green", in any of its languages."""
        for text in as_list(instructions):
            self.reader.row(text, "instruction", self.reader.codec.edit)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="words the model has never seen")
            return super().edit(to_pil(images), instructions, seed=seed, task="edit", **more)

    def caption(self, images: Any, language: str = "en", **more: Any) -> list[str]:
        """See `Bridge.caption`. language: "en", "zh" or "es"."""
        return self.reader.caption(images, language)

    def answer(self, images: Any, questions: Any, **more: Any) -> list[str]:
        """See `Bridge.answer`."""
        return self.reader.answer(images, questions)

    @torch.no_grad()
    def embed(self, images: Any = None, texts: Any = None, **more: Any) -> Tensor:
        """See `Bridge.embed`. (n, 128)."""
        if (images is None) == (texts is None):
            raise ShowtellError("embed takes images=... or texts=..., one of the two")
        if texts is not None:
            rows = [self.reader.row(text, "text", self.reader.codec.show) for text in as_list(texts)]
            ids, valid = self.reader.tensors(rows)
            return self.model.embed_texts(self.model(ids, valid)[1], valid.sum(dim=1) - 2)  # at <sep>
        source = signal(images, self.model.config.image_size, self.model.device)
        ids, valid = self.reader.tensors([self.reader.codec.caption("en")] * len(source))
        return self.model.embed_images(self.model(ids, valid, source)[0])

    def save(self, directory: str | Path) -> None:
        """Writes weights, tokenizer and word list; `showtell.load(directory)` reads them back."""
        self.model.save_pretrained(directory)
        files.share(directory)
        self.reader.codec.tokenizer.save_pretrained(directory)
        (Path(directory) / "words.json").write_text(json.dumps(self.reader.words, ensure_ascii=False))


def load_embedded(path: str | Path, device: Any = None, dtype: Any = None) -> EmbeddedBridge:
    """A bridge of this module from its folder: weights, tokenizer, word list. Raises ShowtellError where one is missing
    or damaged."""
    from transformers import PreTrainedTokenizerFast

    path = Path(path)
    try:
        known = json.loads((path / "words.json").read_text())
        codec = Codec(PreTrainedTokenizerFast.from_pretrained(path))
        model, found = FlowLM.from_pretrained(
            path, dtype=dtype or torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ShowtellError(f"cannot load the model in {path}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # safetensors raises an exception type of its own for damaged files
        raise ShowtellError(f"damaged checkpoint in {path}: {str(error).splitlines()[0]}") from None
    if found["missing_keys"]:
        raise ShowtellError(
            f"the checkpoint in {path} lacks {min(found['missing_keys'])}: train it anew, or on with --init"
        )
    return EmbeddedBridge(model.to(device or "cpu"), codec, known)


def load_default(device: Any = None, dtype: Any = None) -> Bridge:
    """The packaged bridge."""
    return load_embedded(folder("bridge"), device, dtype)
