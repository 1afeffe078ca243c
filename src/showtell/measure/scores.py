"""Scores of images against the scenes they should show, image by image, as a judge reads them.

Every score is a pure function of two scenes, the wanted and the seen one, with partial credit as its docstring says;
`score_images` reads the images first. What a caption leaves unsaid (a usual size, a solid texture) is asked for by
`whole` alone.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from showtell.errors import ShowtellError
from showtell.measure.judge import JUDGES, Judge, load_judge
from showtell.pictures import letterbox, to_pil
from showtell.world.draw import boxes, draw
from showtell.world.language.captions import UNSAID_OF_SCENE, stated
from showtell.world.questions import Question, answer
from showtell.world.scene import Scene, SceneError, SceneObject, holds

ORDINALS = dict(zip(("first", "second"), JUDGES, strict=True))
AT_ONCE = 256  # images read together: bounds memory, and is enough for full speed
_KEPT = 20_000  # readings remembered, some 2 KB each

Partners = list[SceneObject | None]
_readings: OrderedDict[tuple[str, bool, bytes], Scene] = OrderedDict()


# --- reading ---------------------------------------------------------------------------------------------------------


def judge_of(judge: Judge | str = "first", fast: bool = False) -> Judge:
    """A packaged judge by ordinal ("first", "second") or name, or the judge itself; loaded once.

    fast: the network alone, without rendering: some twenty times faster and less exact, see docs/measures.md.
    Raises ShowtellError for an unknown name.
    """
    if isinstance(judge, Judge):
        return Judge(judge.model, judge.model.device, rendering=False) if fast else judge
    if judge not in ORDINALS and judge not in JUDGES:
        raise ShowtellError(f"unknown judge {judge!r}; use one of: {', '.join((*ORDINALS, *JUDGES))}")
    found = load_judge(ORDINALS.get(judge, judge))
    return Judge(found.model, rendering=False) if fast else found


def read(images: Any, judge: Judge | str = "first", fast: bool = False) -> list[Scene]:
    """The scene that each image shows. Packaged judges' readings are remembered, so several scores cost one reading."""
    pictures, reader = to_pil(images), judge_of(judge, fast)
    if isinstance(judge, Judge):
        return _read(reader, pictures)
    name = ORDINALS.get(judge, judge)
    keys = [(name, fast, _digest(picture)) for picture in pictures]
    new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in _readings}
    fresh = dict(zip(new, _read(reader, list(new.values())), strict=True))
    seen = [fresh[key] if key in fresh else _readings[key] for key in keys]
    _readings.update(fresh)
    while len(_readings) > _KEPT:
        _readings.popitem(last=False)
    return seen


def _read(reader: Judge, pictures: list[Image.Image]) -> list[Scene]:
    chunks = (pictures[i : i + AT_ONCE] for i in range(0, len(pictures), AT_ONCE))
    return [scene for chunk in chunks for scene in reader.parse(chunk)]


def _digest(picture: Image.Image) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16, key=repr(picture.size).encode()).digest()


Score = Callable[[Scene, Scene], float]


def score_images(
    score: Score, images: Any, scenes: Sequence[Scene], judge: Judge | str = "first", fast: bool = False
) -> np.ndarray:
    """(n,) float64: the score of each image against its scene. Raises ShowtellError where the numbers differ."""
    seen = read(images, judge, fast)
    if len(seen) != len(scenes):
        raise ShowtellError(f"{len(seen)} images but {len(scenes)} scenes; give one image per scene")
    return np.array([score(a, b) for a, b in zip(scenes, seen, strict=True)], dtype=float)


def agreement(score: Score, images: Any, scenes: Sequence[Scene], fast: bool = False) -> np.ndarray:
    """(n,): 1 where both packaged judges give the image the same score, else 0."""
    one, two = (score_images(score, images, scenes, name, fast) for name in ORDINALS)
    return ((one == two) | (np.isnan(one) & np.isnan(two))).astype(float)


# --- which object is which -------------------------------------------------------------------------------------------


def match(wanted: Scene, seen: Scene, near: bool = False) -> Partners:
    """The seen object for each wanted one, or None where it is absent.

    Partners have the same shape, one to one. Among the ways to pair up objects of one shape the one with most stated
    facts right is taken, then the one with most stated relations true; near: then the one with the shortest distances.
    """

    def value(partners: Partners) -> tuple[float, ...]:
        pairs = [(a, b) for a, b in zip(wanted.objects, partners, strict=True) if b is not None]
        facts = sum(fact for a, b in pairs for fact in _facts(a, b))
        apart = sum((a.x - b.x) ** 2 + (a.y - b.y) ** 2 for a, b in pairs) if near else 0.0
        return facts, sum(_relations(wanted, partners)), -apart

    return max(_pairings(wanted, seen), key=value)


