"""Which token positions stand for which word of a prompt, on every tokenizer.

Works from the character offsets that the tokenizers report, so a word of several tokens, a token of several
words' bytes
and scripts without spaces (each Chinese character is a word; phrases are found by their characters) need no
special case.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ShowtellError

# One character of Chinese, Japanese or Korean, or a run of letters and digits with inner apostrophes and
# hyphens.
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힯]|(?:(?![぀-ヿ㐀-鿿豈-﫿가-힯])[^\W_])+(?:['’\-](?![぀-ヿ㐀-鿿])[^\W_]+)*")


@dataclass(frozen=True)
class Piece:
    """How one tokenizer lays a prompt into the text tokens that the denoiser attends to.

    tokenizer: a transformers tokenizer. length: its token limit, special tokens and dropped ones included.
    start: where its first kept token lies among the text tokens. template: wrapping with one `{}` for the
        prompt.
    drop: leading tokens (of the template) that are not kept. special: whether special tokens are added.
    """

    tokenizer: Any
    length: int
    start: int = 0
    template: str = "{}"
    drop: int = 0
    special: bool = True


@dataclass(frozen=True)
class Word:
    """text: as written in the prompt; start, stop: its characters; positions: its text tokens (empty if cut
    off).
    """

    text: str
    start: int
    stop: int
    positions: tuple[int, ...]


class Words:
    """The words of one prompt and their positions among the text tokens.

    `words["ring"]` or `words["red ring"]`: positions of every occurrence; `words.find(phrase, occurrence)`:
    of one.
    Iterating gives `Word`s in order. `words.cut`: words that the encoder's limit removes.
    """

    def __init__(self, prompt: str, tokens: Sequence[tuple[int, int, int]], cut: Sequence[str] = ()) -> None:
        """tokens: (first character, last character + 1, position) of every token that stands for text."""
        self.prompt = prompt
        self.cut = list(cut)
        self._tokens = list(tokens)
        self._words = [self._word(m.start(), m.end()) for m in _WORD.finditer(prompt)]

    def _word(self, start: int, stop: int) -> Word:
        positions = {at for first, last, at in self._tokens if first < stop and start < last}
        return Word(self.prompt[start:stop], start, stop, tuple(sorted(positions)))

    def __iter__(self) -> Iterator[Word]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, phrase: str) -> bool:
        return bool(self._spans(phrase))

    def __getitem__(self, phrase: str) -> tuple[int, ...]:
        found = [self._word(*span).positions for span in self._spans(phrase)]
        if not found:
            raise ShowtellError(f"{phrase!r} is not in the prompt; its words are: {self._listing()}.")
        return tuple(sorted({position for positions in found for position in positions}))

    def find(self, phrase: str, occurrence: int = 0) -> tuple[int, ...]:
        """Positions of one occurrence of a word or phrase (0 is the first). Case does not matter."""
        spans = self._spans(phrase)
        if not 0 <= occurrence < len(spans):
            raise ShowtellError(
                f"{phrase!r} occurs {len(spans)} times in the prompt, not {occurrence + 1}; "
                f"its words are: {self._listing()}."
            )
        return self._word(*spans[occurrence]).positions

    @property
    def positions(self) -> tuple[int, ...]:
        """Every token that stands for text, punctuation between the words included."""
        return tuple(sorted({at for _, _, at in self._tokens}))

    def as_dict(self) -> dict[str, tuple[int, ...]]:
        """Every different word with the positions of all its occurrences."""
        return {word.text: self[word.text] for word in self._words}

    def _spans(self, phrase: str) -> list[tuple[int, int]]:
        # Occurrences that start and end where words do: "red" is not found inside "hundred".
        starts, stops = {w.start for w in self._words}, {w.stop for w in self._words}
        matches = re.finditer(re.escape(phrase.strip()), self.prompt, flags=re.IGNORECASE) if phrase.strip() else ()
        return [m.span() for m in matches if m.start() in starts and m.end() in stops]

    def _listing(self) -> str:
        return ", ".join(word.text for word in self._words) or "none"


def find_words(prompt: str, pieces: Sequence[Piece]) -> Words:
    """The words of `prompt` with their positions in every piece (a joint model may read a prompt by two
    tokenizers).
    """
    tokens: list[tuple[int, int, int]] = []
    cut: list[str] = []
    for piece in pieces:
        kept, lost = _align(prompt, piece)
        tokens += kept
        beyond = min((first for first, _ in lost), default=len(prompt))
        gone = [m.group() for m in _WORD.finditer(prompt) if m.end() > beyond]
        cut = gone if len(gone) > len(cut) else cut
    return Words(prompt, tokens, cut)


def warn_of_cut(prompt: str, pieces: Sequence[Piece]) -> None:
    """Warns, in words, where every encoder of the prompt cuts it off."""
    lost = [find_words(prompt, [piece]) for piece in pieces]
    if lost and all(words.cut for words in lost):
        longest = min(lost, key=lambda words: len(words.cut))
        limit = max(piece.length - piece.drop for piece in pieces)
        warnings.warn(
            f"the prompt is longer than the {limit} tokens this model reads; cut off: {' '.join(longest.cut)!r}",
            UserWarning,
            stacklevel=2,
        )


def _align(prompt: str, piece: Piece) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Tokens of the prompt that are kept, as (first character, end, position), and those beyond the limit."""
    before, _, after = piece.template.partition("{}")
    offsets = _offsets(piece.tokenizer, before + prompt + after, piece.special)
    ending = _ending(piece.tokenizer) if piece.special else 0
    kept, lost = [], []
    limit = piece.length - ending if len(offsets) > piece.length else piece.length
    for index, (first, last) in enumerate(offsets):
        first, last = max(first - len(before), 0), min(last - len(before), len(prompt))
        if first >= last:
            continue
        if index < limit:
            if index >= piece.drop:
                kept.append((first, last, piece.start + index - piece.drop))
        else:
            lost.append((first, last))
    return kept, lost


def _offsets(tokenizer: Any, text: str, special: bool) -> list[tuple[int, int]]:
    """(first character, end) of every token; (0, 0) for special tokens."""
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return [(int(first), int(last)) for first, last in found["offset_mapping"]]
    return _offsets_by_matching(tokenizer, text, special)


def _offsets_by_matching(tokenizer: Any, text: str, special: bool) -> list[tuple[int, int]]:
    """For tokenizers that report no offsets: the tokens' own text, found one after the other."""
    ids = tokenizer(text, add_special_tokens=special, truncation=False, padding=False)["input_ids"]
    found, at, lowered = [], 0, text.lower()
    for token, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        piece = name.replace("</w>", "").lstrip("▁Ġ ").lower()
        start = lowered.find(piece, at) if piece and token not in tokenizer.all_special_ids else -1
        if start < 0:
            found.append((0, 0) if not piece or token in tokenizer.all_special_ids else (at, at))
            continue
        found.append((start, start + len(piece)))
        at = start + len(piece)
    return found


def _ending(tokenizer: Any) -> int:
    """How many special tokens the tokenizer keeps at the end of a text that it cuts."""
    if not getattr(tokenizer, "is_fast", False):
        return 1 if tokenizer.eos_token_id is not None else 0
    offsets = _offsets(tokenizer, "a", True)
    return next((i for i, (first, last) in enumerate(reversed(offsets)) if last > first), 0)
