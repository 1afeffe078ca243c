"""The training mixture of a model that maps both ways: scenes, emoji or a user's folder, as batches of arrays.

Of words (what the language model learns): show, prompts and the plans that follow (what is where, in words and place
tokens); tell, the things of a scene and then a caption in one of three languages, or answers; or a plan and then its
prompt; change, the things of a scene, an instruction and what it changes; look, pictures and what is told of them, row
i showing what the last rows of show say.
Of pictures (what the denoiser learns): show, with its pictures; edit, with pictures before and after.
Every part is padded to its longest row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from showtell.world import Scene, SceneError, SceneObject, draw, sample
from showtell.world.changes import Change, changes, ranks
from showtell.world.edits import Edit, edits
from showtell.world.language import LANGUAGES
from showtell.world.questions import questions
from showtell.world.scene import BACKGROUNDS, COLOURS, MAX_OBJECTS, SHAPES, SIZES, STATES, STYLES, TEXTURES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from showtell.data.emoji import EmojiSet
    from showtell.data.folder import Pair

PLACES = 64  # place tokens per axis
SPECIAL = ("<show>", "<ask>", "<edit>", *(f"<{code}>" for code in LANGUAGES), *(f"<{i}>" for i in range(PLACES)))
SHOW_LENGTH, TELL_LENGTH, EDIT_LENGTH, PLAN_LENGTH = 40, 112, 24, 48  # tokens that training sees at most
_LANGUAGE_WEIGHTS = (80, 10, 10)
_SHOW_STYLES = (("plain", "terse", "detailed", "paraphrase"), (65, 10, 5, 20))
_BARE = {"texture": "solid", "state": "whole", "rotation": 0, "style": "flat", "light": "even"}
_LOOKS = {"background": BACKGROUNDS, "style": STYLES}  # that an instruction may change
_FACES: tuple[tuple[dict[str, Any], int], ...] = (
    # how scenes are sampled, and how often: the default world, and plainer ones with more to relate
    ({}, 40),
    ({"objects": 2, **_BARE}, 20),
    ({"objects": (3, 4), **_BARE}, 30),
    ({"objects": (1, 3), "word": True}, 10),
)


Told = tuple[list[int], list[int]]  # tokens, and 1 for those that are to be predicted
Thing = tuple[list[int], tuple[float, float, float]]  # an object's words, and its place: x, y, rank / MAX_OBJECTS
GONE = "nothing"  # what an object is changed to that is taken away


def described(thing: SceneObject) -> str:
    """An object's facts in words, colour and shape first; usual values stay unsaid."""
    turn = {0: "", 90: "right", 180: "down", 270: "left"}[thing.rotation]
    said = (thing.size, thing.texture, thing.state, turn)
    usual = ("medium", "solid", "whole", "")
    return " ".join([thing.colour, thing.shape, *(a for a, b in zip(said, usual, strict=True) if a != b)])


_FACTS: dict[str, tuple[str, Any]] = {
    value: (name, value)
    for name, values in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES), ("texture", TEXTURES),
                         ("state", STATES))
    for value in values
} | {"right": ("rotation", 90), "down": ("rotation", 180), "left": ("rotation", 270)}  # fmt: skip


