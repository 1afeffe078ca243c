"""Every block of docs/bridges.md runs, on tiny checkpoints in place of the hub's, and does what it says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import families
import showtell
import test_bridges_ip_adapter
import test_bridges_janus
import tiny
from bridge_family import fresh
from showtell.bridges.base import Technique
from showtell.bridges.embedded import EmbeddedBridge
from showtell.nets.flow_lm import FlowLM, FlowLMConfig
from showtell.train.recipes import packaged_codec
from unet_variants import masks, pictures

PAGE = (Path(__file__).parents[1] / "docs" / "bridges.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
STEPS = "num_inference_steps"
SMALL = {"height": 32, "width": 32, STEPS: 2, "max_sequence_length": 16, "max_area": 32 * 32, "_auto_resize": False}


def embedded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = packaged_codec()
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        bridge = EmbeddedBridge(FlowLM(FlowLMConfig(vocab_size=len(codec.tokenizer), **small)), codec)
    bridge.adapter.steps = 2
    return bridge


HUB = {
    "stabilityai/stable-diffusion-3.5-medium": lambda load: load(tiny.shared("sd3")),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": lambda load: load(families.pipeline("WanPipeline")),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": lambda load: load(families.pipeline("WanImageToVideoPipeline")),
    "black-forest-labs/FLUX.1-Kontext-dev": lambda load: load(families.pipeline("FluxKontextPipeline")),
    "timbrooks/instruct-pix2pix": lambda load: load(families.pipeline("StableDiffusionInstructPix2PixPipeline")),
    "stable-diffusion-v1-5/stable-diffusion-inpainting": lambda load: load(
        families.pipeline("StableDiffusionInpaintPipeline")
    ),
    "deepseek-community/Janus-Pro-1B": lambda load: test_bridges_janus.bridge(),
    "llava-hf/llava-1.5-7b-hf": lambda load: load(
        families.MODELS["LlavaForConditionalGeneration"]()[0],
        processor=families.MODELS["LlavaForConditionalGeneration"]()[1],
    ),
}


def loader(load: Any) -> Any:
    """`load` with tiny checkpoints, whose calls are small where the page does not say otherwise."""

    def small(bridge: Any) -> Any:
        options = getattr(getattr(bridge, "adapter", None), "options", None)
        if options is None:
            return bridge
        kept = {name: value for name, value in SMALL.items() if name in {*options, "height", "width", STEPS}}
        for act in ("generate", "edit", "animate"):
            call = getattr(bridge, act)
            setattr(bridge, act, lambda *given, call=call, **more: call(*given, **{**kept, **more}))
        return bridge

    def found(source: Any = None, device: Any = None, dtype: Any = None) -> Any:
        if source is None:
            return embedded()
        return small(HUB[source](load) if isinstance(source, str) else load(source))

    return found


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page takes as given."""
    monkeypatch.setitem(showtell.__dict__, "load", loader(showtell.load))
    pipeline: Any = fresh(test_bridges_ip_adapter.pipeline)
    pipeline.load_ip_adapter = lambda *source, **where: None  # it has one
    one, other = pictures(2)
    return {
        "pipeline": pipeline,
        "controlnet_pipeline": families.pipeline("StableDiffusionControlNetPipeline"),
        "prompts": ["a red ring", "a dog"],
        "images": [one, other],
        "masks": masks(2),
        "edges": one,
        "one": one,
        "other": other,
    }


def test_every_block_runs(names: dict[str, Any]) -> None:
    assert len(BLOCKS) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in BLOCKS:
            exec(block, names)
            said = re.search(r"sorted\(bridge.can\) +# (.*)", block)
            assert said is None or eval(said[1]) == sorted(names["bridge"].can)
    assert len(names["clips"]) == 2 and len(names["edited"]) == 2 and len(names["tokens"][0].shape) == 2


class Watch(Technique):
    """Sums the attention that the image pays to one text token."""

    def __init__(self, position: int) -> None:
        self.position, self.total = position, 0.0

    def wants(self, run: Any, place: Any) -> bool:
        return place.kind != "self"

    def attention(self, run: Any, site: Any) -> None:
        if not torch.is_grad_enabled():
            self.total += float(site.maps()[..., self.position].mean())


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("technique, none, some", [("Louder", 1.0, 3.0), ("Towards", 0.0, 0.5)])
def test_the_techniques_of_the_page_do_what_they_say(name: str, technique: str, none: float, some: float) -> None:
    """On cross- and on joint attention."""
    names: dict[str, Any] = {"torch": torch, "Technique": Technique}
    for block in BLOCKS:
        for found in re.findall(r"^class .*?(?=^\S(?<!c)|\Z)", block, re.S | re.M):
            exec(found, names)
    bridge: Any = showtell.load(tiny.shared(name))
    keywords = tiny.keywords(name, seed=1)
    options = {key: value for key, value in keywords.items() if key in bridge.adapter.text_options}
    [position] = bridge.words("a red ring", **options)["red"][:1]

    def attended(strength: float) -> tuple[float, Any]:
        watch = Watch(position)
        image = bridge.generate("a red ring", using=[names[technique]("red", strength), watch], **keywords)[0]
        return watch.total, image

    assert np.array_equal(attended(none)[1], bridge.generate("a red ring", **keywords)[0])
    assert attended(some)[0] > attended(none)[0]


def test_every_hook_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE[PAGE.index("| hook |") :], re.M)
    listed = {name for row in rows for name in re.findall(r"\w+", row)}
    hooks = {name for name, value in vars(Technique).items() if callable(value) and not name.startswith("_")}
    assert listed == hooks - {"wants"}, "`wants` is explained with `attention`"
