"""The families that `showtell.load` knows, one row each. A new family is one file, one row here and one test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """name: for people. classes: `_class_name` of model_index.json, or `architectures` of config.json.
    adapter: "module:attribute" inside this package. can: abilities (keys of
        `showtell.bridges.base.ABILITIES`).
    """

    name: str
    classes: tuple[str, ...]
    adapter: str
    can: frozenset[str]


DENOISER = frozenset({"generate", "invert", "attend"})

FAMILIES: tuple[Family, ...] = ()


def offering(ability: str) -> list[str]:
    """Names of the families that offer `ability`."""
    return [family.name for family in FAMILIES if ability in family.can]
