"""The tasks of a larger model: what it is asked, what is accepted, what is sent back. A script plays the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from showtell.errors import ShowtellError
from showtell.language import GrammarModel, LanguageModel
from showtell.language.base import Messages, conversation
from showtell.world.questions import Question
from showtell.world.scene import Scene


class Script(LanguageModel):
    """Gives the answers in turn and writes down the conversations."""

    name = "the script"

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked, self.options = list(answers), list[list[dict[str, Any]]](), list[dict[str, Any]]()

    def complete(
        self, conversations: Sequence[Messages], *, n: int = 1, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> list[list[str]]:
        self.asked += [conversation(messages) for messages in conversations]
        self.options.append(options)
        return [[self.answers.pop(0) for _ in range(n)] for _ in conversations]


class Count(BaseModel):
    number: int


@dataclass
class Point:
    x: float
    y: float


@pytest.mark.parametrize(
    "answer",
    ['{"number": 3}', 'Sure! ```json\n{"number": 3}\n``` Done.', '<think>{"number": 9}</think> {"number": 3}',
     '{"other": 1} {"number": 3}', '{broken {"number": 3}'],
)  # fmt: skip
def test_json_is_found_in_what_is_said(answer: str) -> None:
    assert Script(answer).structured("how many?", Count) == Count(number=3)


def test_forms_of_every_kind() -> None:
    assert Script('["a", "b"]').structured("two letters", list[str]) == ["a", "b"]
    assert Script('{"x": 1, "y": 0.5}').structured("where?", Point) == Point(1, 0.5)


def test_one_repair() -> None:
    lm = Script('{"number": "many"}', '{"number": 4}')
    assert lm.structured([{"role": "user", "content": "how many?"}], Count, seed=7) == Count(number=4)
    first, second = lm.asked
    assert "how many?" in first[0]["content"] and '"number"' in first[0]["content"], "the schema is in the request"
    assert second[:1] == first and second[1] == {"role": "assistant", "content": '{"number": "many"}'}
    assert "number: Input should be a valid integer" in second[2]["content"]
    assert [options["seed"] for options in lm.options] == [7, 7]
    with pytest.raises(ShowtellError, match="the script gave no usable answer, also after one repair: number:"):
        Script('{"number": "many"}', '{"number": "few"}', '{"number": 4}').structured("how many?", Count)


def test_chat_and_samples() -> None:
    lm = Script("a", "b", "c")
    assert lm.chat("hello", seed=2) == "a" and lm.sample("hello", 2) == ["b", "c"]
    assert lm.options == [{"seed": 2}, {"temperature": 1.0}]


@pytest.mark.parametrize(
    "messages, told",
    [("", "the text is empty"), ([], "ends with a message"), ([{"role": "user"}], "'role' and 'content'"),
     ([{"role": "system", "content": "x"}], "ends with a message")],
)  # fmt: skip
def test_bad_conversations(messages: Any, told: str) -> None:
    with pytest.raises(ShowtellError, match=told):
        Script("x").chat(messages)


def test_parse_is_repaired_with_the_words_of_the_world() -> None:
    lm = Script('{"caption": "a crimson hoop"}', '{"caption": "a red ring"}')
    assert lm.parse("a hoop of crimson") == Scene.parse("a red ring")
    assert "unknown words: 'crimson'" in lm.asked[1][-1]["content"]
    assert "a hoop of crimson" in lm.asked[0][-1]["content"]


SPLIT = """{"things": [{"phrase": "A black cat", "noun": "cat", "modifiers": ["black"]},
 {"phrase": "two cats", "noun": "cats", "count": 2}],
 "relations": [{"words": "next to", "kind": "beside", "subject": 0, "objects": [1]}], "rest": ["oil painting"]}"""


def test_split_finds_the_characters() -> None:
    text = "a black cat next to two cats, oil painting"
    split = Script(SPLIT).split(text)
    assert [(e.phrase.text, e.head.start, e.count) for e in split.entities] == [
        ("a black cat", 8, 1), ("two cats", text.index("cats"), 2),
    ]  # fmt: skip
    assert [(m.text, h.text) for m, h in split.pairs] == [("black", "cat")]
    (link,) = split.relations
    assert (link.words.text, link.words.start, link.kind) == ("next to", 12, ""), "no kind of the world"
    assert split.background == "oil painting"


@pytest.mark.parametrize(
    "wrong, told",
    [
        (SPLIT.replace("two cats", "2 cats"), "'2 cats' is not in"),
        (SPLIT.replace('"cat", "mod', '"kitten", "mod'), "'kitten' is not in 'a black cat'"),
        (SPLIT.replace("[1]", "[2]"), "points to a thing"),
    ],
)
def test_a_split_in_other_words_is_sent_back(wrong: str, told: str) -> None:
    lm = Script(wrong, SPLIT)
    assert len(lm.split("a black cat next to two cats, oil painting").entities) == 2
    assert told in lm.asked[1][-1]["content"]


def test_layouts_are_checked() -> None:
    good = """{"objects": [{"phrase": "two cats", "prompt": "a cat", "box": [0, 0, 0.4, 0.4]},
      {"phrase": "two cats", "prompt": "a cat", "box": [0.5, 0, 0.9, 0.4]},
      {"phrase": "a mat", "prompt": "a mat", "box": [0, 0.5, 1, 1]}], "background": "a room"}"""
    for wrong, told in (("[0, 0.5, 1, 1]", "box"), ('"phrase": "a mat"', "'a rug' is not in")):
        bad = good.replace(wrong, "[0, 0.5, 1, 0.4]" if told == "box" else '"phrase": "a rug"')
        lm = Script(bad, good)
        layout = lm.plan_layout("two cats on a mat", seed=3)
        assert told in lm.asked[1][-1]["content"] and lm.options[0]["seed"] == 3
    assert layout.boxes == [(0, 0, 0.4, 0.4), (0.5, 0, 0.9, 0.4), (0, 0.5, 1, 1)]
    assert [p.entity for p in layout.placed] == [0, 0, 1] and layout.background == "a room"
    outside = Script(good.replace("0.9", "1.9"), good)
    outside.plan_layout("two cats on a mat")
    assert "less than or equal to 1" in outside.asked[1][-1]["content"]


def test_questions_and_answers() -> None:
    said = '{"questions": [{"kind": "existence", "question": "is there a cat?", "answer": "yes"}, {"kind": "colour", '
    said += '"question": "what colour is it?", "answer": "black"}]}'
    assert Script(said).ask("a black cat", 1) == [Question("existence", "is there a cat?", "yes")]
    assert len(Script(said).ask("a black cat")) == 2
    lm = Script("<think>hm</think> 'Black'. ")
    assert lm.answer(Scene.parse("a black ring left of a red star"), "what colour is the ring?") == "Black"
    assert Script("Yes.").answer("a cat", "is it a cat?") == "yes"
    assert "black ring at x=" in lm.asked[0][-1]["content"], "a scene is told with its places"


def test_critique() -> None:
    said = '{"mismatches": [{"kind": "colour", "text": "the cat is white"}], "revised": "a cat with black fur"}'
    found = Script(said).critique("a black cat", "a white cat")
    assert [(m.kind, m.text) for m in found.mismatches] == [("colour", "the cat is white")]
    assert found.revised == "a cat with black fur" and not found.right
    right = Script('{"mismatches": [], "revised": "anything"}').critique("a black cat", "a black cat")
    assert right.right and right.revised == "a black cat"


def test_texts_differ_from_what_was_given() -> None:
    said = '{"texts": ["a cat", " a feline ", "a feline", "", "one cat"]}'
    assert Script(said).paraphrase("a cat", 5) == ["a feline", "one cat"]
    assert Script(said).expand("a dog", 2, add=2) == ["a cat", "a feline"]
    assert Script(said).suggest("a dog", 1) == ["a cat"]
    lm = Script('{"texts": ["a cat"]}', '{"texts": ["one cat"]}')
    assert lm.paraphrase("a cat") == ["one cat"] and "the one given" in lm.asked[1][-1]["content"]


def test_translations_edits_and_alterations() -> None:
    lm = Script('"一只猫"')
    assert lm.translate("a cat", "zh") == "一只猫" and "into Chinese" in lm.asked[0][-1]["content"]
    assert Script("a red cat\n").edit("a cat", "make it red") == "a red cat"
    said = '{"changes": [{"kind": "swap", "text": "a cat"}, '
    said += '{"kind": "count", "instruction": "add one", "text": "2 cats"}]}'
    (only,) = Script(said).alter("a cat", 3)
    assert (only.kind, only.instruction, only.text) == ("count", "add one", "2 cats")
    with pytest.raises(ShowtellError, match="gave an empty answer"):
        Script("<think>what?</think>").translate("a cat", "zh")


def test_every_task_has_the_same_signature_everywhere() -> None:
    import inspect

    for name in ("parse", "paraphrase", "split", "plan_layout", "ask", "answer", "critique", "translate", "expand",
                 "suggest", "edit", "alter", "complete"):  # fmt: skip
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (LanguageModel, GrammarModel))
        assert ours == theirs, name


@pytest.mark.parametrize("name", ["parse", "split", "plan_layout", "ask", "paraphrase", "expand", "suggest", "alter"])
def test_empty_texts_are_refused_before_anything_is_asked(name: str) -> None:
    lm = Script()
    with pytest.raises(ShowtellError, match="the text is empty"):
        getattr(lm, name)(" ")
    assert lm.asked == []
