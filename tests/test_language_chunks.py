"""Free English text in the embedded grammar model: noun phrases, what links them, boxes, questions."""

from __future__ import annotations

import pytest

from showtell.errors import ShowtellError, UnsupportedError
from showtell.language import GrammarModel
from showtell.language.chunks import chunk
from showtell.language.plan import singular

LM = GrammarModel()
CASES = {
    "a cat on a mat": ([("cat", [], 1), ("mat", [], 1)], [("on", "above", 0, (1,))], []),
    "a black cat sitting on a red mat, oil painting": (
        [("cat", ["black"], 1), ("mat", ["red"], 1)], [("sitting on", "above", 0, (1,))], ["oil painting"],
    ),
    "a photo of a small sleeping dog next to two white cats": (
        [("dog", ["small", "sleeping"], 1), ("cats", ["white"], 2)], [("next to", "beside", 0, (1,))], ["photo"],
    ),
    "a dog chases a cat": ([("dog", [], 1), ("cat", [], 1)], [("chases", "", 0, (1,))], []),
    "the cat is black and the dog is white": ([("cat", ["black"], 1), ("dog", ["white"], 1)], [], []),
    "a black and white cat under a big, red umbrella in the style of van gogh": (
        [("cat", ["black", "white"], 1), ("umbrella", ["big", "red"], 1)],
        [("under", "below", 0, (1,))], ["in the style of van gogh"],
    ),
    "three apples between a green bottle and a blue cup": (
        [("apples", [], 3), ("bottle", ["green"], 1), ("cup", ["blue"], 1)], [("between", "between", 0, (1, 2))], [],
    ),
    "a man holding a glass of water in front of a brick wall": (
        [("man", [], 1), ("glass", [], 1), ("wall", ["brick"], 1)],
        [("holding", "", 0, (1,)), ("in front of", "in front of", 1, (2,))], [],
    ),
    "a bird in a tree on a white background, highly detailed, 4k": (
        [("bird", [], 1), ("tree", [], 1)], [("in", "inside", 0, (1,))],
        ["on a white background", "highly detailed", "4k"],
    ),
    "a painted wooden chair covered in snow": (
        [("chair", ["painted", "wooden"], 1), ("snow", [], 1)], [("covered in", "inside", 0, (1,))], [],
    ),
    "a corgi to the left of a table, with a cake on top of the table": (
        [("corgi", [], 1), ("table", [], 1), ("cake", [], 1)],
        [("to the left of", "left of", 0, (1,)), ("on top of", "above", 2, (1,))], [],
    ),
    "an empty street without people": ([("street", ["empty"], 1)], [], ["without people"]),
    "a black cat and a white cat, the white cat on a mat": (
        [("cat", ["black"], 1), ("cat", ["white"], 1), ("mat", [], 1)], [("on", "above", 1, (2,))], [],
    ),
    "A girl watches them. There are two trees behind a house": (
        [("girl", [], 1), ("trees", [], 2), ("house", [], 1)], [("behind", "behind", 1, (2,))], [],
    ),
    "a robot holding a sign that says 'hello world'": (
        [("robot", [], 1), ("sign", [], 1)], [("holding", "", 0, (1,))], ["hello world"],
    ),
    "A group of 4 Dogs!": ([("Dogs", [], 4)], [], []),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_split(text: str) -> None:
    entities, links, rest = CASES[text]
    split = LM.split(text)
    assert [(e.head.text, [m.text for m in e.modifiers], e.count) for e in split.entities] == entities
    assert [(r.words.text, r.kind, r.subject, r.objects) for r in split.relations] == links
    assert [span.text for span in split.rest] == rest
    spans = [s for e in split.entities for s in (e.phrase, e.head, *e.modifiers)] + list(split.rest)
    assert all(text[s.start : s.stop] == s.text for s in spans)


def test_sub_prompts_keep_whole_phrases() -> None:
    split = LM.split("a man holding a glass of water in front of a brick wall")
    assert split.prompts == ["a man", "a glass of water", "a brick wall"]


@pytest.mark.parametrize("text", ["un gato negro sobre una mesa roja", "一只黑猫", "and then, of the"])
def test_what_cannot_be_split(text: str) -> None:
    with pytest.raises(UnsupportedError, match="embedded grammar model") as caught:
        LM.split(text)
    assert "\n" not in str(caught.value)


def centre(box: tuple[float, ...]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


@pytest.mark.parametrize("seed", range(4))
def test_layouts_of_free_text(seed: int) -> None:
    text = "a corgi to the left of a table, with two cakes on top of the table, a cup in a bag"
    layout = LM.plan_layout(text, seed)
    assert [p.entity for p in layout.placed] == [0, 1, 2, 2, 3, 4]
    assert [p.prompt for p in layout.placed][2:4] == ["a cake", "a cake"]
    corgi, table, one, other, cup, bag = layout.boxes
    assert all(0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in layout.boxes)
    assert corgi[2] <= table[0] + 1e-3
    assert max(one[3], other[3]) <= table[1] + 1e-3, "y grows downwards"
    assert bag[0] <= cup[0] and bag[1] <= cup[1] and cup[2] <= bag[2] and cup[3] <= bag[3]
    apart = [corgi, table, one, other, bag]
    for i, a in enumerate(apart):
        for b in apart[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "nothing overlaps unasked"
    assert LM.plan_layout(text, seed) == layout != LM.plan_layout(text, seed + 1)


@pytest.mark.parametrize("seed", range(4))
def test_between_in_front_and_sizes(seed: int) -> None:
    cat, dog, cow, _ = LM.plan_layout("a tiny cat between a dog and a cow, a barn", seed).boxes
    middle = [(centre(dog)[i] + centre(cow)[i]) / 2 for i in (0, 1)]
    assert max(abs(centre(cat)[i] - middle[i]) for i in (0, 1)) < 0.07
    assert cat[2] - cat[0] < dog[2] - dog[0]
    man, wall = LM.plan_layout("a man in front of a wall", seed).boxes
    assert man[0] < wall[2] and wall[0] < man[2] and man[1] < wall[3] and wall[1] < man[3]


def test_what_no_layout_can_show() -> None:
    with pytest.raises(UnsupportedError, match="asks for 300 boxes; a layout has 1 to 24"):
        LM.plan_layout("300 cats")
    with pytest.raises(UnsupportedError, match="found no boxes"):
        LM.plan_layout("a cat left of a dog, the dog left of the cat")


def test_questions_on_free_text() -> None:
    asked = {q.question: q.answer for q in LM.ask("an old man sitting on a red bench next to two dogs")}
    assert asked == {
        "is there an old man?": "yes", "is there a red bench?": "yes", "are there dogs?": "yes",
        "how many dogs are there?": "2", "is the man old?": "yes", "is the bench red?": "yes",
        "is the man sitting on the bench?": "yes", "is the bench next to the dogs?": "yes",
    }  # fmt: skip


def test_equal_nouns_are_told_apart() -> None:
    asked = [q.question for q in LM.ask("a black cat next to a white cat")]
    assert "is the black cat next to the white cat?" in asked


def test_modifiers_and_swaps_of_free_text() -> None:
    assert not any("background" in m for m in LM.suggest("a cat on a white background", 30))
    (swap,) = LM.alter("an orange cat on a white mat")
    assert (swap.kind, swap.text) == ("swap", "a white cat on an orange mat")
    assert LM.alter("a cat on a mat") == []


@pytest.mark.parametrize(
    "many, one",
    [("dogs", "dog"), ("boxes", "box"), ("cherries", "cherry"), ("benches", "bench"), ("people", "person"),
     ("glasses", "glass"), ("horses", "horse"), ("grass", "grass")],
)  # fmt: skip
def test_singular(many: str, one: str) -> None:
    assert singular(many) == one


def test_chunks_are_total() -> None:
    """Whatever words come in whatever order: a split or one clear error, and spans that fit."""
    import random

    rng = random.Random(0)
    pool = "a the two cat dogs red sleeping on left of between and , with is sits covered no photo style of 3 !"
    for _ in range(400):
        text = " ".join(rng.choices(pool.split(), k=rng.randrange(1, 12)))
        try:
            split = chunk(text)
        except ShowtellError:
            continue
        for link in split.relations:
            assert max(link.subject, *link.objects) < len(split.entities)
        spans = [s for e in split.entities for s in (e.phrase, e.head, *e.modifiers)]
        spans += [*split.rest, *(link.words for link in split.relations)]
        assert all(text[s.start : s.stop] == s.text != "" for s in spans), text