def _pairings(wanted: Scene, seen: Scene) -> Iterator[Partners]:
    """Every way to pair up as many objects of equal shape as there are."""
    ways = []
    for shape in dict.fromkeys(thing.shape for thing in wanted.objects):
        ours = [i for i, thing in enumerate(wanted.objects) if thing.shape == shape]
        theirs = [thing for thing in seen.objects if thing.shape == shape]
        few = min(len(ours), len(theirs))
        if len(ours) <= len(theirs):
            ways.append([list(zip(ours, pick, strict=True)) for pick in itertools.permutations(theirs, few)])
        else:
            ways.append([list(zip(pick, theirs, strict=True)) for pick in itertools.permutations(ours, few)])
    for way in itertools.product(*ways):
        partners: Partners = [None] * len(wanted.objects)
        for i, thing in itertools.chain.from_iterable(way):
            partners[i] = thing
        yield partners


def _facts(wanted: SceneObject, seen: SceneObject | None) -> list[bool]:
    """Whether each stated attribute other than the shape is right; all False for an absent object."""
    said = {name: value for name, value in stated(wanted).items() if name not in ("shape", "motion")}
    return [seen is not None and getattr(seen, name) == value for name, value in said.items()]


def _relations(wanted: Scene, partners: Partners) -> list[bool]:
    """Whether each stated relation is true of the partners; False where one of them is absent."""
    ends = itertools.accumulate(map(len, wanted.groups))
    groups = [partners[end - len(group) : end] for end, group in zip(ends, wanted.groups, strict=True)]
    told = [(r.kind, [groups[i] for i in (r.subject, *r.objects)]) for r in wanted.relations]
    return [
        all(thing is not None for group in members for thing in group)
        and holds(kind, *(tuple(group) for group in members))  # type: ignore[arg-type]
        for kind, members in told
    ]


# --- scores of one image ---------------------------------------------------------------------------------------------


def _share(right: Sequence[bool]) -> float:
    """The share that is right; nan of nothing."""
    return sum(right) / len(right) if right else float("nan")


def whole(wanted: Scene, seen: Scene) -> float:
    """1 where everything is right, what the caption leaves unsaid too, and nothing else is there; else 0."""
    return float(wanted.matches(seen))


def objects(wanted: Scene, seen: Scene) -> float:
    """Share of the wanted objects that are present: an object of that shape is seen, one for each."""
    return _share([b is not None for b in match(wanted, seen)])


def binding(wanted: Scene, seen: Scene) -> float:
    """Share of the present objects that have all their stated attributes; 0 where none is present.

    Given presence: an image that leaves an object out is not charged for it here but in `objects`; `complete` is both.
    """
    present = [all(_facts(a, b)) for a, b in zip(wanted.objects, match(wanted, seen), strict=True) if b is not None]
    return _share(present) if present else 0.0


def complete(wanted: Scene, seen: Scene) -> float:
    """Share of the wanted objects that are present with all their stated attributes: `objects` x `binding`."""
    partners = match(wanted, seen)
    return _share([b is not None and all(_facts(a, b)) for a, b in zip(wanted.objects, partners, strict=True)])


def attributes(wanted: Scene, seen: Scene) -> float:
    """Share of the stated attributes (colour, and unusual size, texture, state, rotation) that are right.

    Over all wanted objects together; those of absent objects are wrong.
    """
    partners = match(wanted, seen)
    return _share([fact for a, b in zip(wanted.objects, partners, strict=True) for fact in _facts(a, b)])


def relations(wanted: Scene, seen: Scene) -> float:
    """Share of the stated relations that hold between present objects; nan where the scene states none."""
    return _share(_relations(wanted, match(wanted, seen)))


def count(wanted: Scene, seen: Scene) -> float:
    """Share of the wanted shapes of which exactly the right number is there, whatever their colours."""
    there = Counter(thing.shape for thing in seen.objects)
    return _share([there[shape] == n for shape, n in Counter(thing.shape for thing in wanted.objects).items()])


def miscount(wanted: Scene, seen: Scene) -> float:
    """How many objects there are too many or too few, of whatever kind: lower is better, in [0, 4]."""
    return float(abs(len(wanted.objects) - len(seen.objects)))


def look(wanted: Scene, seen: Scene) -> float:
    """Share of background, style and light right, of those that are stated; nan where all are as usual."""
    return _share([getattr(seen, name) == value for name, value in _look(wanted).items() if name != "word"])


def facts(wanted: Scene, seen: Scene) -> float:
    """Share of all that the caption states that is true: presence and attributes of every object, relations,
    background, style, light and word, each counted once."""
    partners = match(wanted, seen)
    right = [b is not None for b in partners]
    right += [fact for a, b in zip(wanted.objects, partners, strict=True) for fact in _facts(a, b)]
    right += _relations(wanted, partners)
    return _share(right + [getattr(seen, name) == value for name, value in _look(wanted).items()])


def word(wanted: Scene, seen: Scene) -> float:
    """1 where the written word is right, letter for letter, else 0; nan where none is wanted."""
    return float(seen.word == wanted.word) if wanted.word else float("nan")


