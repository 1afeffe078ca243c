"""Every family of bridges/families.py loads from a folder and from memory; what a library lacks is said.

`python tests/check_range.py` runs this file against the lowest versions that pyproject.toml allows.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers

import families as tiny_families
import showtell
from families import EMBEDDED, MODELS, PIPELINES
from showtell.bridges.families import FAMILIES, family_of
from showtell.bridges.loading import _has
from showtell.errors import ShowtellError


def expected(name: str) -> Any:
    family = family_of(name)
    assert family is not None
    return family


def assert_same_weights(made: torch.nn.Module, loaded: torch.nn.Module) -> None:
    ours, theirs = dict(made.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_every_class_has_a_tiny_checkpoint() -> None:
    listed = [name for family in FAMILIES for name in family.classes]
    assert len(listed) == len(set(listed))
    assert set(listed) >= {*PIPELINES, *MODELS, *EMBEDDED}
    theirs = {name for name in listed if _has(diffusers, name) or _has(transformers, name)}
    assert theirs <= {*PIPELINES, *MODELS}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_load(name: str, tmp_path: Path) -> None:
    if not _has(diffusers, name):  # at the lower end of the range of versions
        index = {"_class_name": name, "_diffusers_version": "99"}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ShowtellError, match=f"is a {name} .*, which the installed diffusers lacks"):
            showtell.load(tmp_path)
        return
    pipeline = tiny_families.pipeline(name)
    in_memory: Any = showtell.load(pipeline)
    assert in_memory.pipeline is pipeline
    in_memory.save(tmp_path)
    loaded: Any = showtell.load(tmp_path)
    assert type(loaded.pipeline).__name__ == name
    for bridge in (in_memory, loaded):
        assert (bridge.name, bridge.can) == (expected(name).name, expected(name).can)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    assert_same_weights(getattr(pipeline, part), getattr(loaded.pipeline, part))


@pytest.mark.parametrize("name", MODELS)
def test_models_load(name: str, tmp_path: Path) -> None:
    model, processor = MODELS[name]()
    in_memory: Any = showtell.load(model, processor=processor)
    in_memory.save(tmp_path)
    loaded: Any = showtell.load(tmp_path)
    assert loaded.name == in_memory.name and loaded.can == in_memory.can == expected(name).can
    held = [getattr(bridge, "model", None) or bridge.teller.model for bridge in (in_memory, loaded)]
    assert held[0] is model and not model.training and type(held[1]) is type(model)
    assert_same_weights(model, held[1])
    # A model that knows where it came from brings its processor along.
    again: Any = showtell.load(type(model).from_pretrained(tmp_path))
    assert again.name == loaded.name
    # And so does a pipeline of transformers, which holds both.
    both: Any = showtell.load(SimpleNamespace(model=model, processor=processor))
    assert both.name == loaded.name


def test_a_pipeline_of_transformers() -> None:
    model, processor = MODELS["LlavaForConditionalGeneration"]()
    held = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    bridge: Any = showtell.load(held)
    assert bridge.model is model and bridge.processor is processor


def test_what_memory_lacks() -> None:
    model, _ = MODELS["CLIPModel"]()
    with pytest.raises(
        ShowtellError, match=r"this CLIPModel has no processor; give it: load\(model, processor=\.\.\.\)"
    ):
        showtell.load(model)
    model.name_or_path = "nobody/nothing"
    with pytest.raises(ShowtellError, match=r"no processor beside this CLIPModel \(.*give it: load") as caught:
        showtell.load(model)
    assert "\n" not in str(caught.value)
    from showtell.nets.flow_lm import FlowLM, FlowLMConfig

    small = FlowLMConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ShowtellError, match="a FlowLM in memory lacks its words; give the folder"):
        showtell.load(FlowLM(small))
    bridge = showtell.load(tiny_families.pipeline("StableDiffusionPipeline"))
    with pytest.raises(ShowtellError, match=r"this is a bridge already \(Stable Diffusion"):
        showtell.load(bridge)
    with pytest.raises(ShowtellError, match="a model in memory takes no revision"):
        showtell.load(tiny_families.pipeline("StableDiffusionPipeline"), revision="main")


def test_classes_that_extend_the_library_s() -> None:
    pipeline = tiny_families.pipeline("StableDiffusionPipeline")
    own = type("MyPipeline", (type(pipeline),), {})(**pipeline.components, requires_safety_checker=False)
    assert showtell.load(own).name == "Stable Diffusion 1.x/2.x"


def hide(monkeypatch: pytest.MonkeyPatch, library: str, name: str, error: Exception | None = None) -> None:
    """The library as if it had no such class."""
    module: Any = import_module(library)
    plain = type(module).__getattr__

    def lacking(self: Any, wanted: str) -> Any:
        if self is module and wanted == name:
            raise error or AttributeError(f"module {library!r} has no attribute {name!r}")
        return plain(self, wanted)

    monkeypatch.setattr(type(module), "__getattr__", lacking)
    monkeypatch.delitem(module.__dict__, name, raising=False)
    assert not _has(module, name)


@pytest.mark.parametrize(
    "library, name, message",
    [
        ("diffusers", "SanaPipeline", r"is a SanaPipeline \(Sana\), which the installed diffusers lacks; .*here is"),
        (
            "diffusers",
            "SanaTransformer2DModel",
            "needs SanaTransformer2DModel for its transformer, which the installed",
        ),
        ("transformers", "Gemma2Model", r"for its text_encoder, which the installed transformers \S+ lacks"),
    ],
)
def test_a_class_that_the_library_lacks(
    library: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    showtell.load(tiny_families.pipeline("SanaPipeline")).save(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    if library == "transformers":
        name = index["text_encoder"][1]
    hide(monkeypatch, library, name)
    with pytest.raises(ShowtellError, match=message) as caught:
        showtell.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where diffusers asks an older or newer transformers for something."""
    showtell.load(tiny_families.pipeline("SanaPipeline")).save(tmp_path)
    hide(monkeypatch, "diffusers", "SanaPipeline", RuntimeError("Failed to import\ncannot import name 'Gemma'"))
    with pytest.raises(ShowtellError, match=r"is a SanaPipeline \(Sana\), which the installed diffusers lacks"):
        showtell.load(tmp_path)


def test_a_model_that_transformers_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = MODELS["JanusForConditionalGeneration"]()
    showtell.load(model, processor=processor).save(tmp_path)
    hide(monkeypatch, "transformers", "JanusForConditionalGeneration")
    with pytest.raises(
        ShowtellError, match=r"JanusForConditionalGeneration, which the installed transformers \S+ lacks"
    ):
        showtell.load(tmp_path)


def test_a_model_newer_than_transformers(tmp_path: Path) -> None:
    model, processor = MODELS["JanusForConditionalGeneration"]()
    showtell.load(model, processor=processor).save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "janus_of_tomorrow"}))
    with pytest.raises(ShowtellError, match="janus_of_tomorrow") as caught:
        showtell.load(tmp_path)
    assert "\n" not in str(caught.value)
