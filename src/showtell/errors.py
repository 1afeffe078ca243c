"""The one family of errors that a user meets: a single clear line, never a traceback on the command line."""

from __future__ import annotations


class ShowtellError(ValueError):
    """Bad input: says in one line what was wrong and what would be right. The command line exits with 2."""


class UnsupportedError(ShowtellError):
    """A bridge was asked for what its architecture cannot do; the message names bridges that can."""