def letters(wanted: Scene, seen: Scene) -> float:
    """1 - edit distance / length of the longer word, of the written and the wanted one; nan where none is wanted."""
    if not wanted.word:
        return float("nan")
    return 1 - edit_distance(wanted.word, seen.word) / max(len(wanted.word), len(seen.word))


def _look(scene: Scene) -> dict[str, str]:
    names = ("background", "style", "light", "word")
    return {name: getattr(scene, name) for name in names if getattr(scene, name) != UNSAID_OF_SCENE[name]}


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest letters to insert, delete or exchange."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]


# --- scores that need more than the wanted scene ---------------------------------------------------------------------


def iou(one: Any, two: Any) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1) or of two masks of one shape; 0 of nothing."""
    a, b = np.asarray(one), np.asarray(two)
    if a.shape != b.shape:
        raise ShowtellError(f"cannot compare shapes {a.shape} and {b.shape}; give two boxes or two masks of one size")
    if a.ndim == 1:
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        shared = float(np.prod(np.clip(high - low, 0, None)))
        union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    else:
        shared, union = float(((a > 0.5) & (b > 0.5)).sum()), float(((a > 0.5) | (b > 0.5)).sum())
    return shared / union if union > 0 else 0.0


def placed(wanted: Scene, seen: Scene, where: Any = None, least: float = 0.5) -> float:
    """Share of the wanted objects that are present with a box whose IoU with the wanted one is above `least`.

    where: (k, 4) boxes instead of the scene's own, x0, y0, x1, y1 in [0, 1].
    """
    targets = boxes(wanted) if where is None else np.asarray(where, float)
    if targets.shape != (len(wanted.objects), 4):
        many = len(wanted.objects)
        raise ShowtellError(f"boxes of shape {targets.shape} for {many} objects; give ({many}, 4): x0, y0, x1, y1 each")
    partners = match(wanted, seen, near=True)
    own = dict(zip(map(id, seen.objects), boxes(seen), strict=True))
    return _share([b is not None and iou(t, own[id(b)]) > least for t, b in zip(targets, partners, strict=True)])


def answered(seen: Scene, asked: Sequence[Question]) -> float:
    """Share of the questions to which the seen scene gives the wanted answer; nan of no questions.

    A question about something that is not there, or not there alone, counts as answered wrongly.
    """
    return _share([_answers(seen, question) for question in asked])


def _answers(seen: Scene, asked: Question) -> bool:
    try:
        return answer(seen, asked.question) == asked.answer
    except SceneError:
        return False


def legibility(images: Any, judge: Judge | str = "first") -> np.ndarray:
    """(n,) PSNR in dB between each image and the drawing of what the judge reads in it, at most 60.

    High where the image is a clean picture of some scene, whichever the prompt asked for: a measure of image quality
    that needs no reference. Clean renders reach about 40, noise about 10.
    """
    pictures = [letterbox(picture, 64) for picture in to_pil(images)]
    drawn = draw(read(pictures, judge)) if pictures else np.zeros((0, 64, 64, 3), np.uint8)
    return np.array([psnr(a, b) for a, b in zip(pictures, drawn, strict=True)])


def psnr(one: Any, two: Any, where: Any = None, most: float = 60.0) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images (h, w, 3), at most `most`.

    where: (h, w), truthy at the pixels that count; nan where none does.
    """
    a, b = (np.asarray(image, np.float64) for image in (one, two))
    if a.shape != b.shape:
        raise ShowtellError(f"cannot compare images of shapes {a.shape} and {b.shape}; give two of one size")
    different = (a - b) ** 2
    if where is not None:
        different = different[np.asarray(where, bool)]
    if not different.size:
        return float("nan")
    error = float(different.mean())
    return most if error == 0 else min(most, 10 * float(np.log10(255**2 / error)))


# --- what reading costs ----------------------------------------------------------------------------------------------


def reading_figures(n: int = 100, seed: int = 0, split: str = "validation") -> list[dict[str, Any]]:
    """A row per judge and way of reading, on clean renders with 1-4 objects: the table of docs/measures.md.

    Columns: whole, objects, binding, relations (means), milliseconds per image (processor time of this process).
    """
    from showtell.world import sample

    scenes = sample(n, seed, split, (1, 4))
    images = draw(scenes)
    rows = []
    for name in ORDINALS:
        for fast in (False, True):
            reader = judge_of(name, fast)
            reader.parse(images[:2])  # the first call pays for what is set up once
            start = time.process_time()
            seen = reader.parse(images)
            cost = 1000 * (time.process_time() - start) / n
            row: dict[str, Any] = {"judge": name, "reading": "network alone" if fast else "with rendering"}
            for score in (whole, objects, binding, relations):
                row[score.__name__] = float(np.nanmean([score(a, b) for a, b in zip(scenes, seen, strict=True)]))
            rows.append(row | {"ms per image": cost})
    return rows
