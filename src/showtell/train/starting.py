"""Where a training starts: the weights of another run, as far as they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from showtell.errors import ShowtellError

Weights = dict[str, Tensor]


def start_from(model: Any, source: Path) -> None:
    """Loads what fits of the weights in `source`, a model's or a pipeline's folder, into `model` (`Trained` takes a
    pipeline's), and leaves out what has another shape.

    Raises ShowtellError where there are none, or little fits: neither most of what is trained nor most of what there
    is.
    """
    weights, own = _stored(source), model.state_dict()
    if not weights.keys() & own.keys():  # of a model that is trained as a part
        weights = {f"model.{name}": value for name, value in weights.items()}
    pipeline = getattr(model, "pipeline", None)
    if pipeline is not None and (source / "tokenizer").is_dir():
        weights = _renumbered(weights, own, source / "tokenizer", pipeline.tokenizer)
    fitting = {name: v.float() for name, v in weights.items() if name in own and own[name].shape == v.shape}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if len(trained & set(fitting)) < 0.9 * len(trained) and len(fitting) < 0.9 * len(weights):
        missing = min(trained - set(fitting))
        raise ShowtellError(f"cannot start from {source}: it holds another model (no fitting {missing})")
    model.load_state_dict(own | fitting)


def _stored(source: Path) -> Weights:
    """The weights of a model's folder, or those of a pipeline's parts, each under parts.NAME."""
    from safetensors.torch import load_file

    if (source / "model_index.json").is_file():
        files = {f"parts.{path.parent.name}.": path for path in source.glob("*/*.safetensors")}
    else:
        files = {"": source / "model.safetensors"}
    try:
        return {prefix + name: v for prefix, path in files.items() for name, v in load_file(path).items()}
    except OSError as error:
        raise ShowtellError(f"cannot start from {source}: {str(error).splitlines()[0]}") from None


def _renumbered(weights: Weights, own: Weights, folder: Path, tokenizer: Any) -> Weights:
    """The weights with a row for each token where `tokenizer` has it; tokens that are new to them keep their own."""
    before = type(tokenizer).from_pretrained(folder).get_vocab()
    now = tokenizer.get_vocab()
    if before == now:
        return weights
    kept = [(now[token], row) for token, row in before.items() if token in now]
    to, rows = map(list, zip(*kept, strict=True))
    moved = {}
    for name, value in weights.items():
        if value.ndim == 2 and len(value) == len(before) and name in own and len(own[name]) == len(now):
            moved[name] = own[name].clone()
            moved[name][to] = value[rows].float()
    return weights | moved
