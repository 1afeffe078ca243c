"""The text side of training: the embedded models' tokenizer, and which words of a text a corpus never had."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from showtell.errors import ShowtellError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL_TOKENS = ("<pad>", "<bos>", "<eos>", "<sep>")  # ids 0, 1, 2, 3 in every tokenizer made here

# Scripts written without spaces: kana and the CJK ideographs (with their iteration mark and zero).
_CJK = "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTERS = rf"(?:(?![{_CJK}])[^\W_]|[\u0300-\u036f])+"
_WORD = re.compile(rf"[{_CJK}]+|{_LETTERS}(?:['-]{_LETTERS})*")
_LONGEST_CJK_WORD = 4  # a longer run of Chinese characters is a phrase, not a word


@functools.cache
def _normalizer() -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.NFKC(),  # lower-casing can undo composition (U+0130), and one pass must be enough
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def normalise(text: str) -> str:
    """The text as the tokenizer sees it: Unicode NFKC, lower case, single spaces, none at the ends.

    Normalising twice changes nothing.
    """
    return _normalizer().normalize_str(text)


def train_tokenizer(
    corpus: Iterable[str], vocab_size: int = 2048, special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909; on bytes as in GPT-2).

    Any text encodes, in any script, and nothing becomes an unknown token:
    `decode(encode(x), skip_special_tokens=True) == normalise(x)`.
    One text encodes as `<bos> x <eos>`, two as `<bos> x <sep> y <eos>`, without these tokens if
    `add_special_tokens=False`.
    Ids: `<pad> <bos> <eos> <sep>` are 0 to 3, then come `special` in the order given, then the 256 bytes,
    then the merges. Padding goes on the right. The same corpus in the same order gives the same tokenizer.
    A special token written out in a text is read as that token, unless `split_special_tokens=True`.

    vocab_size: the most tokens, special ones included; a small corpus may give fewer.
    special: more tokens that are never split and that `skip_special_tokens=True` leaves out, e.g. `<image>`.
    Raises ShowtellError: vocab_size too small for bytes and special tokens, a repeated or empty special
    token, an empty corpus, or a corpus that is one string.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = [*CONTROL_TOKENS, *special]
    if len(set(tokens)) < len(tokens) or not all(token.strip() for token in tokens):
        raise ShowtellError(f"special tokens must be different, not empty and not {' '.join(CONTROL_TOKENS)}")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(tokens) + len(alphabet)
    if vocab_size < smallest:
        raise ShowtellError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone need {smallest}")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _normalizer()
    # With a space put before the text, its first word gets the same token as the same word further on.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_lines(corpus), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <sep> $B <eos>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>", "<sep>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        sep_token="<sep>",
        extra_special_tokens=list(special),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _lines(corpus: Iterable[str]) -> Iterator[str]:
    if isinstance(corpus, str):
        raise ShowtellError("the corpus is one string; give a list of texts")
    empty = True
    for line in corpus:
        empty = False
        yield line
    if empty:
        raise ShowtellError("the corpus is empty; give at least one text")


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case, without punctuation.

    In scripts with spaces a word keeps its inner apostrophes and hyphens (`o'clock`, `two-hump`);
    a run of Chinese characters or kana is one item, since nothing says where its words end.
    """
    return _written(text.lower())


def _written(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).replace("’", "'"))


def known_words(corpus: Iterable[str]) -> list[str]:
    """The sorted words of a corpus: what `unknown_words` compares with, and `restore_case` writes.

    A word is in lower case unless it is written otherwise in more than half of all places ("Brazil", "Mrs"). A
    hyphenated word or one with an apostrophe counts with its parts. Chinese counts by characters, and by runs of up to
    4 characters that stand alone.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for text in corpus:
        for word in _written(text):
            if not is_cjk(word):
                pieces = [word, *_parts(word)]
            else:
                pieces = [*word, *([word] if len(word) <= _LONGEST_CJK_WORD else ())]
            for piece in dict.fromkeys(pieces):
                found[piece.lower()][piece] += 1
    common = ((lower, *forms.most_common(1)[0], forms.total()) for lower, forms in found.items())
    return sorted(form if 2 * count > total else lower for lower, form, count, total in common)


def restore_case(text: str, forms: Mapping[str, str]) -> str:
    """The text with words written as `forms` says, which maps lower case to what they are written like.

    What a tokenizer without capitals took away, by each word's most frequent form (as the baseline of "tRuEcasIng",
    ACL 2003, section 3).
    """
    return _WORD.sub(lambda found: forms.get(found[0], found[0]), text)


def unknown_words(text: str, known: Iterable[str]) -> list[str]:
    """The words of the text that are not known, each once, in order of appearance, in lower case.

    Case and punctuation do not matter, but a set of known words is taken as it is: in lower case. A word with a hyphen
    or an apostrophe is known when it is, or all its parts are (a possessive 's always is). Chinese is matched greedily
    with the longest known words; neighbouring characters that no known word covers are reported together as one word.
    With single characters among the known words, as `known_words` gives, a new word made of known characters is not
    noticed; pass a list of whole words to be strict.
    """
    vocabulary = known if isinstance(known, set | frozenset) else {word.lower() for word in known}
    unknown: dict[str, None] = {}  # a dict keeps the order of appearance
    for word in words(text):
        if is_cjk(word):
            unknown.update(dict.fromkeys(_unmatched(word, vocabulary)))
        elif word not in vocabulary and any(part not in vocabulary for part in _parts(word)):
            unknown[word] = None
    return list(unknown)


def is_cjk(word: str) -> bool:
    """Whether a word that `words` gave is a run of Chinese characters or kana."""
    return re.match(f"[{_CJK}]", word) is not None


def _parts(word: str) -> list[str]:
    return re.split("['-]", word.removesuffix("'s"))


def _unmatched(run: str, vocabulary: set[str] | frozenset[str]) -> list[str]:
    """Those stretches of a run of characters that greedy longest match with the vocabulary leaves over."""
    longest = max(map(len, vocabulary), default=1)
    stretches, start, unmatched = [], 0, ""
    while start < len(run):
        length = next((n for n in range(longest, 0, -1) if run[start : start + n] in vocabulary), 0)
        if length == 0:
            unmatched += run[start]
        elif unmatched:
            stretches.append(unmatched)
            unmatched = ""
        start += max(length, 1)
    return [*stretches, unmatched] if unmatched else stretches
