"""Encoded prompts, kept while the text encoders stay as they are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .base import Text

Key = tuple[Any, ...]


class TextCache:
    """The most recently used encoded prompts, one row each. Safe to share between threads."""

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self._rows: OrderedDict[Key, Text] = OrderedDict()
        self._weights: Key = ()
        self._lock = threading.Lock()

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()

    def get(self, keys: Sequence[Key], weights: Key, encode: Callable[[list[Key]], Sequence[Text]]) -> list[Text]:
        """One row per key; `encode` makes those that are missing. Other `weights` than last time empty the
        cache.
        """
        with self._lock:
            if weights != self._weights:
                self._rows.clear()
                self._weights = weights
            known = {key: self._rows[key] for key in keys if key in self._rows}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            known.update(zip(missing, encode(missing), strict=True))
        with self._lock:
            for key in keys:
                self._rows[key] = known[key]
                self._rows.move_to_end(key)
            while len(self._rows) > self.size:
                self._rows.popitem(last=False)
        return [known[key] for key in keys]


def fingerprint(modules: Sequence[Any], tokenizers: Sequence[Any] = ()) -> Key:
    """Changes when the modules' weights do: trained, loaded, or given, merged or switched LoRA layers.

    Weights may be written to without leaving a trace in torch (LoRA merging does), so a few values are part
    of it.
    """
    parts: list[Any] = [len(tokenizer) for tokenizer in tokenizers]
    for module in modules:
        samples, versions = [], []
        for parameter in module.parameters():
            if type(parameter) not in (torch.Tensor, torch.nn.Parameter):
                versions.append((id(parameter), 0))  # quantised: not to be written to, and no values to look at
                continue
            versions.append((parameter.data_ptr(), parameter._version))
            if parameter.device.type != "meta" and parameter.numel():
                samples.append(parameter.detach().reshape(-1)[:2].float())
        values = tuple(torch.cat([s.to(samples[0].device) for s in samples]).tolist()) if samples else ()
        parts += [id(module), tuple(versions), values, _lora_state(module)]
    return tuple(parts)


def _lora_state(module: Any) -> Key:
    return tuple(
        (
            tuple(layer.merged_adapters),
            tuple(layer.active_adapters),
            tuple(layer.scaling.values()),
            layer.disable_adapters,
        )
        for layer in module.modules()
        if hasattr(layer, "merged_adapters") and hasattr(layer, "scaling")
    )
