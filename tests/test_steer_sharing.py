"""Sharing with oneself changes nothing, sharing everything makes samples alike, and recordings play back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from showtell.errors import ShowtellError
from showtell.steer.maps import places
from showtell.steer.sharing import ExtendAttention, InjectAttention, RecordAttention, Recording, ShareAttention
from steering import FAMILIES, PROMPTS, sampled


@pytest.mark.parametrize("name", FAMILIES)
def test_neutral_settings_change_no_bit(name: str) -> None:
    plain = sampled(name)
    neutral: list[Any] = [ShareAttention([0, 1]), ShareAttention([0, 0], steps=(0, 0)), ExtendAttention([0, 1])]
    for technique in [*neutral, ExtendAttention([0, 0], weight=0.0), RecordAttention(Recording(), "qkvo")]:
        assert torch.equal(sampled(name, technique), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_taker_changes(name: str) -> None:
    plain = sampled(name)
    for technique in (ShareAttention([0, 0]), ExtendAttention([0, 0])):
        shared = sampled(name, technique)
        assert torch.equal(shared[0], plain[0]) and not torch.allclose(shared[1], plain[1], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_sharing_between_equal_samples_changes_nothing(name: str) -> None:
    """Twice the same tokens next to each other are attended as they are once."""
    equal: dict[str, Any] = {"prompts": [PROMPTS[0]] * 2, "seed": [5, 5]}
    plain = sampled(name, **equal)
    everything = places(("self",))  # in joint attention doubled image tokens outweigh the text
    assert torch.allclose(sampled(name, ExtendAttention([1, 0], everything), **equal), plain, atol=1e-4)
    assert torch.allclose(sampled(name, ShareAttention([1, 0]), **equal), plain, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recording_plays_back(name: str) -> None:
    recording = Recording()
    plain = sampled(name, RecordAttention(recording, "qkvo"))
    for parts in ("kv", "qk", "o"):
        assert torch.equal(sampled(name, InjectAttention(recording, parts)), plain)
        other = {"prompts": ["a big cat", "a photo"], "seed": 9}
        injected, free = sampled(name, InjectAttention(recording, parts), **other), sampled(name, **other)
        assert not torch.allclose(injected, free, atol=1e-4)
    steps = {step for step, _ in recording.parts}
    assert steps == {0, 1, 2}


def test_bad_input() -> None:
    recording = Recording()
    sampled("sd", RecordAttention(recording, "k"))
    with pytest.raises(ShowtellError, match="holds no 'v'"):
        sampled("sd", InjectAttention(recording, "kv"))
    with pytest.raises(ShowtellError, match="shape"):
        sampled("sd", InjectAttention(recording, "k"), prompts=PROMPTS[:1])
    with pytest.raises(ShowtellError, match="source"):
        sampled("sd", ShareAttention([0, 2]))
    with pytest.raises(ShowtellError, match="parts"):
        ShareAttention([0], parts="o")
