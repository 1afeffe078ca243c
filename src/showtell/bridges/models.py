"""Transformers models for the bridges over them: a model with its processor, pictures as it takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ShowtellError
from ..pictures import to_pil


def load_model(
    source: Any, bridge: str, device: Any = None, dtype: Any = None, read_processor: Any = None
) -> tuple[Any, Any]:
    """(model in evaluation mode, its processor) of a folder or hub id, of the class its configuration names.

    bridge: the bridge's class, for the message to those who hold a model without its processor.
    read_processor: what makes a processor of the folder; the library's AutoProcessor by default.
    Raises ShowtellError: no folder or id, a class that the installed transformers lacks, damaged files.
    """
    import torch
    import transformers

    if not isinstance(source, (str, Path)):
        raise ShowtellError(
            f"a {type(source).__name__} in memory lacks its processor; "
            f"give its folder, or use {bridge}(model, processor)."
        )
    folder = str(source)
    if Path(folder).is_dir() and not list(Path(folder).glob("*.safetensors")):
        raise ShowtellError(f"{folder} has no safetensors weights; only these are read: save it with safetensors.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        name = (config.architectures or [type(config).__name__.replace("Config", "Model")])[0]
        if not hasattr(transformers, name):
            raise ShowtellError(
                f"{folder} is a {name}, which the installed transformers {transformers.__version__} lacks."
            )
        kind = getattr(transformers, name)
        model = kind.from_pretrained(folder, dtype=dtype or torch.float32, use_safetensors=True)
        processor = (read_processor or transformers.AutoProcessor.from_pretrained)(folder)
    except ShowtellError:
        raise
    # The libraries meet damaged files with many kinds of exception; to the reader they all mean the same.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShowtellError(f"cannot load {folder}: {first}") from error
    return model.eval().to(device or "cpu"), processor


def pictures(images: Any) -> list[Any]:
    """One image or many, however they are held, as RGB PIL images; ShowtellError if there are none."""
    found = to_pil(images)
    if not found:
        raise ShowtellError("no images given; give one or a list.")
    return found


def to_device(inputs: Any, model: Any) -> dict[str, Any]:
    """What a processor gives, where the model is; floating-point tensors in the model's dtype."""
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
        if hasattr(value, "is_floating_point")
    }


def save_model(model: Any, processor: Any, directory: str | Path) -> None:
    """The Hugging Face layout of both, with safetensors weights."""
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
