"""What the three languages share: a phrase table, and the lexer that turns a text into symbols with it.

A symbol is (kind, value): ("shape", "ring"), ("relation", "left of"), ("background", "sky") ... The grammar
in `parsing` reads symbols only, so it is the same for every language.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from showtell.world.scene import SceneError

_TOKEN = re.compile(r"[^\W_㐀-鿿]+(?:[-'’][^\W\d_㐀-鿿]+)*|[㐀-鿿]|[^\s]")
COMMAS = frozenset(",.;:?!，。；：、？！¿¡")
QUOTES = frozenset("\"'“”‘’«»「」`")


@dataclass(frozen=True, slots=True)
class Symbol:
    """kind: "shape", "colour", ..., "relation", "and", "comma", ...; text: the words it was read from, in usual
    form; start, stop: the characters of the text that they take."""

    kind: str
    value: Any
    text: str
    start: int = 0
    stop: int = 0


@dataclass
class Lexicon:
    """The phrases of one language. `spellings` maps variants of single words to the usual one."""

    code: str
    spellings: Mapping[str, str] = field(default_factory=dict)
    phrases: dict[str, list[tuple[tuple[str, ...], str, Any]]] = field(default_factory=dict)
    vocabulary: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.vocabulary.update(self.spellings)

    def add(self, kind: str, value: Any, phrases: str) -> None:
        """Lets each of the phrases, separated by "|", mean the symbol; the longest that fits a text wins."""
        for phrase in phrases.split("|"):
            words = tuple(word for word, _ in self._split(phrase, whole=True))
            known = self.phrases.setdefault(words[0], [])
            if all(words != other for other, _, _ in known):
                known.append((words, kind, value))
                known.sort(key=lambda entry: -len(entry[0]))
            self.vocabulary.update(w for w in words if w not in COMMAS)

    def split(self, text: str) -> list[str]:
        """The tokens of a text, in lower case and usual spelling; unknown hyphenated words are split."""
        return [word for word, _ in self._split(text)]

    def _split(self, text: str, whole: bool = False) -> list[tuple[str, re.Match[str]]]:
        """(usual form, as written) of each token; whole: keep words with a hyphen that are not known yet."""
        tokens = []
        for match in _TOKEN.finditer(text):
            raw = match.group()
            word = self.spellings.get(raw.lower(), raw.lower())
            if "-" in word and len(word) > 1 and not whole and word not in self.vocabulary:
                tokens += [(self.spellings.get(w, w), match) for w in word.split("-")]
            elif word not in QUOTES:
                tokens += [(w, match) for w in word.split(" ")]
        return tokens

    def read(self, text: str) -> list[Symbol]:
        """The symbols of a text. SceneError naming every unknown word and the nearest known one to each."""
        tokens = self._split(text)
        words = [word for word, _ in tokens]
        symbols: list[Symbol] = []
        unknown: list[str] = []
        at = follows = 0
        while at < len(words):
            first = at
            for phrase, kind, value in self.phrases.get(words[at], ()):
                if tuple(words[at : at + len(phrase)]) == phrase:
                    at += len(phrase)
                    said = " ".join(phrase)
                    if kind == "write" and at < len(words) and words[at] not in COMMAS:
                        kind, value = "word", _written(*tokens[at])
                        at += 1
                    symbols.append(Symbol(kind, value, said, *_characters(tokens, first, at)))
                    break
            else:
                where = _characters(tokens, at, at + 1)
                if words[at] in COMMAS:
                    symbols.append(Symbol("comma", None, words[at], *where))
                elif words[at].isdecimal():
                    symbols.append(Symbol("count", int(words[at]) if len(words[at]) < 4 else 999, words[at], *where))
                elif words[at] in self.vocabulary:
                    symbols.append(Symbol("stray", None, words[at], *where))
                elif unknown and follows == at and self.code == "zh":
                    unknown[-1] += words[at]
                    follows = at + 1
                else:
                    unknown.append(words[at])
                    follows = at + 1
                at += 1
        if unknown:
            raise SceneError(self._unknown(unknown))
        return symbols

    def known(self, text: str) -> int:
        """How many tokens of the text occur in this language."""
        return sum(word in self.vocabulary for word in self.split(text))

    def _unknown(self, words: Iterable[str]) -> str:
        known = sorted(w for w in self._names() if len(w) > 2 or self.code == "zh")
        named = []
        for word in dict.fromkeys(words):
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
            named.append(f"{word!r} (nearest known word: {near[0]!r})")
        return f"unknown word{'s' if len(named) > 1 else ''}: {', '.join(named)}"

    def _names(self) -> set[str]:
        """What a user may have meant: single words; in Chinese, whose words have no spaces, whole phrases."""
        if self.code != "zh":
            return self.vocabulary
        return {"".join(words) for known in self.phrases.values() for words, _, _ in known}


def _written(word: str, match: re.Match[str]) -> str:
    """A word to be drawn, in capitals: as it was typed, but one part of what a hyphen joined."""
    return (match.group() if "-" not in match.group() else word).upper()


def _characters(tokens: list[tuple[str, re.Match[str]]], first: int, last: int) -> tuple[int, int]:
    """From where to where tokens [first, last) stand in the text."""
    return tokens[first][1].start(), tokens[last - 1][1].end()
