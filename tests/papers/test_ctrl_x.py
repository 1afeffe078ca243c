"""Ctrl-X: a picture's own features change nothing, places take what they attend to, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import MMDIT, PROMPTS, UNET, bridge_of, hosts, sampled
from laboratory import Laboratory, run_example
from worlds import bright

import test_bridges_animatediff
import test_bridges_cogvideox
import test_bridges_ltx
import test_bridges_wan
from bridge_family import shared
from showtell.bridges.base import Technique
from showtell.papers.control import ctrl_x
from showtell.papers.control.ctrl_x import CtrlX, layers_of
from showtell.steer.recurrence import renoised

FREE = {"recurrence": (0.0, 0.0, 0)}
VIDEO = {
    "animatediff": test_bridges_animatediff.TestAnimateDiff,
    "wan": test_bridges_wan.TestWan,
    "cogvideox": test_bridges_cogvideox.TestCogVideoX,
    "ltx": test_bridges_ltx.TestLTXVideo,
}


def animated(name: str, *using: Any, **more: Any) -> torch.Tensor:
    """Latents of a short clip, (n, channels, frames, height, width)."""
    import showtell

    family = VIDEO[name]
    call = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 32, "width": 32, "seed": 3, **family.keywords}
    bridge = showtell.load(shared(family.maker))
    return torch.stack(bridge.animate(PROMPTS, using=list(using), output_type="latent", **{**call, **more}))


def run_on(name: str, *using: Any, **more: Any) -> torch.Tensor:
    return animated(name, *using, **more) if name in VIDEO else sampled(name, *using, **more)


class Own(CtrlX):
    """The pictures are what the output is at that moment."""

    def noised(self, run: Any, latents: torch.Tensor, picture: torch.Tensor, number: int) -> torch.Tensor:
        return latents


class Watched(CtrlX):
    """Notes the modules that were controlled, and whether the injected queries are the structure's."""

    def start(self, run: Any, latents: torch.Tensor) -> None:
        super().start(run, latents)
        self.seen: dict[str, set[str]] = {"attention": set(), "dressed": set()}
        self.layers = layers_of(run)
        self.apart = 0.0

    def attention(self, run: Any, site: Any) -> None:
        super().attention(run, site)
        state = run.state(self)
        if state.stage == "output":
            self.seen["attention"].add(site.name)
            for part, span in (("query", site.image), ("key", site.image_keys)):
                own = getattr(site, part)[site.branches["text"], :, span]
                self.apart = max(self.apart, float((own - state.kept[part, site.depth]).abs().max()))

    def transferred(self, *parts: Any) -> torch.Tensor:
        self.seen["dressed"].add(str(len(self.seen["dressed"])))
        return super().transferred(*parts)


@pytest.mark.parametrize("name", hosts("ctrl_x", *UNET, *MMDIT, *VIDEO))
def test_it_attaches(name: str) -> None:
    plain = run_on(name)
    picture = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run_on(name, CtrlX(**FREE)), plain)
    assert torch.equal(run_on(name, CtrlX(picture, picture, until=(0.0, 0.0), **FREE)), plain)
    watched = Watched(picture, picture.flip(0), **FREE)
    changed = run_on(name, watched)
    _, structure, appearance = watched.layers
    assert watched.seen["attention"] == set(structure) and watched.apart == 0
    assert len(watched.seen["dressed"]) >= len(appearance) > 0, "every chosen layer, in two steps of three"
    assert torch.isfinite(changed).all() and not torch.allclose(changed, plain, atol=1e-3)
    # What is injected lies in the right rows and places: a picture's own features change nothing.
    own = run_on(name, Own(picture, picture, attended=False, **FREE))
    assert torch.allclose(own, plain, atol=2e-3), float((own - plain).abs().max())
    assert torch.isfinite(run_on(name, CtrlX(picture, recurrence=(0.0, 0.5, 2)))).all()


def test_layers_of_sdxl() -> None:
    """On SDXL's own plan: three levels, none with attention in the first, three attentions a decoder block."""
    from types import SimpleNamespace

    import diffusers

    config = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 8, 8), "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 8,
    }  # fmt: skip
    unet = diffusers.UNet2DConditionModel(**config)
    from showtell.bridges.layout import TokenLayout
    from showtell.bridges.stable_diffusion import unet_calls

    layout = TokenLayout(unet_calls(unet), {})
    run = SimpleNamespace(adapter=SimpleNamespace(denoiser=unet, layout=lambda run: layout))
    outputs, structure, appearance = layers_of(run)
    inside = ".transformer_blocks.0.attn1"
    assert outputs == ["up_blocks.0.resnets.0"]
    assert structure == [f"up_blocks.0.attentions.{i}{inside}" for i in range(3)]
    wanted = [f"down_blocks.{i}.attentions.{j}{inside}" for i in (1, 2) for j in range(2)]
    wanted += [f"up_blocks.0.attentions.{i}{inside}" for i in (1, 2)]
    wanted += [f"up_blocks.1.attentions.{i}{inside}" for i in range(2)]
    assert appearance == wanted


def test_schedules_and_branches() -> None:
    stages: list[tuple[int, str, int]] = []

    class Calls(Technique):
        def attention(self, run: Any, site: Any) -> None:
            if site.depth == 0:
                stages.append((run.step, run.state(control).stage, len(site.query)))

    picture = torch.zeros(1, 4, 8, 8)
    control = CtrlX(picture, picture, until=(0.5, 0.25), recurrence=(0.25, 0.5, 2))
    sampled("sd", control, Calls(), num_inference_steps=4)
    assert stages == [
        (0, "structure", 2), (0, "appearance", 2), (0, "output", 4),
        (1, "structure", 2), (1, "output", 4), (1, "", 4), (1, "", 4),
        (2, "output", 4), (3, "output", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_renoising_keeps_the_level(name: str) -> None:
    """The clean part keeps its share, and the noise the deviation of the level before."""
    found: list[float] = []

    class Back(Technique):
        def latents(self, run: Any, latents: torch.Tensor) -> None:
            alpha, sigma = run.noise_level(run.timestep)
            alpha_next, sigma_next = run.noise_level()
            noise, more = (torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2))
            clean = torch.full((64, 64), 3.0)
            noisy = renoised(run, alpha_next * clean + sigma_next * noise, more)
            found.extend([float(noisy.mean()) - alpha * 3, float(noisy.std()) / sigma - 1])

    sampled(name, Back())
    scale = 3.0 if name != "sdxl" else 30.0
    assert len(found) == 6 and max(abs(x) for x in found[::2]) < 0.1 * scale and max(map(abs, found[1::2])) < 0.05


def test_prompts_of_the_branches() -> None:
    texts: list[torch.Tensor] = []

    class Told(Technique):
        def conditioning(self, run: Any, text: Any) -> None:
            if run.state(control).stage == "structure" and not texts:
                texts.append(text.tokens)

    for prompt in (None, "", "a dog"):
        control = CtrlX(torch.zeros(1, 4, 8, 8), structure_prompt=prompt, **FREE)
        texts.clear()
        sampled("sd", control, Told())
        wanted = bridge_of("sd").encode(PROMPTS if prompt is None else [prompt] * 2).tokens
        assert torch.equal(texts[0], wanted)


def test_the_example_and_the_experiment_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctrl_x, "layout_and_look", lambda wanted: bright)
    found = ctrl_x.experiment(Laboratory(seeds=1))
    assert next(iter(found.scores)) == "ctrl_x" and found.control == "uniform weights"
    assert run_example(ctrl_x.EXAMPLE, monkeypatch, "sdxl")["image"].size == (32, 32)
