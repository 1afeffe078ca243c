"""Real image-text pairs and the text side of training: colour emoji, folders of pictures, the tokenizer.

Each name below loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showtell.data.emoji import Emoji as Emoji
    from showtell.data.emoji import EmojiSet as EmojiSet
    from showtell.data.emoji import augment as augment
    from showtell.data.folder import Pair as Pair
    from showtell.data.folder import load_folder as load_folder
    from showtell.data.text import known_words as known_words
    from showtell.data.text import train_tokenizer as train_tokenizer
    from showtell.data.text import unknown_words as unknown_words

_LAZY = {
    "Emoji": "emoji",
    "EmojiSet": "emoji",
    "augment": "emoji",
    "Pair": "folder",
    "load_folder": "folder",
    "known_words": "text",
    "train_tokenizer": "text",
    "unknown_words": "text",
}
__all__ = [
    "Emoji",
    "EmojiSet",
    "Pair",
    "augment",
    "known_words",
    "load_folder",
    "train_tokenizer",
    "unknown_words",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'showtell.data' has no attribute {name!r}")
    return getattr(import_module(f"showtell.data.{_LAZY[name]}"), name)
