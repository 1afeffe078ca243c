"""Transformers models for the bridges over them: a model with its processor, pictures as it takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ShowtellError
from ..files import share
from ..pictures import to_pil


def load_model(
    source: Any,
    device: Any = None,
    dtype: Any = None,
    processor: Any = None,
    read_processor: Any = None,
    **more: Any,
) -> tuple[Any, Any]:
    """(model in evaluation mode, its processor) of a folder or hub id, of the class its configuration names, or of a
    model in memory.

    processor: used instead of the one that lies beside the model. read_processor: what makes a processor of a folder
    or id; the library's AutoProcessor by default. more: further keywords of the library's `from_pretrained`.
    Raises ShowtellError: no folder or id, a class that the installed transformers lacks, damaged files, a model in
    memory whose processor is not found.
    """
    import transformers

    read = read_processor or transformers.AutoProcessor.from_pretrained
    if isinstance(source, (str, Path)):
        model, processor = _read(str(source), dtype, processor, read, more)
    else:
        model, processor = source, processor or _beside(source, read)
        if processor is None:
            raise ShowtellError(f"this {type(model).__name__} has no processor; give it: load(model, processor=...).")
        model = model if dtype is None else model.to(dtype)
    model = model.eval()
    return (model if device is None else model.to(device)), processor


def _read(folder: str, dtype: Any, processor: Any, read_processor: Any, more: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    import transformers

    if Path(folder).is_dir() and not list(Path(folder).glob("*.safetensors")):
        raise ShowtellError(f"{folder} has no safetensors weights; only these are read: save it with safetensors.")
    where = {name: more[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in more}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **where)
        name = (config.architectures or [type(config).__name__.replace("Config", "Model")])[0]
        if not hasattr(transformers, name):
            raise ShowtellError(
                f"{folder} is a {name}, which the installed transformers {transformers.__version__} lacks."
            )
        kind = getattr(transformers, name)
        model = kind.from_pretrained(folder, dtype=dtype or torch.float32, use_safetensors=True, **more)
        return model, processor or read_processor(folder, **where)
    except ShowtellError:
        raise
    # The libraries meet damaged files with many kinds of exception; to the reader they all mean the same.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShowtellError(f"cannot load {folder}: {first}") from error


def _beside(model: Any, read_processor: Any) -> Any:
    """The processor of where a model in memory was loaded from."""
    try:
        return read_processor(model.name_or_path) if model.name_or_path else None
    except Exception as error:  # as above
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShowtellError(
            f"no processor beside this {type(model).__name__} ({first}); give it: load(model, processor=...)."
        ) from error


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
    share(directory)
