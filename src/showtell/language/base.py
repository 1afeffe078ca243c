"""`LanguageModel`: one interface over the embedded grammar, remote endpoints and local models.

A model implements `complete`; every task below is then done by asking it, with answers in JSON that are checked, and
one chance to repair. A model that knows better (the embedded grammar) overrides the tasks. Nobody who calls them needs
to know which model it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter

from showtell.errors import ShowtellError
from showtell.language import forms, structured
from showtell.language.results import Altered, Box, Critique, Entity, Layout, Link, Mismatch, Placed, Span, Split
from showtell.world.questions import Question
from showtell.world.scene import RELATIONS, Scene

Message = Mapping[str, Any]
Messages = str | Sequence[Message]
"""A prompt, or a conversation of {"role": "system" | "user" | "assistant", "content": ...}."""
T = TypeVar("T")
R = TypeVar("R")
INVENTIVE = 0.8  # the temperature of tasks that want variety


class LanguageModel(ABC):
    """Chat (`complete`, `chat`, `sample`, `structured`) and tasks (`parse` ... `alter`).

    All calls are deterministic for a seed as far as the model is: the embedded grammar and local models are, endpoints
    promise it at best, and their cached answers are. Texts come back in the language of the input. Empty texts and
    counts below 1 raise ShowtellError; so does an answer that cannot be used, after one repair.
    """

    name = "language model"

    # --- chat -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def complete(
        self,
        conversations: Sequence[Messages],
        *,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        max_tokens: int = 1024,
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str]]:
        """n answers to each conversation: the call that all others rest on.

        temperature: 0 for the likeliest answer. stop: texts before which an answer ends. max_tokens: of one answer.
        schema: the JSON Schema that the answers shall fit, a hint that a model may use or not.
        """

    def chat(self, messages: Messages, **options: Any) -> str:
        """One answer. options: those of `complete`."""
        return self.complete([messages], n=1, **options)[0][0]

    def sample(self, messages: Messages, n: int, temperature: float = 1.0, **options: Any) -> list[str]:
        """n answers to one conversation."""
        return self.complete([messages], n=n, temperature=temperature, **options)[0]

    def structured(self, messages: Messages, form: type[T], **options: Any) -> T:
        """An answer in JSON as an instance of the form: a pydantic model, a dataclass or a type such as list[str].

        An answer that does not fit is sent back once with what is wrong. ShowtellError where that does not help.
        """
        return self._formed(messages, form, lambda value: value, **options)

    def _formed(self, messages: Messages, form: type[T], build: Callable[[T], R], **options: Any) -> R:
        """`build` of a structured answer; a ShowtellError in it counts as an answer that does not fit."""
        adapter: TypeAdapter[T] = TypeAdapter(form)
        schema = adapter.json_schema()
        asked = conversation(messages)
        asked[-1] = {**asked[-1], "content": f"{asked[-1]['content']}\n{structured.request(schema)}"}
        for _ in range(2):
            answer = self.chat(asked, schema=schema, **options)
            try:
                return build(structured.read(answer, adapter))
            except ShowtellError as error:
                problem = str(error)
            repair = f"That answer cannot be used: {problem}. Answer again, with the corrected JSON and nothing else."
            asked = [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": repair}]
        raise ShowtellError(f"{self.name} gave no usable answer, also after one repair: {problem}")

    def _texts(self, task: str, n: int, seed: int, unlike: str) -> list[str]:
        """Up to n different texts, none of them the one given."""

        def different(found: forms.Texts) -> list[str]:
            texts = list(dict.fromkeys(t.strip() for t in found.texts if t.strip() and t.strip() != unlike.strip()))
            if not texts:
                raise ShowtellError("every text is empty or the one given")
            return texts[:n]

        return self._formed(instructed(task), forms.Texts, different, temperature=INVENTIVE, seed=seed)

    def _text(self, task: str, seed: int = 0) -> str:
        """A plain answer without thoughts and quotes around it; ShowtellError where it is empty."""
        answer = structured.spoken(self.chat(instructed(task), seed=seed))
        if not answer:
            raise ShowtellError(f"{self.name} gave an empty answer")
        return answer

    # --- tasks ------------------------------------------------------------------------------------------------------

    def parse(self, text: str) -> Scene:
        """The scene that a text means. A larger model says free text in the world's words, as near as it can."""
        task = forms.PARSE.format(text=given(text))
        return self._formed(instructed(task), forms.Caption, lambda found: Scene.parse(found.caption))

    def paraphrase(self, text: str, n: int = 1, seed: int = 0) -> list[str]:
        """Up to n other wordings of the same meaning, all different; fewer where the model has no more."""
        task = forms.PARAPHRASE.format(n=positive(n), text=given(text))
        return self._texts(task, n, seed, unlike=text)

    def split(self, text: str) -> Split:
        """The entities with their modifiers, the relations, and the rest, each with its characters in the text."""
        task = forms.SPLIT.format(text=given(text))
        return self._formed(instructed(task), forms.Parts, lambda found: _split(text, found))

    def plan_layout(self, text: str, seed: int = 0) -> Layout:
        """A box for every object of which the relations that the text states are true."""
        task = forms.LAYOUT.format(text=given(text))
        return self._formed(
            instructed(task), forms.Plan, lambda found: _layout(text, found), temperature=INVENTIVE, seed=seed
        )

    def ask(self, text: str, n: int | None = None, seed: int = 0) -> list[Question]:
        """Questions about what a prompt states, each about one fact, with the answers that a right picture has.

        n: at most so many, drawn with the seed; None for one on every fact.
        """
        task = forms.ASK.format(n="as many as there are facts:" if n is None else positive(n), text=given(text))

        def made(found: forms.Questions) -> list[Question]:
            return [Question(one.kind, one.question, one.answer) for one in found.questions][:n]

        return self._formed(instructed(task), forms.Questions, made, seed=seed)

    def answer(self, about: Scene | str, question: str) -> str:
        """The short answer to a question about a scene or a caption; "unknown" where these do not tell.

        A yes-no question on a thing that is not there is answered "no".
        """
        said = self._text(forms.ANSWER.format(about=described(about), question=given(question)))
        short = structured.spoken(said.rstrip(".。"))
        return short.lower() if short.lower() in ("yes", "no", "unknown") else short

    def critique(self, text: str, seen: Scene | str, seed: int = 0) -> Critique:
        """What a picture has other than asked, and a revised prompt.

        seen: the scene that a judge read in the picture, or a caption of it.
        """
        task = forms.CRITIQUE.format(text=given(text), seen=described(seen))

        def made(found: forms.Review) -> Critique:
            wrong = tuple(Mismatch(one.kind, one.text) for one in found.mismatches)
            return Critique(wrong, given(found.revised) if wrong else text)

        return self._formed(instructed(task), forms.Review, made, seed=seed)

    def translate(self, text: str, to: str) -> str:
        """The text in another language. to: "en", "zh", "es"; for larger models also any language's name."""
        return self._text(forms.TRANSLATE.format(language=forms.NAMES.get(to, to), text=given(text)))

    def expand(self, text: str, n: int = 1, seed: int = 0, add: int = 0) -> list[str]:
        """Up to n detailed versions of a short prompt. add: details to invent where the prompt leaves things open;
        with 0, only what the prompt means is spelled out."""
        if add < 0:
            raise ShowtellError(f"add is {add}; give how many details to invent, 0 or more")
        more = f"Invent {add} fitting details." if add else "Invent nothing that could contradict it."
        task = forms.EXPAND.format(n=positive(n), add=more, text=given(text))
        return self._texts(task, n, seed, unlike=text)

    def suggest(self, text: str, n: int = 5, seed: int = 0) -> list[str]:
        """Up to n modifiers that can be appended to the prompt, after a comma."""
        return self._texts(forms.SUGGEST.format(n=positive(n), text=given(text)), n, seed, unlike=text)

    def edit(self, text: str, instruction: str) -> str:
        """The caption after an edit: what the instruction does not name stays."""
        return self._text(forms.EDIT.format(text=given(text), instruction=given(instruction)))

    def alter(self, text: str, n: int = 1, seed: int = 0, kinds: Sequence[str] = ()) -> list[Altered]:
        """Up to n prompts that differ from the text in one respect: wrong twins, or edits with their instructions.

        kinds: those of `showtell.world.edits.KINDS`, "swap" (two things exchange an attribute) and "relation"
        (turned round); all by default.
        """
        only = f" (only of these kinds: {', '.join(kinds)})" if kinds else ""
        task = forms.ALTER.format(n=positive(n), kinds=only, text=given(text))

        def made(found: forms.Changes) -> list[Altered]:
            changed = [Altered(c.kind, c.instruction, c.text) for c in found.changes if c.text.strip() != text.strip()]
            if not changed:
                raise ShowtellError("no version differs from the prompt")
            return changed[:n]

        return self._formed(instructed(task), forms.Changes, made, temperature=INVENTIVE, seed=seed)


