"""The training mixture of a model that maps both ways: scenes, emoji or a user's folder, as batches of arrays.

A batch has up to three parts. show: text to image, by way of a plan (what is where, in words and place tokens).
tell: image to text (first what is where, then a caption in one of three languages or an answer), row i seeing the
same thing as row i of show; `tell_wanted` marks what is to be told. edit: image and instruction to image. Every part is
padded to its longest row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from showtell.world import Scene, draw, sample
from showtell.world.edits import Edit, edits
from showtell.world.language import LANGUAGES
from showtell.world.questions import questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from showtell.data.emoji import EmojiSet
    from showtell.data.folder import Pair

PLACES = 64  # place tokens per axis
SPECIAL = ("<show>", "<ask>", "<edit>", *(f"<{code}>" for code in LANGUAGES), *(f"<{i}>" for i in range(PLACES)))
SHOW_LENGTH, TELL_LENGTH, EDIT_LENGTH, PLAN_LENGTH = 40, 96, 24, 48  # tokens that training sees at most
_LANGUAGE_WEIGHTS = (80, 10, 10)
_SHOW_STYLES = (("plain", "terse", "detailed", "paraphrase"), (65, 10, 5, 20))
_BARE = {"texture": "solid", "state": "whole", "rotation": 0, "style": "flat", "light": "even"}
_FACES: tuple[tuple[dict[str, Any], int], ...] = (
    # how scenes are sampled, and how often: the default world, and plainer ones with more to relate
    ({}, 40),
    ({"objects": 2, **_BARE}, 20),
    ({"objects": (3, 4), **_BARE}, 30),
    ({"objects": (1, 3), "word": True}, 10),
)


Told = tuple[list[int], list[int]]  # tokens, and 1 for those that are to be predicted


class Codec:
    """Text to token rows and back, in the layouts that the models of `nets` are trained on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        names = ("<pad>", "<bos>", "<eos>", "<sep>", *SPECIAL)
        self._known: dict[str, list[int]] = {}
        self.special = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}  # type: ignore[arg-type]

    def words(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 50_000:
                self._known.clear()
            self._known[text] = list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        return list(self._known[text])

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def show(self, text: str | None, plan: Sequence[int] = ()) -> list[int]:
        """A prompt and its plan; None is the empty prompt that guidance steers away from."""
        head = [self.special["<bos>"], *(self.words(text) if text else ())]
        return [*head, self.special["<sep>"], *plan, self.special["<show>"]]

    def edit(self, text: str | None, plan: Sequence[int] = ()) -> list[int]:
        """An instruction and the plan of the picture that it leads to."""
        return [self.special["<edit>"], *self.show(text, plan)[1:]]

    def plan(self, scene: Scene, mentioned: bool = False) -> list[int]:
        """What is where: the scene's own facts, then each object from far to near (or as the scene mentions them), with
        its place as two tokens. Default values stay unsaid."""
        plain = ("white", "flat", "even", "")
        facts = (scene.background, scene.style, scene.light, scene.word)
        row = self.words(" ".join(value for value, usual in zip(facts, plain, strict=True) if value != usual))
        for thing in scene.objects if mentioned else sorted(scene.objects, key=lambda o: -o.depth):
            turn = {0: "", 90: "right", 180: "down", 270: "left"}[thing.rotation]
            said = (thing.size, thing.texture, thing.state, turn)
            usual = ("medium", "solid", "whole", "")
            more = [a for a, b in zip(said, usual, strict=True) if a != b]
            row += self.words(" ".join([thing.colour, thing.shape, *more]))
            row += [self.special[f"<{min(int(v * PLACES), PLACES - 1)}>"] for v in (thing.x, thing.y)]
        return row

    def ask(self, question: str) -> list[int]:
        return [self.special["<ask>"], *self.words(question), self.special["<sep>"]]

    def read(self, plan: Sequence[int]) -> list[int]:
        """What a picture shows; `ask` or `caption` follows."""
        return [self.special["<show>"], *plan, self.special["<eos>"]]

    def caption(self, language: str) -> list[int]:
        return [self.special[f"<{language}>"]]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """(ids (n, length) int64, valid (n, length) bool), length being that of the longest row."""
        length = max(map(len, rows))
        ids = np.full((len(rows), length), self.special["<pad>"], np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        lengths = np.array([len(row) for row in rows])
        return ids, np.arange(length) < lengths[:, None]


def corpus(seed: int = 0, scenes: int = 6000) -> Iterator[str]:
    """Sentences of the world in every language and style: what the tokenizer and the list of known words come from."""
    from showtell.world.language import STYLES

    rng = random.Random(seed)
    for options, weight in _FACES:
        for scene in sample(scenes * weight // 100, seed, **options):
            for language in LANGUAGES:
                yield scene.caption(language, rng.choice(STYLES))
                for question in questions(scene, rng, n=1, language=language):
                    yield f"{question.question} {question.answer}"
                yield from (edit.text(language) for edit in edits(scene, rng, n=1))


def scenes_like(rng: np.random.Generator, count: int, split: str = "train") -> list[Scene]:
    """Scenes of the mixture's own distribution: the default world, and plainer faces of it with more to relate."""
    seed = int(rng.integers(2**62))
    chosen = rng.choice(len(_FACES), size=count, p=np.array([weight for _, weight in _FACES]) / 100)
    made: list[Scene] = []
    for index, (options, _) in enumerate(_FACES):
        made += sample(int((chosen == index).sum()), seed, split, **options)
    return made


class Mixture:
    """Callable (rng, batch size) -> batch, for `train.trainer.Stream`. Parts of the mixture: "scenes", "emoji", pairs.

    drop: share of prompts replaced by the empty one (for classifier-free guidance). noisy: share of told images with
    noise on them, so that the model reads its own and others' imperfect pictures. unplanned: share of prompts whose
    plan is left out.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        scenes: bool = True,
        emoji: EmojiSet | None = None,
        pairs: Sequence[Pair] = (),
        emoji_share: float = 0.3,
        edit_share: float = 0.2,
        drop: float = 0.1,
        noisy: float = 0.3,
        unplanned: float = 0.1,
        split: str = "train",
    ) -> None:
        self.codec, self.emoji, self.pairs, self.split = codec, emoji, list(pairs), split
        self.drop, self.noisy, self.unplanned = drop, noisy, unplanned
        self.edit_share = edit_share if scenes else 0.0
        self.shares = {"scenes": float(scenes), "emoji": float(emoji is not None), "pairs": float(bool(pairs))}
        if scenes and emoji is not None:
            self.shares |= {"scenes": 1 - emoji_share, "emoji": emoji_share}
        self.rows = [i for i, item in enumerate(emoji.items) if item.split == "train"] if emoji is not None else []
        self.pixels = [(pair.image(), pair.captions) for pair in self.pairs]

    def __call__(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        pick = random.Random(int(rng.integers(2**62)))
        total = sum(self.shares.values())
        counts = {name: round(size * share / total) for name, share in self.shares.items()}
        counts[max(counts, key=lambda name: counts[name])] += size - sum(counts.values())
        makers: dict[str, Callable[..., tuple[list[Any], list[Told], np.ndarray, np.ndarray]]] = {
            "scenes": self._scenes, "emoji": self._emoji, "pairs": self._pairs,
        }  # fmt: skip
        parts = [makers[name](rng, pick, count) for name, count in counts.items() if count]
        show = [row for part in parts for row in part[0]]
        tell = [told for part in parts for told in part[1]]
        dropped = rng.random(size) < self.drop
        empty = self.codec.show(None)
        batch: dict[str, np.ndarray] = {
            "show_image": np.concatenate([part[2] for part in parts]),
            "tell_image": np.concatenate([part[3] for part in parts]),
            "show_told": ~dropped,
        }
        rows = [empty if drop else row for row, drop in zip(show, dropped, strict=True)]
        batch["show_ids"], batch["show_valid"] = self.codec.pad(rows)
        batch["show_start"] = np.array([row.index(self.codec.special["<sep>"]) for row in rows])
        batch["tell_ids"], batch["tell_valid"] = self.codec.pad([row for row, _ in tell])
        batch["tell_wanted"] = self.codec.pad([wanted for _, wanted in tell])[0] > 0
        if self.edit_share:
            batch |= self._edits(rng, pick, round(size * self.edit_share))
        return batch

    # --- sources ---------------------------------------------------------------------------------------------------

    def _scenes(self, rng: np.random.Generator, pick: random.Random, count: int) -> Any:
        scenes = scenes_like(rng, count, self.split)
        images = draw(scenes)
        show = [self._prompt(pick, scene) for scene in scenes]
        return show, [self._told(pick, scene) for scene in scenes], images, self._spoil(rng, images)

    def _prompt(self, pick: random.Random, scene: Scene) -> list[int]:
        from showtell.world.language import STYLES

        language = pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0]
        style = pick.choices(*_SHOW_STYLES)[0]
        style = pick.choice([name for name in STYLES if name.startswith(style)])
        for wording in (style, "plain", "terse"):
            text = scene.caption(language, wording)
            if len(self.codec.words(text)) <= SHOW_LENGTH:
                break
        planned = pick.random() > self.unplanned
        return self.codec.show(text, self.codec.plan(scene)[:PLAN_LENGTH] if planned else ())

    def _told(self, pick: random.Random, scene: Scene) -> Told:
        language = pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0]
        scene = scene.canonical()
        seen = self.codec.plan(scene, mentioned=True)
        asked = questions(scene, pick, n=1, language=language) if pick.random() < 0.35 else []
        if asked:
            return self._reply(seen, self.codec.ask(asked[0].question), asked[0].answer)
        return self._reply(seen, self.codec.caption(language), scene.caption(language))

    def _reply(self, seen: Sequence[int], prompt: list[int], text: str) -> Told:
        """A row, and 1 where a token is to be predicted: what is seen and the reply, but not the prompt between."""
        plan = self.codec.read(seen)
        reply = [*self.codec.words(text), self.codec.special["<eos>"]]
        wanted = [0] + [1] * (len(plan) - 1) + [0] * len(prompt) + [1] * len(reply)
        return [*plan, *prompt, *reply][:TELL_LENGTH], wanted[:TELL_LENGTH]

    def _spoil(self, rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
        """Gaussian noise of random strength (up to 10 % of the range) on some of the images."""
        strength = 25.5 * rng.random(len(images), dtype=np.float32) * (rng.random(len(images)) < self.noisy)
        rows = np.flatnonzero(strength)
        spoilt = images.copy()
        noise = rng.standard_normal((len(rows), *images.shape[1:]), dtype=np.float32) * strength[rows, None, None, None]
        spoilt[rows] = np.clip(images[rows] + noise, 0, 255).astype(np.uint8)
        return spoilt

    def _emoji(self, rng: np.random.Generator, pick: random.Random, count: int) -> Any:
        from showtell.data.emoji import augment

        assert self.emoji is not None
        rows = [pick.choice(self.rows) for _ in range(count)]
        images = self.emoji.images[rows]
        show, tell = [], []
        for row in rows:
            names = self.emoji.items[row].names
            language = pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0]
            show.append(self.codec.show(names.get(language, names["en"])))
            language = pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0]
            name = names.get(language)
            tell.append(self._reply((), self.codec.caption(language if name else "en"), name or names["en"]))
        return show, tell, images, augment(images, rng)

    def _pairs(self, rng: np.random.Generator, pick: random.Random, count: int) -> Any:
        chosen = [pick.choice(self.pixels) for _ in range(count)]
        images = np.stack([image for image, _ in chosen])
        show, tell = [], []
        for _, captions in chosen:
            text = pick.choice(captions)
            words = self.codec.words(text)[:SHOW_LENGTH]
            show.append([*self.codec.show(None)[:1], *words, *self.codec.show(None)[1:]])
            tell.append(self._reply((), self.codec.caption("en"), self.codec.text(words)))
        return show, tell, images, self._spoil(rng, images)

    def _edits(self, rng: np.random.Generator, pick: random.Random, count: int) -> dict[str, np.ndarray]:
        made: list[Edit] = []
        while len(made) < count:  # a few scenes have no room for the edit drawn
            made += [e for scene in scenes_like(rng, count - len(made), self.split) for e in edits(scene, pick, n=1)]
        dropped = rng.random(count) < self.drop
        rows = []
        for edit, drop in zip(made, dropped, strict=True):
            text = edit.text(pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0])
            if len(self.codec.words(text)) > EDIT_LENGTH:
                text = edit.text("en")
            plan = self.codec.plan(edit.after)[:PLAN_LENGTH]
            rows.append(self.codec.edit(None) if drop else self.codec.edit(text, plan))
        images = draw([edit.before for edit in made] + [edit.after for edit in made])
        ids, valid = self.codec.pad(rows)
        start = np.array([row.index(self.codec.special["<sep>"]) for row in rows])
        batch = {"edit_ids": ids, "edit_valid": valid, "edit_start": start}
        return batch | {"edit_source": images[:count], "edit_target": images[count:]}
