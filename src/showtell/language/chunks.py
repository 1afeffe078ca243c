"""Free English text taken apart by rule: noun phrases with their modifiers, and the words between them.

A small chunker with closed word lists, for prompts such as "a black cat sitting on a red mat, oil painting". It knows
no grammar beyond that: rare verbs are taken for nouns, and a clause is linked to the noun phrase right before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from showtell.errors import UnsupportedError
from showtell.language.results import Entity, Link, Span, Split
from showtell.world.language.english import ARTICLES, LEXICON, NUMBERS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\s]")
_COUNTS = {name: count for count, name in NUMBERS.items()} | {
    "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "couple": 2, "pair": 2,
    "a": 1, "an": 1, "another": 1,
}  # fmt: skip
_DETERMINERS = _words("the this that these those some any each every his her its their my your our several many few")
_PRONOUNS = _words("it they he she him them")
_JOINS = _words("and or with but while then plus there which who having featuring") | _PRONOUNS | {"&", "+"}
_NOT = _words("no without")
_ENDS = _JOINS | _DETERMINERS | _NOT | frozenset(_COUNTS)  # a noun phrase stops before these
_BE = _words("is are was were be being been")
_VERBS = _BE | _words(
    "has have had do does did will can sit sits sat stand stands stood lie lies lay sleep sleeps run runs ran "
    "walk walks hold holds wear wears ride rides eat eats look looks play plays fly flies jump jumps chase chases "
    "drink drinks hang hangs rest rests lean leans carry carries drive drives read reads watch watches says say kiss "
    "kisses hug hugs push pushes pull pulls throw throws catch catches swim swims float floats grow grows face "
    "faces surround surrounds cover covers"
)
_PICTURES = _words(
    "picture image photo photograph drawing painting illustration render rendering sketch portrait scene"
)
_WHOLE = _words(
    "style background backdrop lighting resolution quality photography art aesthetic bokeh hd 4k 8k masterpiece"
) | (_PICTURES - {"scene"})
_ADJECTIVES = _words(
    "red orange yellow green cyan blue purple pink brown black white grey gray golden gold silver beige turquoise "
    "violet crimson magenta teal navy small little tiny big large huge giant tall short long wide narrow round "
    "square flat thin thick fat old young new modern ancient vintage happy sad angry cute beautiful pretty ugly "
    "wooden metal metallic plastic glass leather stone brick furry fluffy shiny bright dark light pale soft hard "
    "rough smooth wet dry hot cold warm cool empty full open broken clean dirty transparent striped spotted "
    "dotted checked plain colourful colorful realistic detailed wild fresh sweet busy quiet quick lazy strong "
    "weak heavy rich poor asleep awake upside-down"
)
_NOUNS_IN_ING = _words(
    "ring king wing string thing spring evening morning wedding earring clothing lightning building painting drawing "
    "ceiling pudding lighting rendering sibling duckling dumpling"
)
_WITHIN = _words("of")  # joins two nouns into one phrase: "a glass of water"
_QUANTITIES = _words("group pair couple bunch set number lot lots")  # before "of": how many, not what
_KINDS = {  # relations of free text that a caption of the world does not use, or uses otherwise
    "on": "above", "onto": "above", "in": "inside", "into": "inside", "next to": "beside", "beside": "beside",
    "near": "beside", "by": "beside", "close to": "beside", "at": "", "from": "", "to": "", "through": "", "along": "",
    "across": "", "around": "", "against": "", "toward": "", "towards": "", "for": "", "off": "", "about": "",
    "after": "", "under": "below", "in front of": "in front of", "up": "", "down": "", "out of": "", "during": "",
}  # fmt: skip
_SENTENCE_ENDS, _QUOTES = frozenset(".;!?"), frozenset("\"'“”‘’«»`")
_LONGEST = 5  # words of a relation: "on the left side of"


def _relations() -> dict[tuple[str, ...], str]:
    said = (entry for known in LEXICON.phrases.values() for entry in known)
    of_the_world = {words: str(value) for words, kind, value in said if kind == "relation"}
    return of_the_world | {tuple(words.split()): kind for words, kind in _KINDS.items()}


_RELATIONS = _relations()


@dataclass
class _Between:
    """What stands between two noun phrases: relation words, and the last kind named."""

    start: int = -1
    stop: int = -1
    kind: str = ""

    def add(self, first: re.Match[str], last: re.Match[str], kind: str = "") -> None:
        self.start = first.start() if self.start < 0 else self.start
        self.stop, self.kind = last.end(), kind or self.kind


@dataclass
class _Chunker:
    text: str
    tokens: list[re.Match[str]]
    words: list[str]
    at: int = 0
    last: int = -1  # the entity that was named last
    entities: list[Entity] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    rest: list[Span] = field(default_factory=list)

    def run(self) -> None:
        between, opened = _Between(), -1  # opened: the entity whose "between" waits for its second thing
        while self.at < len(self.words):
            word = self.words[self.at]
            length, kind = self._relation(self.at)
            if self._start_of_picture():
                continue
            if word in _BE and self._predicate():
                continue
            if word in _NOT:
                self._absent()
            elif length:
                between.add(self.tokens[self.at], self.tokens[self.at + length - 1], kind)
                self.at += length
            elif self._is_verb(self.at, []):
                if word not in _BE:
                    between.add(self.tokens[self.at], self.tokens[self.at])
                self.at += 1
            elif word in _QUOTES:
                self._quoted()
            elif word in _JOINS or not word[0].isalnum():
                if word in _SENTENCE_ENDS:
                    self.last = opened = -1
                if word in _SENTENCE_ENDS or word in _PRONOUNS:  # what came before is complete
                    between = _Between()
                self.at += 1
            else:
                found = self._phrase(between.start)
                if found >= 0:
                    opened = self._link(between, found, opened)
                    self.last = found
                between = _Between()

    def _relation(self, index: int) -> tuple[int, str]:
        """How many words from here are a relation, and its kind."""
        for length in range(_LONGEST, 0, -1):
            found = tuple(self.words[index : index + length])
            if len(found) == length and found in _RELATIONS:
                return length, _RELATIONS[found]
        return 0, ""

    def _quoted(self) -> None:
        """Skips a written word: "a sign that says 'hello'"; an apostrophe on its own is no quotation."""
        end = next((i for i in range(self.at + 1, len(self.words)) if self.words[i] in _QUOTES), self.at)
        if end > self.at + 1:
            self._say_of_whole(self.at + 1, end)
        self.at = end + 1

    def _start_of_picture(self) -> bool:
        """Skips "a photo of", which names no thing of its own; what comes before "of" is said of the whole."""
        stop = next((i for i in range(self.at, min(self.at + 6, len(self.words))) if self.words[i] == "of"), 0)
        if stop <= self.at or self.words[stop - 1] not in _PICTURES or self.entities:
            return False
        start = self.at + (self.words[self.at] in ARTICLES)
        self._say_of_whole(start, stop)
        self.at = stop + 1
        return True

    def _say_of_whole(self, start: int, stop: int, first: int = -1) -> None:
        begin = first if first >= 0 else self.tokens[start].start()
        end = self.tokens[stop - 1].end()
        self.rest.append(Span(self.text[begin:end], begin, end))

    def _predicate(self) -> bool:
        """ "is red": what a thing is like, said after it."""
        stop = self.at + 1
        while stop < len(self.words) and self.words[stop] in _ADJECTIVES:
            stop += 1
        if stop == self.at + 1 or not self.entities or (stop < len(self.words) and self.words[stop][0].isalnum()
                                                        and self.words[stop] not in _JOINS):  # fmt: skip
            return False
        last = self.entities[-1]
        added = tuple(self._span(i) for i in range(self.at + 1, stop))
        self.entities[-1] = Entity(last.phrase, last.head, last.modifiers + added, last.count)
        self.at = stop
        return True

    def _span(self, index: int) -> Span:
        match = self.tokens[index]
        return Span(match.group(), match.start(), match.end())

    def _is_verb(self, index: int, content: list[int]) -> bool:
        """Whether the word, after these words of a noun phrase, is a verb."""
        word = self.words[index]
        if word in _VERBS:
            return True
        after_noun = bool(content) and self.words[content[-1]] not in _ADJECTIVES
        if word.endswith("ing") and len(word) > 4 and word not in _NOUNS_IN_ING:
            # "a cat sitting", and at the start of what follows a phrase: ", sitting on"; but "a sleeping cat"
            return after_noun or (not content and self._ends_here(index + 1) and bool(self.entities))
        if not word.endswith("ed") or len(word) < 5 or word in _ADJECTIVES:
            return False
        # "a chair covered in snow", but "a painted chair" and ", highly detailed"
        return after_noun or (not content and bool(self.entities) and self._relation_follows(index + 1))

    def _relation_follows(self, index: int) -> bool:
        return self._relation(index)[0] > 0

    def _ends_here(self, index: int) -> bool:
        if index >= len(self.words):
            return True
        word = self.words[index]
        return self._relation_follows(index) or word in _ENDS or not word[0].isalnum()

    def _phrase(self, relation_start: int) -> int:
        """Reads one noun phrase and returns its entity, an earlier one for "the table" after "a table".

        -1 for what is about the picture: that goes to the rest, with the "in" before it.
        """
        first, count, determined = self.at, 1, False
        while self._determined():
            word = self.words[self.at]
            count = int(word) if word.isdecimal() else _COUNTS.get(word, count)
            determined = True
            self.at += 1
        content = self._content()
        if not content:
            self.at = max(self.at, first + 1)
            return -1
        head = content[-1]
        if self._follows_of() and self.words[head] in _QUANTITIES | {"couple", "pair"}:
            self.at += 1
            return self._phrase(relation_start)
        if self.words[head] in _WHOLE or (not determined and self._is_quality(head)):
            self._say_of_whole(first, self._with_of(head) + 1, relation_start)
            return -1
        again = self._again(first, content)
        if again >= 0:
            return again
        stop = self._with_of(head)
        begin, end = self.tokens[first].start(), self.tokens[stop].end()
        modifiers = tuple(self._span(i) for i in content[:-1])
        self.entities.append(Entity(Span(self.text[begin:end], begin, end), self._span(head), modifiers, count))
        return len(self.entities) - 1

    def _determined(self) -> bool:
        """Whether an article, a number or the like comes next."""
        word = self.words[self.at] if self.at < len(self.words) else ""
        return word in _DETERMINERS or word in _COUNTS or word.isdecimal()

    def _absent(self) -> None:
        """Reads "without people": nothing that the picture shows."""
        first = self.at
        self.at += 1
        while self._determined():
            self.at += 1
        content = self._content()
        if content:
            self._say_of_whole(first, content[-1] + 1)

    def _with_of(self, head: int) -> int:
        """The last word of "glass of water", where one follows; else the head."""
        if not self._follows_of():
            return head
        self.at += 1
        while self._determined():
            self.at += 1
        return (self._content() or [head])[-1]

    def _again(self, first: int, content: list[int]) -> int:
        """The entity that a phrase with "the" names again, or -1."""
        if self.words[first] not in ("the", "this", "that"):
            return -1
        said = {self.words[i] for i in content[:-1]}
        for i, entity in enumerate(self.entities):
            known = {modifier.text.lower() for modifier in entity.modifiers}
            if entity.head.text.lower() == self.words[content[-1]] and said <= known:
                return i
        return -1

    def _follows_of(self) -> bool:
        return self.at < len(self.words) and self.words[self.at] in _WITHIN

    def _is_quality(self, head: int) -> bool:
        return self.words[head] in _ADJECTIVES or self.words[head].endswith("ed")

    def _content(self) -> list[int]:
        """The words of the phrase from here: adjectives, also joined by "and" or commas, and nouns."""
        content: list[int] = []
        while self.at < len(self.words):
            word = self.words[self.at]
            joins = word in ("and", ",") and content and self._between_adjectives(content[-1])
            if joins:
                self.at += 1
                continue
            if self._ends_here(self.at) or word in _WITHIN or self._is_verb(self.at, content):
                break
            content.append(self.at)
            self.at += 1
        return content

    def _between_adjectives(self, before: int) -> bool:
        after = self.at + 1
        return self.words[before] in _ADJECTIVES and after < len(self.words) and self.words[after] in _ADJECTIVES

    def _link(self, between: _Between, here: int, opened: int) -> int:
        """Links an entity to the one named before it; returns the link that still waits for a thing, or -1."""
        if opened >= 0 and between.start < 0:
            link = self.links[opened]
            self.links[opened] = Link(link.words, link.kind, link.subject, (*link.objects, here))
            return -1
        if self.last < 0 or between.start < 0:
            return -1
        words = Span(self.text[between.start : between.stop], between.start, between.stop)
        self.links.append(Link(words, between.kind, self.last, (here,)))
        return len(self.links) - 1 if between.kind == "between" else -1


def chunk(text: str) -> Split:
    """The noun phrases of free English text, their modifiers and what links them; UnsupportedError for no phrase.

    `Link.kind` may also be "beside" (next to, near), which says no side.
    """
    tokens = list(_TOKEN.finditer(text))
    chunker = _Chunker(text, tokens, [token.group().lower() for token in tokens])
    chunker.run()
    if not chunker.entities:
        raise UnsupportedError(
            f"found no noun phrase in {text!r}; the embedded grammar model splits plain English only"
        )
    return Split(text, tuple(chunker.entities), tuple(chunker.links), tuple(chunker.rest))