def _change(index: int | None, text: str, places: Sequence[int]) -> Iterator[Change]:
    """The change that these words mean, if any; places: x, y and rank."""
    if index is None:
        look, _, value = text.partition(" ")
        if value in _LOOKS.get(look, ()):
            yield Change(look=look, value=value)
        return
    if text == GONE:
        yield Change(index)
    facts = dict(_FACTS[word] for word in text.split() if word in _FACTS)
    if len(places) == 3 and {"shape", "colour"} <= set(facts):
        x, y = ((v + 0.5) / PLACES for v in places[:2])
        with suppress(SceneError):
            yield Change(index, SceneObject(**facts, x=round(x, 4), y=round(y, 4), depth=places[2]))


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

    def edit(self, text: str | None, plan: Sequence[int] = (), there: Sequence[int] = ()) -> list[int]:
        """An instruction, what is there, and the plan of the picture that it leads to."""
        row = [self.special["<edit>"], *self.show(text, plan)[1:]]
        return row if not there else [*row[: (k := self.split(row))], self.special["<show>"], *there, *row[k:]]

    def split(self, row: Sequence[int]) -> int:
        """Where the prompt of a row ends and its plan begins."""
        return row.index(self.special["<sep>"])

    def plan(self, scene: Scene, mentioned: bool = False) -> list[int]:
        """What is where: the scene's own facts, then each object from far to near, with its place as two tokens; or the
        objects as the scene mentions them, with a third token for their rank in depth. Default values stay unsaid."""
        row = self.scenery(scene)
        for thing in scene.objects if mentioned else sorted(scene.objects, key=lambda o: -o.depth):
            row += [*self.words(described(thing)), *self._place(thing)]
            if mentioned:
                row.append(self.special[f"<{ranks(scene.objects)[scene.objects.index(thing)].depth}>"])
        return row

    def scenery(self, scene: Scene) -> list[int]:
        """The words for background, style, light and what is written, where they are not the usual ones."""
        plain = ("white", "flat", "even", "")
        facts = (scene.background, scene.style, scene.light, scene.word)
        return self.words(" ".join(value for value, usual in zip(facts, plain, strict=True) if value != usual))

    def things(self, scene: Scene) -> list[Thing]:
        """The objects as the scene mentions them, each by itself."""
        return [
            (self.words(described(o)), (o.x, o.y, o.depth / MAX_OBJECTS)) for o in ranks(scene.objects)[:MAX_OBJECTS]
        ]

    def _place(self, thing: SceneObject) -> list[int]:
        return [self.special[f"<{min(int(v * PLACES), PLACES - 1)}>"] for v in (thing.x, thing.y)]

    def change(self, text: str, made: Sequence[Change] = ()) -> list[int]:
        """An instruction, and what it changes: looks of the scene by name and value; objects by number, each with its
        words, its place and its rank in depth as it shall be, or GONE."""
        row = [self.special["<edit>"], *self.words(text), self.special["<sep>"]]
        for one in made:
            if one.index is None:
                row += self.words(f"{one.look} {one.value}")
                continue
            row += [self.special[f"<{one.index}>"], *self.words(GONE if one.thing is None else described(one.thing))]
            if one.thing is not None:
                row += [*self._place(one.thing), self.special[f"<{one.thing.depth}>"]]
        return [*row, self.special["<show>"]]

    def changes(self, row: Sequence[int]) -> list[Change]:
        """What a row says after its instruction, as far as it makes sense."""
        first = self.special["<0>"]
        made, words, places, index = list[Change](), list[int](), list[int](), None

        def end() -> None:
            nonlocal words, places, index
            made.extend(_change(index, self.text(words), places))
            words, places, index = [], [], None

        for token in row[self.split(row) + 1 : -1]:
            place = token - first if first <= token < first + PLACES else None
            if place is None:
                words.append(token)
            elif index is not None and words and self.text(words) != GONE:
                places.append(place)
                if len(places) == 3:
                    end()
            else:
                end()
                index = place
        end()
        return made

    def back(self, row: Sequence[int]) -> Told:
        """The prompt of a row of `show`, to be predicted from its plan: how well a plan says what was asked for."""
        split = self.split(row)
        plan, words = row[split + 1 : -1], [*row[1:split], self.special["<eos>"]]
        given = [*self.read(plan), row[0]]
        return [*given, *words], [0] * len(given) + [1] * len(words)

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

    def pad_things(self, things: Sequence[Sequence[Thing]]) -> tuple[np.ndarray, np.ndarray]:
        """(words (n, MAX_OBJECTS, length) int64, places (n, MAX_OBJECTS, 3)), see `nets.flow_lm.Things`."""
        length = max((len(words) for row in things for words, _ in row), default=1)
        words = np.zeros((len(things), MAX_OBJECTS, length), np.int64)
        places = np.full((len(things), MAX_OBJECTS, 3), np.nan, np.float32)
        for i, row in enumerate(things):
            for j, (said, place) in enumerate(row):
                words[i, j, : len(said)], places[i, j] = said, place
        return words, places

    def pad_told(self, told: Sequence[Told]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, valid) as `pad`, and wanted (n, length) bool: what is to be predicted."""
        ids, valid = self.pad([row for row, _ in told])
        wanted = np.zeros_like(valid)
        wanted[valid] = np.concatenate([one for _, one in told]) > 0
        return ids, valid, wanted


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

    pictures: of pictures, otherwise of words (see above). Of words, a batch of n has n scenes that are told of, and so
    many times n prompts with their plans (show), instructions (change) and pictures that are looked at, most of them no
    scenes (look). asked: questions about a scene, one after the other. drop: share of prompts to draw that are replaced
    by the empty one (for classifier-free guidance). unplanned: share of them whose plan is left out. noisy: share of
    looked-at pictures with noise on them, so that the model knows its own and others' imperfect pictures.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        scenes: bool = True,
        emoji: EmojiSet | None = None,
        pairs: Sequence[Pair] = (),
        pictures: bool = False,
        emoji_share: float = 0.4,
        edit_share: float = 0.2,
        show: float = 0.4,
        change: float = 0.4,
        look: float = 1.0,
        asked: int = 6,
        drop: float = 0.1,
        noisy: float = 0.3,
        unplanned: float = 0.1,
        split: str = "train",
    ) -> None:
        self.codec, self.emoji, self.pairs, self.split, self.pictures = codec, emoji, list(pairs), split, pictures
        self.drop, self.noisy, self.unplanned = drop, noisy, unplanned
        self.scenes, self.edit_share = scenes, edit_share if scenes else 0.0
        self.asked = asked
        self.show, self.change, self.look = show, change * scenes, look if scenes else 1.0
        self.shares = {"scenes": float(scenes), "emoji": float(emoji is not None), "pairs": float(bool(pairs))}
        if scenes and emoji is not None:
            self.shares |= {"scenes": 1 - emoji_share, "emoji": emoji_share}
        self.rows = [i for i, item in enumerate(emoji.items) if item.split == "train"] if emoji is not None else []
        self.pixels = [(pair.image(), pair.captions) for pair in self.pairs]

    def __call__(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        pick = random.Random(int(rng.integers(2**62)))
        if not self.pictures:
            return self._said(rng, pick, size)
        batch = self._drawn(rng, pick, size)
        return batch | self._edits(rng, pick, round(size * self.edit_share)) if self.edit_share else batch

    def _said(self, rng: np.random.Generator, pick: random.Random, size: int) -> dict[str, np.ndarray]:
        """Words: prompts and plans, what is told and changed, and pictures that are looked at."""
        scenes = scenes_like(rng, size, self.split) if self.scenes else []
        shown = [
            self._prompt(pick, scene, planned=True) for scene in pick.sample(scenes, round(len(scenes) * self.show))
        ]
        starts = [self.codec.split(row) for row in shown]
        batch: dict[str, np.ndarray] = {}
        if scenes:
            told = [self._told(pick, scene.canonical()) for scene in scenes]
            told += (back := [self.codec.back(row) for row in shown[: size // 8]])
            batch |= zip(("tell_ids", "tell_valid", "tell_wanted"), self.codec.pad_told(told), strict=True)
            things = [self.codec.things(scene.canonical()) for scene in scenes] + [[]] * len(back)
            batch |= zip(("tell_words", "tell_places"), self.codec.pad_things(things), strict=True)
            batch |= self._changes(rng, pick, round(size * self.change)) if self.change else {}
        rows, told, images, spoilt = self._mixed(rng, pick, max(1, round(size * self.look)))
        for row, (reply, _) in zip(rows, told, strict=True):
            nothing = reply[1] == self.codec.special["<eos>"]  # there is nothing to plan, and that is to be learned
            starts.append(self.codec.split(row) if nothing else len(row))
        batch["show_ids"], batch["show_valid"] = self.codec.pad([*shown, *rows])
        batch["show_start"] = np.array(starts)
        batch |= zip(("look_ids", "look_valid", "look_wanted"), self.codec.pad_told(told), strict=True)
        return batch | {"look_image": spoilt, "look_clean": images}

    def _drawn(self, rng: np.random.Generator, pick: random.Random, size: int) -> dict[str, np.ndarray]:
        """Prompts with their plans, and what they show."""
        rows, _, images, _ = self._mixed(rng, pick, size)
        dropped = rng.random(size) < self.drop
        rows = [self.codec.show(None) if drop else row for row, drop in zip(rows, dropped, strict=True)]
        ids, valid = self.codec.pad(rows)
        return {"show_ids": ids, "show_valid": valid, "show_image": images, "show_told": ~dropped}

    # --- sources ---------------------------------------------------------------------------------------------------

    def _mixed(self, rng: np.random.Generator, pick: random.Random, size: int) -> Any:
        """(prompts, what is told, pictures, the same spoilt) from all sources."""
        total = sum(self.shares.values())
        shares = dict(self.shares)
        if not self.pictures and self.scenes and total > self.shares["scenes"]:
            shares["scenes"] /= 3  # scenes are told from what the eye finds in them; a few pictures are enough
            total = sum(shares.values())
        counts = {name: round(size * share / total) for name, share in shares.items()}
        counts[max(counts, key=lambda name: counts[name])] += size - sum(counts.values())
        makers: dict[str, Callable[..., tuple[list[Any], list[Told], np.ndarray, np.ndarray]]] = {
            "scenes": self._scenes, "emoji": self._emoji, "pairs": self._pairs,
        }  # fmt: skip
        parts = [makers[name](rng, pick, count) for name, count in counts.items() if count]
        rows, told = [row for part in parts for row in part[0]], [one for part in parts for one in part[1]]
        return rows, told, *(np.concatenate([part[i] for part in parts]) for i in (2, 3))

    def _scenes(self, rng: np.random.Generator, pick: random.Random, count: int) -> Any:
        scenes = scenes_like(rng, count, self.split)
        images = draw(scenes)
        show = [self._prompt(pick, scene, self.pictures and pick.random() > self.unplanned) for scene in scenes]
        seen = [self._reply(self.codec.plan(scene.canonical(), mentioned=True), ()) for scene in scenes]
        return show, seen, images, self._spoil(rng, images)

    def _prompt(self, pick: random.Random, scene: Scene, planned: bool) -> list[int]:
        from showtell.world.language import STYLES

        language = pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0]
        style = pick.choices(*_SHOW_STYLES)[0]
        style = pick.choice([name for name in STYLES if name.startswith(style)])
        for wording in (style, "plain", "terse"):
            text = scene.caption(language, wording)
            if len(self.codec.words(text)) <= SHOW_LENGTH:
                break
        return self.codec.show(text, self.codec.plan(scene)[:PLAN_LENGTH] if planned else ())

    def _told(self, pick: random.Random, scene: Scene) -> Told:
        """What is told of a scene's things: answers, or a caption."""
        language = pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0]
        asked = questions(scene, pick, n=self.asked, language=language) if pick.random() < 0.6 else []
        talk = [(self.codec.ask(one.question), one.answer) for one in asked]
        talk = talk or [(self.codec.caption(language), scene.caption(language))]
        return self._reply(self.codec.scenery(scene), talk, seen=False)

    def _reply(self, there: Sequence[int], talk: Sequence[tuple[list[int], str]], seen: bool = True) -> Told:
        """A row, and 1 where a token is to be predicted: the replies, and where the picture is `seen`, what is there.

        talk: prompts with their replies.
        """
        row = self.codec.read(there)
        wanted = [0] + [int(seen)] * (len(row) - 1)
        for prompt, text in talk:
            reply = [*self.codec.words(text), self.codec.special["<eos>"]]
            row, wanted = [*row, *prompt, *reply], [*wanted, *[0] * len(prompt), *[1] * len(reply)]
        return row[:TELL_LENGTH], wanted[:TELL_LENGTH]

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
            tell.append(self._reply((), [(self.codec.caption(language if name else "en"), name or names["en"])]))
        return show, tell, images, augment(images, rng)

    def _pairs(self, rng: np.random.Generator, pick: random.Random, count: int) -> Any:
        chosen = [pick.choice(self.pixels) for _ in range(count)]
        images = np.stack([image for image, _ in chosen])
        show, tell = [], []
        for _, captions in chosen:
            text = pick.choice(captions)
            words = self.codec.words(text)[:SHOW_LENGTH]
            show.append([*self.codec.show(None)[:1], *words, *self.codec.show(None)[1:]])
            tell.append(self._reply((), [(self.codec.caption("en"), self.codec.text(words))]))
        return show, tell, images, self._spoil(rng, images)

    def _changes(self, rng: np.random.Generator, pick: random.Random, count: int) -> dict[str, np.ndarray]:
        made = self._edited(rng, pick, count)
        rows = [self.codec.change(self._instruction(pick, e), changes(e.before, e.after)) for e in made]
        wanted = [[int(i > self.codec.split(row)) for i in range(len(row))] for row in rows]
        told = self.codec.pad_told(list(zip(rows, wanted, strict=True)))
        batch = dict(zip(("change_ids", "change_valid", "change_wanted"), told, strict=True))
        things = self.codec.pad_things([self.codec.things(edit.before) for edit in made])
        return batch | dict(zip(("change_words", "change_places"), things, strict=True))

    def _edited(self, rng: np.random.Generator, pick: random.Random, count: int) -> list[Edit]:
        made: list[Edit] = []
        while len(made) < count:  # a few scenes have no room for the edit drawn
            for scene in scenes_like(rng, count - len(made), self.split):
                made += edits(scene.canonical(), pick, n=1)
        return made

    def _instruction(self, pick: random.Random, edit: Edit) -> str:
        text = edit.text(pick.choices(LANGUAGES, _LANGUAGE_WEIGHTS)[0])
        return text if len(self.codec.words(text)) <= EDIT_LENGTH else edit.text("en")

    def _edits(self, rng: np.random.Generator, pick: random.Random, count: int) -> dict[str, np.ndarray]:
        made = self._edited(rng, pick, count)
        dropped = rng.random(count) < self.drop
        rows = []
        for edit, drop in zip(made, dropped, strict=True):
            there, plan = (self.codec.plan(scene)[:PLAN_LENGTH] for scene in (edit.before, edit.after))
            rows.append(self.codec.edit(None) if drop else self.codec.edit(self._instruction(pick, edit), plan, there))
        ids, valid = self.codec.pad(rows)
        images = draw([edit.before for edit in made] + [edit.after for edit in made])
        return {"edit_ids": ids, "edit_valid": valid, "edit_source": images[:count], "edit_target": images[count:]}
