"""Scenes in words: `caption` writes them, `parse` reads them back; English, Chinese and Spanish.

Every caption states all facts of its scene, so parsing it gives a scene that matches. Defaults (medium,
solid, whole, upright, a white background, flat style, even light, no word, a still camera) stay unsaid,
except in "detailed".
"""

from __future__ import annotations

from typing import Any

from showtell.world.language import chinese, english, spanish
from showtell.world.language.parsing import MAX_TEXT, scene_of
from showtell.world.scene import Scene, SceneError

_MODULES: dict[str, Any] = {"en": english, "zh": chinese, "es": spanish}
LANGUAGES = tuple(_MODULES)
STYLES = ("terse", "plain", "detailed", "paraphrase-1", "paraphrase-2", "paraphrase-3", "paraphrase-4")


def caption(scene: Scene, language: str = "en", style: str = "plain") -> str:
    """The scene in words: a pure function of its facts and stated relations.

    language: one of `LANGUAGES`; style: one of `STYLES` (the paraphrases use other words; "paraphrase-2"
    mentions the objects in the opposite order where every relation has an inverse). SceneError for others.
    """
    wording = module(language)
    if style not in STYLES:
        raise SceneError(f"unknown caption style {style!r}; use one of: {', '.join(STYLES)}")
    return str(wording.caption(scene, style))


def parse(text: str) -> Scene:
    """The scene that a text means, in any of the languages. Inverts every caption; reads natural variants.

    The layout is drawn so that the scene's relations are exactly the stated ones; the same text gives the
    same scene. SceneError for an empty or over-long text (`MAX_TEXT` characters), for unknown words (all of
    them, each with the nearest known one), for what cannot be read, and for what contradicts itself or does
    not fit on the canvas.
    """
    if not text.strip():
        raise SceneError("the text is empty; say for example 'a red ring left of a blue star'")
    if len(text) > MAX_TEXT:
        raise SceneError(f"the text has {len(text)} characters; at most {MAX_TEXT} can be read")
    return scene_of(text, _MODULES[language_of(text)].LEXICON)


def language_of(text: str) -> str:
    """The language of `LANGUAGES` that knows the most words of the text; English where several do."""
    return max(_MODULES, key=lambda code: (_MODULES[code].LEXICON.known(text), code == "en"))


def words(language: str = "en") -> frozenset[str]:
    """Every word (Chinese: character) that the language's captions, questions and edits can use."""
    return frozenset(module(language).LEXICON.vocabulary)


def module(language: str) -> Any:
    """The module that holds the language's words; SceneError for an unknown one."""
    if language not in _MODULES:
        raise SceneError(f"unknown language {language!r}; use one of: {', '.join(LANGUAGES)}")
    return _MODULES[language]
