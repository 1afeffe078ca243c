"""The JSON that larger models are asked for in each task, and the sentences that ask. No prompts of one paper here."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from showtell.world.language import LANGUAGES
from showtell.world.scene import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    STATES,
    STYLES,
    TEXTURES,
)

NAMES = dict(zip(LANGUAGES, ("English", "Chinese", "Spanish"), strict=True))
Share = Annotated[float, Field(ge=0, le=1)]


class Caption(BaseModel):
    caption: str


class Texts(BaseModel):
    texts: list[str] = Field(min_length=1)


class Thing(BaseModel):
    phrase: str = Field(description="the whole noun phrase, word for word as in the prompt")
    noun: str = Field(description="its head noun, as in the phrase")
    modifiers: list[str] = Field(default=[], description="each other word of the phrase that says what it is like")
    count: int = Field(default=1, ge=1)


class Relation(BaseModel):
    words: str = Field(description="as in the prompt, for example 'left of' or 'holding'")
    kind: str = Field(default="", description=f"one of {', '.join(RELATIONS)}, or empty")
    subject: int = Field(ge=0, description="index into things")
    objects: list[int] = Field(min_length=1, max_length=2, description="indices into things")


class Parts(BaseModel):
    things: list[Thing] = Field(min_length=1)
    relations: list[Relation] = []
    rest: list[str] = Field(default=[], description="phrases on background, style, light: as in the prompt")


class Boxed(BaseModel):
    phrase: str = Field(description="its noun phrase, word for word as in the prompt")
    prompt: str = Field(description="a prompt for this one object alone, with its attributes")
    box: tuple[Share, Share, Share, Share] = Field(description="left, top, right, bottom as fractions from 0 to 1")


class Plan(BaseModel):
    objects: list[Boxed] = Field(min_length=1)
    background: str = ""


class Asked(BaseModel):
    kind: str = Field(description="existence, count, colour, size, relation, style ...")
    question: str
    answer: str = Field(description="one word or a few")


class Questions(BaseModel):
    questions: list[Asked] = Field(min_length=1)


class Wrong(BaseModel):
    kind: str = Field(description="missing, extra, count, relation, colour, size, background, style ...")
    text: str = Field(description="one short sentence")


class Review(BaseModel):
    mismatches: list[Wrong] = []
    revised: str


class Change(BaseModel):
    kind: str
    instruction: str = Field(default="", description="the edit as an order, for example 'make the ring green'")
    text: str = Field(description="the prompt after it")


class Changes(BaseModel):
    changes: list[Change] = Field(min_length=1)


SYSTEM = "You help a text-to-image model: you read, write and check its prompts. Do exactly what is asked, briefly."

PARSE = f"""Say the prompt below again as one caption of this small world of flat shapes, as near in meaning as you can.
Shapes: {", ".join(SHAPES)}. Colours: {", ".join(COLOURS)}. Sizes: {", ".join(SIZES)}. Textures: {", ".join(TEXTURES)}.
States: {", ".join(STATES)}. Relations: {", ".join(RELATIONS)}. Backgrounds: {", ".join(BACKGROUNDS)}.
Styles: {", ".join(STYLES)}. Light from: {", ".join(LIGHTS)}. At most {MAX_OBJECTS} things, each with colour and
shape, for example "three small red circles left of a striped blue star on a meadow background, in watercolour style,
lit from the left, with the word HELLO". Prompt: {{text}}"""

PARAPHRASE = """Write {n} paraphrases of the prompt below, each in other words. Keep every object, attribute, count and
relation, add nothing. Prompt: {text}"""

SPLIT = """Take the prompt below apart: the things in it with their nouns and modifiers, the relations between them,
and what is said of the picture as a whole. Use the prompt's own words and its order. Prompt: {text}"""

LAYOUT = """Plan the picture for the prompt below: one box for every object (three cats are three boxes), of sensible
size, overlapping only where the prompt says so, with every relation true of the boxes (y grows downwards). Also write a
prompt for the background without the objects. Prompt: {text}"""

ASK = """Write {n} questions that check whether a picture shows the prompt below: each about one fact that the prompt
states (an object, an attribute, a count, a relation, the style), with its short answer. Prompt: {text}"""

ANSWER = """This is what a picture shows: {about}
Answer the question in one word or a few, as short as possible; "unknown" where the description does not tell.
Question: {question}"""

CRITIQUE = """Prompt of a picture: {text}
What the picture shows: {seen}
List every way in which the picture is not what the prompt asks for (nothing where it is right), and write a revised
prompt that means the same and stresses what went wrong."""

TRANSLATE = "Translate the prompt below into {language}. Answer with the translation only. Prompt: {text}"

EXPAND = """Write {n} detailed versions of the short prompt below. Keep every object, attribute, count and relation.
{add} Prompt: {text}"""

SUGGEST = """Suggest {n} different short modifiers (style, background, light, mood) that could be appended to the prompt
below and do not contradict it. Prompt: {text}"""

EDIT = """Caption of a picture: {text}
Instruction that changes the picture: {instruction}
Write the caption of the changed picture: change what the instruction says and nothing else. Answer with it only."""

ALTER = """Change the prompt below in exactly one respect, in {n} different ways{kinds}, so that each version is about a
clearly different picture. Prompt: {text}"""