def conversation(messages: Messages) -> list[dict[str, Any]]:
    """The messages as a list; ShowtellError where they are not a prompt or a conversation that ends with a request."""
    if isinstance(messages, str):
        return [{"role": "user", "content": given(messages)}]
    found = [dict(message) for message in messages]
    if any(set(message) < {"role", "content"} for message in found):
        raise ShowtellError("every message needs 'role' and 'content'")
    if not found or found[-1]["role"] == "system":
        raise ShowtellError("a conversation ends with a message to be answered")
    return found


def instructed(task: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": forms.SYSTEM}, {"role": "user", "content": task}]


def given(text: str) -> str:
    """The text; ShowtellError where there is none."""
    if not isinstance(text, str) or not text.strip():
        raise ShowtellError("the text is empty; write a prompt")
    return text


def positive(n: int) -> int:
    if n < 1:
        raise ShowtellError(f"n is {n}; ask for 1 or more")
    return n


def described(about: Scene | str) -> str:
    """A scene or caption in words, for a model that reads text only."""
    if isinstance(about, str):
        return given(about)
    where = "; ".join(f"{o.colour} {o.shape} at x={o.x:.2f}, y={o.y:.2f}, depth {o.depth}" for o in about.objects)
    return f"{about.caption('en', 'detailed')} (centres, y downwards: {where})"


# --- from answers to records ----------------------------------------------------------------------------------------


def _found(phrase: str, text: str, start: int = 0, stop: int | None = None) -> Span:
    """The phrase in the text, after `start` where it occurs there; ShowtellError where it does not occur."""
    stop = len(text) if stop is None else stop
    low, wanted = text.lower(), phrase.strip().lower()
    at = low.find(wanted, start, stop) if wanted else -1
    if at < 0:
        raise ShowtellError(f"{phrase!r} is not in {text[start:stop]!r}; use the prompt's own words")
    return Span(text[at : at + len(wanted)], at, at + len(wanted))


def _after(phrase: str, text: str, start: int) -> Span:
    """The next occurrence after `start`, or else any."""
    try:
        return _found(phrase, text, start)
    except ShowtellError:
        return _found(phrase, text)


def _split(text: str, parts: forms.Parts) -> Split:
    entities: list[Entity] = []
    for thing in parts.things:
        phrase = _after(thing.phrase, text, entities[-1].phrase.stop if entities else 0)
        head = _found(thing.noun, text, phrase.start, phrase.stop)
        modifiers = tuple(_found(word, text, phrase.start, phrase.stop) for word in thing.modifiers)
        entities.append(Entity(phrase, head, modifiers, thing.count))
    links = []
    for one in parts.relations:
        if max(one.subject, *one.objects) >= len(entities):
            raise ShowtellError(
                f"relation {one.words!r} points to a thing that is not listed; there are {len(entities)}"
            )
        words = _after(one.words, text, entities[one.subject].phrase.stop)
        kind = one.kind if one.kind in RELATIONS else ""
        links.append(Link(words, kind, one.subject, tuple(one.objects)))
    return Split(text, tuple(entities), tuple(links), tuple(_found(words, text) for words in parts.rest))


def _layout(text: str, plan: forms.Plan) -> Layout:
    placed: list[Placed] = []
    seen: dict[str, int] = {}
    for one in plan.objects:
        box: Box = one.box
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ShowtellError(f"box {box} of {one.phrase!r} is empty; give left, top, right, bottom")
        phrase = _found(one.phrase, text)
        placed.append(Placed(phrase.text, given(one.prompt), box, seen.setdefault(phrase.text, len(seen))))
    return Layout(text, tuple(placed), plan.background)
