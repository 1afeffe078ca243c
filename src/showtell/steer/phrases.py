"""The things that a prompt names and the words that modify them, found without a parser model.

English noun phrases: the words between function words and punctuation, of which the last is the noun. This is enough
for prompts that list things; techniques that use it also take the phrases from the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..bridges.base import Run
from ..bridges.words import Word, Words
from .regions import positions_of, words_of

Thing = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Text tokens of an object's noun, and of each of its modifiers."""

_GRAMMAR = """
a an the this that these those my your his her its our their some any each every no another other both all one two
three four five six seven eight nine ten many few several and or but nor with without of on in at by to from into onto
over under above below beside besides behind between among near next inside outside around across through against along
front left right top bottom side middle center centre for as than like while where which who whose there here it is are
was were be being been has have had having does do not very also"""
_DOING = """
sitting standing lying wearing holding running walking riding flying playing eating drinking looking moving floating
hanging jumping sleeping carrying facing touching resting leaning swimming driving turning spinning growing shrinking
fading appearing bouncing sits stands lies wears holds runs walks rides flies plays eats"""
_WHOLE = "photo photograph picture image painting drawing illustration view scene background style"
_BETWEEN, _IMAGE = frozenset((_GRAMMAR + _DOING).split()), frozenset(_WHOLE.split())


@dataclass(frozen=True)
class Phrase:
    """A thing in a prompt: its noun and its modifiers, in the prompt's order."""

    noun: Word
    modifiers: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in (*self.modifiers, self.noun))

    @property
    def positions(self) -> tuple[int, ...]:
        """The text tokens of all its words."""
        return tuple(sorted(at for word in (*self.modifiers, self.noun) for at in word.positions))


def phrases(words: Words) -> list[Phrase]:
    """The things that `bridge.words(prompt)` names, in order; words that describe the whole image are left out."""
    found = [Phrase(group[-1], tuple(group[:-1])) for group in _groups(words, words.prompt)]
    return [phrase for phrase in found if phrase.noun.text.lower() not in _IMAGE]


def noun_chunks(words: Words) -> list[tuple[str, tuple[int, ...]]]:
    """The things of `phrases`, each with the article before it, if any: text, and the positions of its tokens."""
    before = {word.start: last for last, word in zip(words, list(words)[1:])}
    found = []
    for phrase in phrases(words):
        first = min((*phrase.modifiers, phrase.noun), key=lambda word: word.start)
        article = before.get(first.start)
        if article and article.text.lower() in ("a", "an", "the"):
            found.append((words.prompt[article.start : phrase.noun.stop], (*article.positions, *phrase.positions)))
        else:
            found.append((phrase.text, phrase.positions))
    return found


def _groups(words: Iterable[Word], prompt: str) -> list[list[Word]]:
    """Runs of neighbouring words that are neither function words nor verbs."""
    groups: list[list[Word]] = [[]]
    for word in words:
        group = groups[-1]
        if word.text.lower() in _BETWEEN:
            groups.append([])
        elif group and prompt[group[-1].stop : word.start].strip():
            groups.append([word])
        else:
            group.append(word)
    return [group for group in groups if group]


def things_of(run: Run, given: Mapping[str, Sequence[str]] | None = None) -> list[list[Thing]]:
    """Per sample, the objects and modifiers that the encoder reads: `given` as noun -> modifiers, or the noun phrases
    of the prompt. What a prompt lacks, or its encoder cuts off, is left out.
    """
    rows: list[list[Thing]] = []
    for prompt in run.prompts:
        named: list[Thing]
        if given is None:
            found = phrases(words_of(run, prompt))
            named = [(one.noun.positions, [word.positions for word in one.modifiers]) for one in found]
        else:
            named = [
                (positions_of(run, prompt, noun), [positions_of(run, prompt, word) for word in modifiers])
                for noun, modifiers in given.items()
            ]
        rows.append([(noun, [word for word in words if word]) for noun, words in named if noun])
    return rows


def tokens_of(thing: Thing) -> list[int]:
    """All text tokens of a thing, its noun's and its modifiers', in the prompt's order."""
    noun, modifiers = thing
    return sorted({*noun, *(at for word in modifiers for at in word)})


def membership(groups: Sequence[Sequence[Sequence[int]]], length: int) -> torch.Tensor:
    """Which of `length` text tokens belong to each group of each sample, bool (n, most groups of a sample, length).

    groups: per sample a list of groups, each the positions of its tokens. Groups that a sample lacks own nothing.
    """
    members = torch.zeros(len(groups), max(1, *map(len, groups)), length, dtype=torch.bool)
    for row, each in enumerate(groups):
        for k, positions in enumerate(each):
            members[row, k, list(positions)] = True
    return members


def nouns_and_modifiers(things: Sequence[Sequence[Thing]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `membership` of each thing's noun, and that of all of its modifiers, bool (n, most things, length) each.

    things: of each sample, such as `things_of` finds.
    """
    nouns = [[noun for noun, _ in each] for each in things]
    modifiers = [[[at for word in words for at in word] for _, words in each] for each in things]
    return membership(nouns, length), membership(modifiers, length)


def at_site(members: torch.Tensor, site: Any) -> torch.Tensor:
    """`membership` (..., length) with as many text tokens as the site has: a longer negative prompt makes room."""
    return F.pad(members, (0, site.text.stop - site.text.start - members.shape[-1]))


def group_maps(members: torch.Tensor, site: Any) -> torch.Tensor:
    """The mean attention to each group's tokens, over heads too, (n, groups, height, width), without a gradient."""
    own = at_site(members, site).float()
    maps = site.maps().detach().float().mean(dim=1)
    found = torch.einsum("nxt,nkt->nkx", maps, own / own.sum(dim=-1, keepdim=True).clamp(min=1))
    return found.unflatten(-1, site.grid)
