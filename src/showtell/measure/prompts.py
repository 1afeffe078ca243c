"""Prompt sets: what every paper is tried on. Seeded, in splits that share no prompt, with the scenes behind the words.

    prompts = prompt_set("pairs", 32, seed=0)
    images = bridge.generate(prompts.texts, seed=0)
    prompts.binding(images)                    # (32,) in [0, 1]: attributes right, given that the object is there
    prompts.whole(images, judge="second")      # by the other judge

A set of n is the beginning of every longer set with the same name, seed and split.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from showtell.errors import ShowtellError
from showtell.measure.entities import ENTITIES, Entity, facts_for
from showtell.pictures import to_pil
from showtell.world import Motion, Relation, Scene, SceneError, SceneObject, draw, sample
from showtell.world.draw import boxes, masks
from showtell.world.edits import KINDS as EDITS
from showtell.world.edits import Edit, edits
from showtell.world.language import english
from showtell.world.language.captions import stated
from showtell.world.language.parsing import WORD_FLOOR
from showtell.world.layout import place
from showtell.world.questions import Question, answer, questions
from showtell.world.sampling import held_out, split_of
from showtell.world.scene import BACKGROUNDS, COLOURS, MOTIONS, RELATIONS, SHAPES, STYLES, TEXTURES, TURNABLE

if TYPE_CHECKING:
    from PIL import Image

    from showtell.measure.judge import Judge
    from showtell.measure.scores import Score

SPLITS = ("test", "validation")
QUESTIONS = 6  # per prompt, at most
_LAYOUTS = 3  # a question is asked only where so many layouts of the same words agree on its answer
_TRIES = 400  # repeats in a row after which there are no more different prompts

SIDES = RELATIONS[:4]
BARE: dict[str, Any] = {"texture": "solid", "state": "whole", "rotation": 0, "style": "flat", "light": "even"}
PLAIN = BARE | {"size": "medium", "background": "white"}


@dataclass(frozen=True)
class Prompt:
    """One item of a set. text: what a model is given. scene: what it should show (for edits: afterwards)."""

    text: str
    scene: Scene
    edit: Edit | None = None
    entities: tuple[Entity, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """n prompts with what is behind them; everything is a list in their order.

    The metric methods take one image per prompt (whatever `to_pil` takes) and return (n,) float64: see
    `showtell.measure.scores` for what each counts. judge: "first", "second" or a `Judge`. fast: the judge's network
    alone, without rendering. Readings are remembered, so that several metrics of the same images cost one reading.
    """

    name: str
    seed: int
    split: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> PromptSet:
        """Some of the prompts, as a set."""
        return replace(self, prompts=self.prompts[rows])

    @classmethod
    def of(cls, name: str, scenes: Sequence[Scene], seed: int, split: str = "test") -> PromptSet:
        """A set of one's own: scenes by their captions. seed, split: what they were drawn with."""
        return cls(name, seed, split, tuple(Prompt(scene.caption(), scene) for scene in scenes))

    # --- what is behind the words ------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> list[str]:
        """What a model is given: captions; for "edits" instructions; for "knowledge" captions that name entities."""
        return [prompt.text for prompt in self.prompts]

    @cached_property
    def scenes(self) -> list[Scene]:
        """What the images should show (of "edits": afterwards; of "motion": with the motion)."""
        return [prompt.scene for prompt in self.prompts]

    @cached_property
    def plain(self) -> list[str]:
        """The scenes' own captions, which `Scene.parse` inverts."""
        return [scene.caption() for scene in self.scenes]

    @cached_property
    def boxes(self) -> list[np.ndarray]:
        """(k, 4) per prompt: x0, y0, x1, y1 in [0, 1] of each object of one layout that fits the text."""
        return [boxes(scene) for scene in self.scenes]

    @cached_property
    def phrases(self) -> list[list[str]]:
        """The noun phrase of each object, in the order of the boxes: "a red ring"."""
        return [[english.a(stated(thing)) for thing in scene.objects] for scene in self.scenes]

    @cached_property
    def masks(self) -> list[np.ndarray]:
        """(k, 64, 64) bool per prompt: where each object of that layout is seen."""
        return [masks(scene) > 0.5 for scene in self.scenes]

    @cached_property
    def renders(self) -> list[Image.Image]:
        """The exact pictures of the scenes, 64x64: a ceiling for every score, and real images for distances."""
        return to_pil(draw(self.scenes))

    @cached_property
    def questions(self) -> list[list[Question]]:
        """Up to `QUESTIONS` per prompt, of those that the words alone settle, whatever the layout."""
        return [_questions(prompt.scene, f"{self.name}/{self.seed}/{i}") for i, prompt in enumerate(self.prompts)]

    @cached_property
    def edits(self) -> list[Edit]:
        """The edits with their scenes before and after. Raises ShowtellError for other sets than "edits"."""
        found = [prompt.edit for prompt in self.prompts if prompt.edit is not None]
        if len(found) < len(self):
            raise ShowtellError(f"the prompts {self.name!r} hold no edits; use prompt_set('edits', ...)")
        return found

    @cached_property
    def sources(self) -> list[Image.Image]:
        """The pictures to be edited, 64x64. Raises ShowtellError for other sets than "edits"."""
        return to_pil(draw([edit.before for edit in self.edits]))

    @cached_property
    def captions(self) -> list[str]:
        """For methods that edit by a target text: the captions of the pictures to be edited; see `plain`."""
        return [edit.before.caption() for edit in self.edits]

    def clips(self, frames: int = 8) -> list[list[Image.Image]]:
        """The exact clips of the scenes, 64x64."""
        from showtell.world.motion import draw_clip

        return [to_pil(clip) for clip in draw_clip(self.scenes, frames)]

    def facts(self, distractors: int = 0) -> list[list[str]]:
        """For "knowledge": what must be known for each prompt ("a tomato is a red circle"), among other facts."""
        names = [[entity.name for entity in prompt.entities] for prompt in self.prompts]
        return [facts_for(n, random.Random(f"{self.seed}/{i}"), distractors) for i, n in enumerate(names)]

    # --- metrics -----------------------------------------------------------------------------------------------------

    def score(self, score: Score, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Any score of `showtell.measure.scores` (or a function of wanted and seen scene)."""
        from showtell.measure.scores import score_images

        return score_images(score, images, self.scenes, judge, fast)

    def whole(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """1 where everything is right, also what is left unsaid, and nothing else is there; else 0."""
        from showtell.measure import scores

        return self.score(scores.whole, images, judge, fast)

    def objects(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the objects that are present: a shape like it is seen, one for each."""
        from showtell.measure import scores

        return self.score(scores.objects, images, judge, fast)

    def binding(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the present objects with all stated attributes right; 0 where none is present."""
        from showtell.measure import scores

        return self.score(scores.binding, images, judge, fast)

    def complete(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the objects that are present with all stated attributes right: objects x binding."""
        from showtell.measure import scores

        return self.score(scores.complete, images, judge, fast)

    def attributes(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the stated attributes right, over all objects; those of absent objects are wrong."""
        from showtell.measure import scores

        return self.score(scores.attributes, images, judge, fast)

    def relations(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the stated relations that hold between present objects; nan where none is stated."""
        from showtell.measure import scores

        return self.score(scores.relations, images, judge, fast)

    def count(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the wanted shapes of which exactly the right number is there."""
        from showtell.measure import scores

        return self.score(scores.count, images, judge, fast)

    def true_facts(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of all that the caption states that is true: objects, attributes, relations, look, word."""
        from showtell.measure import scores

        return self.score(scores.facts, images, judge, fast)

    def look(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the stated of background, style and light that is right; nan where all are as usual."""
        from showtell.measure import scores

        return self.score(scores.look, images, judge, fast)

    def word(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """1 where the written word is right, else 0; nan where none is wanted."""
        from showtell.measure import scores

        return self.score(scores.word, images, judge, fast)

    def letters(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """1 - edit distance / length of the longer, of written and wanted word; nan where none is wanted."""
        from showtell.measure import scores

        return self.score(scores.letters, images, judge, fast)

    def answers(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """Share of the prompt's questions that the judge's reading answers as the text does; nan of none."""
        from showtell.measure.scores import answered, read

        seen = read(images, judge, fast)
        self._same(seen, "images")
        return np.array([answered(scene, asked) for scene, asked in zip(seen, self.questions, strict=True)])

    def placed(
        self, images: Any, judge: Judge | str = "first", fast: bool = False, where: Sequence[Any] | None = None
    ) -> np.ndarray:
        """Share of the objects whose box overlaps its wanted one with IoU > 0.5. where: boxes instead of `boxes`."""
        from showtell.measure.scores import placed, read

        seen, wanted = read(images, judge, fast), self.boxes if where is None else where
        self._same(seen, "images")
        self._same(wanted, "sets of boxes")
        return np.array([placed(a, b, w) for a, b, w in zip(self.scenes, seen, wanted, strict=True)])

    def agreement(self, images: Any, fast: bool = False) -> np.ndarray:
        """1 where both judges find the whole image right, or both find it wrong; else 0."""
        from showtell.measure import scores

        return scores.agreement(scores.whole, images, self.scenes, fast)

    # --- of edits and clips: see showtell.measure.edits and showtell.measure.clips -----------------------------------

    def success(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For "edits": how much of what the instruction asks for is there, whatever else has happened."""
        from showtell.measure import edits

        return edits.score_edits(edits.success, images, self.edits, judge, fast)

    def preserved(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For "edits": share of what the instruction does not name that is as it was."""
        from showtell.measure import edits

        return edits.score_edits(edits.preserved, images, self.edits, judge, fast)

    def edited(self, images: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For "edits": success x preserved."""
        from showtell.measure import edits

        return edits.score_edits(edits.edited, images, self.edits, judge, fast)

    def kept_pixels(self, images: Any) -> np.ndarray:
        """For "edits": PSNR where nothing should change, 10-40 dB rescaled to [0, 1]; nan where all should."""
        from showtell.measure import edits

        return edits.kept_pixels(images, self.edits)

    def motion(self, clips: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For clips: share of the objects that are present and move, or rest, as they should."""
        from showtell.measure import clips as measures

        return measures.score_clips(measures.motion, clips, self.scenes, judge, fast)

    def consistency(self, clips: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For clips: 1 minus the rate of attribute flips from frame to frame."""
        from showtell.measure import clips as measures

        return measures.clip_consistency(clips, self.scenes, judge, fast)

    def identity(self, clips: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For clips: share of the objects that end as what they began as."""
        from showtell.measure import clips as measures

        return measures.clip_identity(clips, self.scenes, judge, fast)

    def per_frame(self, score: Score, clips: Any, judge: Judge | str = "first", fast: bool = False) -> np.ndarray:
        """For clips: the mean over frames of a score of `showtell.measure.scores`."""
        from showtell.measure import clips as measures

        return measures.per_frame(score, clips, self.scenes, judge, fast)

    def _same(self, found: Sequence[Any], what: str) -> None:
        if len(found) != len(self):
            raise ShowtellError(f"{len(found)} {what} for {len(self)} prompts; give one per prompt")


def together(sets: Sequence[PromptSet]) -> PromptSet:
    """Several sets of one seed and split as one, in their order. Raises ShowtellError for none, or unlike ones."""
    if len({(one.seed, one.split) for one in sets}) != 1:
        raise ShowtellError("sets of prompts to be put together are of one seed and one split")
    prompts = tuple(prompt for one in sets for prompt in one.prompts)
    return PromptSet(" and ".join(one.name for one in sets), sets[0].seed, sets[0].split, prompts)


# --- drawing a set ---------------------------------------------------------------------------------------------------


def prompt_set(
    name: str, n: int, seed: int = 0, split: str = "test", kinds: str | Sequence[str] | None = None
) -> PromptSet:
    """n different prompts of the set `name`, one of `NAMES`; the same arguments give the same prompts.

    split: "test", or "validation" for tuning; no prompt of one occurs in the other, whatever the seeds.
    kinds: some of the set's kinds instead of all: relations for "relations", edits for "edits", motions for "motion",
    styles for "styles", "real" or "invented" for "knowledge", size, texture or state for "attributes", "shapes" or
    "same-shape" for "bindings".
    Raises ShowtellError: unknown name, split or kind, n below 1, or fewer than n different prompts found.
    """
    if name not in _SETS:
        raise ShowtellError(f"unknown prompts {name!r}; use one of: {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ShowtellError(f"unknown split {split!r} of prompts; use one of: {', '.join(SPLITS)}")
    if n < 1:
        raise ShowtellError(f"{n} prompts; ask for 1 or more")
    make, known = _SETS[name]
    chosen = known if kinds is None else ((kinds,) if isinstance(kinds, str) else tuple(kinds))
    if unknown := [kind for kind in chosen if kind not in known]:
        raise ShowtellError(f"unknown kind {unknown[0]!r} of {name!r}; use some of: {', '.join(known) or 'none'}")
    found: dict[str, Prompt] = {}
    repeats = 0
    for prompt in make(seed, split, chosen):
        key = f"{prompt.text} {prompt.edit.before.caption() if prompt.edit else ''}"
        repeats = repeats + 1 if key in found else 0
        found.setdefault(key, prompt)
        if len(found) == n:
            return PromptSet(name, seed, split, tuple(found.values()))
        if repeats == _TRIES:
            break
    raise ShowtellError(f"only {len(found)} different prompts of {name!r} found in {split}; ask for fewer than {n}")


Stream = Iterator[Prompt]
Make = Callable[[int, str, Sequence[str]], Stream]


def _scenes(seed: int, split: str, **constraints: Any) -> Iterator[Scene]:
    """Scenes without end; each only as it is asked for, since rare splits and constraints take many tries."""
    for i in itertools.count():
        yield from sample(1, seed * 1_000_003 + i, split, **constraints)


def _captions(**constraints: Any) -> Make:
    """Different captions of scenes that satisfy the constraints; of several objects they state a relation."""

    def make(seed: int, split: str, kinds: Sequence[str]) -> Stream:
        told: set[str] = set()
        repeats = 0
        for scene in _scenes(seed, split, **constraints):
            if not scene.relations and len(scene.groups) > 1:
                continue
            text = scene.caption()
            repeats = repeats + 1 if text in told else 0
            if repeats == _TRIES:  # there are no more
                return
            if not repeats:
                told.add(text)
                yield Prompt(text, scene)

    return make


def _in_turn(constraints: Callable[[str], Mapping[str, Any]]) -> Make:
    """Captions of scenes of each kind in turn, so that every kind is equally frequent."""

    def make(seed: int, split: str, kinds: Sequence[str]) -> Stream:
        streams = [_captions(**constraints(kind))(101 * seed + i, split, ()) for i, kind in enumerate(kinds)]
        while True:
            for stream in streams:
                if (prompt := next(stream, None)) is None:
                    return
                yield prompt

    return make


def _relation(kind: str) -> dict[str, Any]:
    size = {"size": ("small", "large")} if kind == "inside" else {"size": "medium"}
    return PLAIN | size | {"objects": 3 if kind == "between" else 2, "relation": kind, "distinct": ("shape", "colour")}


def _attribute(kind: str) -> dict[str, Any]:
    unusual: dict[str, Any] = {"size": ("small", "large"), "texture": TEXTURES[1:], "state": ("halved", "cracked")}
    return PLAIN | {kind: unusual[kind], "objects": (1, 2), "distinct": ("shape", "colour")}


def _binding(kind: str) -> dict[str, Any]:
    """Two things of different colour and texture, none solid; of different shapes, or of one."""
    shapes = {"same": "shape"} if kind == "same-shape" else {}
    distinct = ("colour", "texture", *(() if shapes else ("shape",)))
    return PLAIN | {"objects": 2, "texture": TEXTURES[1:], "relation": SIDES, "distinct": distinct, **shapes}


def _edited(seed: int, split: str, kinds: Sequence[str]) -> Stream:
    """Instructions of each kind in turn, for plain scenes of two or three different objects."""
    scenes = _scenes(seed, split, objects=(2, 3), distinct=("shape", "colour"), **BARE)
    for i, kind in enumerate(itertools.cycle(kinds)):
        rng = random.Random(f"{seed}/{split}/{i}")
        made = next(found for scene in scenes if (found := edits(scene, rng, (kind,), 1)))[0]
        yield Prompt(made.instruction, made.after, made)


def _moving(seed: int, split: str, kinds: Sequence[str]) -> Stream:
    """Scenes in which one object moves: alone, or beside one that rests."""
    plain = PLAIN | {"objects": (1, 2), "distinct": ("shape", "colour")}
    scenes = _scenes(seed, "train", **plain)  # the motion is drawn here, and with it the split changes
    rng = random.Random(f"{seed}/{split}/motion")
    for kind in itertools.cycle(kinds):
        for scene in scenes:
            still = scene.objects[0]
            if kind == "rotate" and still.shape not in TURNABLE:
                continue
            to = rng.choice([to for to in MOTIONS[kind] if to != still.colour])
            things = (replace(still, motion=Motion(kind, to)), *scene.objects[1:])
            moving = replace(scene, objects=things)
            if split_of(moving) == split:
                yield Prompt(moving.caption(), moving)
                break


def _known(seed: int, split: str, kinds: Sequence[str]) -> Stream:
    """An entity beside another one or beside an ordinary object, in a relation that the text states."""
    rng = random.Random(f"{seed}/{split}/knowledge")
    pool = [entity for entity in ENTITIES.values() if ("invented" if entity.invented else "real") in kinds]
    while True:
        entities = rng.sample(pool, 2 if rng.random() < 0.5 else 1)
        things = [entity.thing() for entity in entities]
        if len(things) == 1:
            things.append(SceneObject(rng.choice(SHAPES), rng.choice(COLOURS[:-3])))
        if things[0].facts == things[1].facts or any(held_out(t.shape, t.colour) for t in things):
            continue
        background = rng.choice([b for b in BACKGROUNDS[1:] if b not in (t.colour for t in things)])
        if split_of(Scene(tuple(things), background)) != split:
            continue
        try:
            placed = place([things[:1], things[1:]], [Relation(rng.choice(SIDES), 0, (1,))], rng)
        except SceneError:  # no room
            continue
        yield Prompt(_named(found := Scene(placed, background), entities), found, entities=tuple(entities))


def _named(scene: Scene, entities: Sequence[Entity]) -> str:
    """The caption with each entity's name in the place of its looks."""
    text = scene.caption()
    for entity in entities:
        text = text.replace(entity.description, entity.noun, 1)
    return text


_SETS: dict[str, tuple[Make, Sequence[str]]] = {
    "pairs": (_captions(objects=2, distinct=("shape", "colour"), relation=SIDES, **PLAIN), ()),
    "same-shape": (_captions(objects=(2, 3), same="shape", distinct="colour", relation=SIDES, **PLAIN), ()),
    "bindings": (_in_turn(_binding), ("shapes", "same-shape")),
    "objects-3-4": (_captions(objects=(3, 4), distinct=("shape", "colour"), **PLAIN), ()),
    "counts": (
        _in_turn(lambda k: PLAIN | {"count": int(k), "size": ("small", "medium"), "background": BACKGROUNDS}),
        ("2", "3", "4", "5"),
    ),
    "relations": (_in_turn(_relation), RELATIONS),
    "attributes": (_in_turn(_attribute), ("size", "texture", "state")),
    "long": (
        _captions(objects=(3, 4), distinct=("shape", "colour"), size=("small", "large"), texture=TEXTURES[1:],
                  background=BACKGROUNDS[1:], state=("whole", "cracked"), rotation=0),
        (),
    ),
    "words": (_captions(objects=(1, 2), distinct=("shape", "colour"), word=True, **PLAIN), ()),
    "edits": (_edited, EDITS),
    "motion": (_moving, tuple(MOTIONS)),
    "knowledge": (_known, ("real", "invented")),
    "styles": (
        _in_turn(lambda style: PLAIN | {"style": style, "objects": (1, 2), "distinct": ("shape", "colour")}),
        STYLES[1:],
    ),
}  # fmt: skip
NAMES = tuple(_SETS)


# --- questions -------------------------------------------------------------------------------------------------------


def _questions(scene: Scene, seed: str) -> list[Question]:
    """Questions that every layout of the same words answers alike."""
    rng = random.Random(seed)
    floor = WORD_FLOOR if scene.word else 1.0
    layouts = [replace(scene, objects=place(scene.groups, scene.relations, rng, floor)) for _ in range(_LAYOUTS)]
    settled = (
        question
        for question in questions(scene, rng, 2 * QUESTIONS)
        if all(_answer(other, question.question) == question.answer for other in layouts)
    )
    return list(itertools.islice(settled, QUESTIONS))


def _answer(scene: Scene, question: str) -> str | None:
    try:
        return answer(scene, question)
    except SceneError:
        return None


def ceilings(n: int = 24, seed: int = 0, split: str = "validation", fast: bool = False) -> dict[str, dict[str, float]]:
    """What exact pictures score on every set, by either judge: nothing scores higher. The table of docs/measures.md.

    Of "edits": success and preservation of the exact results; of "motion": motion, consistency and identity of clips.
    """
    rows = {}
    for name in NAMES:
        prompts = prompt_set(name, n, seed, split)
        metrics = {"edits": ("success", "preserved"), "motion": ("motion", "consistency", "identity")}.get(name)
        shown: Any = prompts.clips() if name == "motion" else prompts.renders
        rows[name] = {
            f"{judge}: {metric}": float(np.nanmean(getattr(prompts, metric)(shown, judge, fast)))
            for metric in metrics or ("whole", "objects", "binding", "relations")
            for judge in ("first", "second")
            if metric != "relations" or any(scene.relations for scene in prompts.scenes)
        }
    return rows
