"""InstantStyle: blocks as diffusers switches them, subtraction by hand, a sweep that finds the planted block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts import PROMPTS, hosts, keywords
from worlds import WorldLab, bright

import showtell
import test_bridges_clip
import test_bridges_ip_adapter
import tiny
from bridge_family import fresh, shared
from showtell.bridges.base import Technique
from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError
from showtell.measure.styling import StyleTask
from showtell.papers.personalize import instantstyle
from showtell.papers.personalize.instantstyle import InstantStyle, blocks_of, sweep
from showtell.train import ip_adapter
from showtell.train.dropping import dropped
from unet_variants import pictures

MAKERS = {"sd": test_bridges_ip_adapter.pipeline, "sdxl": test_bridges_ip_adapter.pipeline_xl}
BLOCKS = ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0", "mid_block.attentions.0"]
BLOCKS += [f"up_blocks.{i}.attentions.{j}" for i in range(2) for j in range(2)]


def styled(name: str, *using: Any, pipeline: Any = None, **more: Any) -> torch.Tensor:
    bridge = showtell.load(pipeline or shared(MAKERS[name]))
    call = {**keywords(name, **more), "ip_adapter_image": pictures(2)}
    return torch.stack(bridge.generate(PROMPTS, using=list(using), **call))


@pytest.mark.parametrize("name", hosts("instantstyle", *MAKERS))
def test_it_attaches_and_blocks_are_the_library_s(name: str) -> None:
    pipeline = fresh(MAKERS[name])
    assert blocks_of(pipeline.unet) == BLOCKS
    plain = styled(name)
    assert torch.equal(styled(name, InstantStyle(BLOCKS)), plain)
    chosen = styled(name, InstantStyle(["up_blocks.0.attentions.1"]))
    assert not torch.allclose(chosen, plain, atol=1e-3)
    pipeline.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0]}})
    assert torch.allclose(styled(name, pipeline=pipeline), chosen, atol=1e-5)
    pipeline.set_ip_adapter_scale(0.0)
    assert torch.allclose(styled(name, pipeline=pipeline), styled(name, InstantStyle([])), atol=1e-5)
    # For the call alone: the pipeline is as it was.
    assert torch.equal(styled(name), plain)


class Seen(Technique):
    def conditioning(self, run: Any, text: Any) -> None:
        self.text, self.negative = text.extra["picture_0"], run.negative.extra["picture_0"]


def test_content_is_subtracted() -> None:
    plain, moved, none = Seen(), Seen(), Seen()
    styled("sdxl", plain)
    styled("sdxl", InstantStyle(BLOCKS, ["a cat", "a dog"], weight=0.5), moved)
    bridge: Any = showtell.load(shared(MAKERS["sdxl"]))
    told = bridge.encode(["a cat", "a dog"]).pooled
    assert torch.allclose(plain.text - moved.text, 0.5 * told[:, None], atol=1e-6)
    assert torch.equal(moved.negative, plain.negative), "what is guided away from has no picture"
    styled("sdxl", InstantStyle(BLOCKS, "a cat", weight=0.0), none)
    assert torch.equal(none.text, plain.text)


def test_content_by_a_clip_bridge() -> None:
    class Stub:
        def embed(self, texts: list[str], unit: bool) -> torch.Tensor:
            assert not unit
            return torch.stack([torch.full((32,), float(len(text))) for text in texts])

    plain, moved = Seen(), Seen()
    styled("sd", plain)
    styled("sd", InstantStyle(BLOCKS, ["a cat", "dogs"], clip=Stub()), moved)
    assert torch.allclose(plain.text - moved.text, torch.tensor([5.0, 4.0]).view(2, 1, 1).expand(2, 1, 32), atol=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises(ShowtellError, match="give clip"):
        styled("sd", InstantStyle(BLOCKS, "a cat"))
    with pytest.raises(ShowtellError, match="no block 'up_blocks"):
        styled("sd", InstantStyle(["up_blocks.9.attentions.0"]))
    with pytest.raises(ShowtellError, match="needs a picture prompt"):
        showtell.load(tiny.shared("sd")).generate(PROMPTS, using=[InstantStyle(BLOCKS)], **keywords("sd"))


def test_the_sweep_ranks_style_minus_leakage() -> None:
    tried: list[list[str]] = []

    class Bridge:
        adapter = type("Adapter", (), {"denoiser": shared(MAKERS["sd"]).unet})

        def generate(self, prompts: Any, using: Any, **more: Any) -> Any:
            tried.append(using[0].blocks)
            return BLOCKS.index(using[0].blocks[0])

    strength = np.array([[0.2, 0.2], [0.9, 0.7], [0.5, 0.5], [0, 0], [0, 0], [0, 0], [0, 0]])
    leaked = np.array([0.0, 0.7, 0.1, 0, 0, 0, 0.05])
    found = sweep(Bridge(), None, PROMPTS, lambda block: strength[block], lambda block: leaked[block])
    assert tried == [[block] for block in BLOCKS]
    assert list(found)[:3] == [BLOCKS[2], BLOCKS[0], BLOCKS[1]] and list(found)[-1] == BLOCKS[6]
    assert list(found.values())[:2] == pytest.approx([0.4, 0.2])


def test_an_adapter_is_added_and_learns() -> None:
    bridge: Any = showtell.load(tiny.make("sd"))
    clip = ClipBridge(*test_bridges_clip.make("clip"))
    before = bridge.generate(PROMPTS, **keywords("sd"))
    adapter = ip_adapter.add_ip_adapter(bridge.pipeline, clip)
    encoded, _ = bridge.pipeline.encode_image(pictures(2), "cpu", 1)
    assert torch.allclose(torch.nn.functional.normalize(encoded, dim=-1), clip.embed(pictures(2)), atol=1e-5)
    with torch.no_grad():
        cross = bridge.pipeline.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
        assert torch.equal(cross.processor.to_k_ip[0].weight, cross.to_k.weight)
    bridge.pipeline.set_ip_adapter_scale(0.0)
    still = bridge.generate(PROMPTS, ip_adapter_image=pictures(2), **keywords("sd"))
    assert torch.allclose(torch.stack(still), torch.stack(before), atol=1e-5)
    bridge.pipeline.set_ip_adapter_scale(1.0)
    frozen = bridge.pipeline.unet.conv_in.weight.clone()
    kept = {name: weight.clone() for name, weight in adapter.state_dict().items()}
    ip_adapter.train_ip_adapter(bridge, pictures(2), PROMPTS, steps=2, batch_size=2)
    assert torch.equal(bridge.pipeline.unet.conv_in.weight, frozen)
    assert all(not torch.equal(weight, kept[name]) for name, weight in adapter.state_dict().items())


def test_dropping() -> None:
    from showtell.bridges.base import Text

    n = 20_000
    text = Text(torch.ones(n, 2, 3), extra={"picture": torch.ones(n, 1, 4)})
    found = dropped(text, Text(torch.zeros(1, 2, 3)), "picture", torch.Generator().manual_seed(0))
    blank, blind = found.tokens.amax((1, 2)) == 0, found.extra["picture"].amax((1, 2)) == 0
    assert (found.tokens.amin((1, 2)) == 0).equal(blank), "whole rows"
    shares = [float(rows.float().mean()) for rows in (blank & ~blind, blind & ~blank, blank & blind)]
    assert shares == pytest.approx([0.05] * 3, abs=0.01)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"SCENES": 4, "TRAINING": 2}.items():
        monkeypatch.setattr(instantstyle, name, small)
    for metric in ("style", "content_leaked", "style_without_content"):
        monkeypatch.setattr(StyleTask, metric, lambda self, images, judge=None: bright(images))
    lab = WorldLab(bases={"clip": ClipBridge(*test_bridges_clip.make("clip"))}, seeds=1)
    lab.n = 3
    best, leaked = instantstyle.experiment(lab)
    assert next(iter(best.scores)) == "instantstyle" and best.control == "another block" and leaked.control is None

    bridge: Any = showtell.load(fresh(MAKERS["sdxl"]))
    monkeypatch.setattr(bridge.pipeline, "load_ip_adapter", lambda *a, **k: None, raising=False)
    short = {k: v for k, v in keywords("sdxl").items() if k not in ("output_type", "seed", "guidance_scale")}
    call, loaded = bridge.generate, iter([False])
    plain: Any = showtell.load(tiny.shared("sdxl"))
    monkeypatch.setattr(
        bridge,
        "generate",
        lambda *a, **k: (plain.generate if next(loaded, True) is False else call)(*a, **{**short, **k}),
    )
    monkeypatch.setitem(showtell.__dict__, "load", lambda *a, **k: bridge)
    source = instantstyle.EXAMPLE.replace("LAYOUT])", "'down_blocks.1.attentions.0'])")  # the tiny one has two levels
    variables: dict[str, Any] = {}
    exec(source, variables)
    assert variables["image"].size == (32, 32)
