"""What every diffusion family must show, as tests that one small class per family inherits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

import showtell
import tiny
from showtell.bridges.attention import Site
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError
from test_bridges_attention import IDENTITIES, At

ONE = ["a red ring left of a blue star"]
THREE = ["a red ring", "a dog on the table", "a big cat and the green star"]
PAIR = ["a red ring left of a blue star", "a dog on the table"]
ALL = ("self", "cross", "joint")


def fresh(maker: Callable[[], Any]) -> Any:
    """A new pipeline with the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = maker()
    tiny._scale_up(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def shared(maker: Callable[[], Any]) -> Any:
    """A pipeline that tests only read."""
    return fresh(maker)


class Parked(ModelHook):
    """Keeps a module's own weights away (on the meta device) except while it runs, as sequential offloading does."""

    def __init__(self) -> None:
        self.execution_device = torch.device("cpu")
        self.values: dict[str, torch.Tensor] = {}

    def init_hook(self, module: Any) -> Any:
        self.values = {name: value.data for name, value in module._parameters.items() if value is not None}
        self._park(module)
        return module

    def _park(self, module: Any) -> None:
        for name, value in self.values.items():
            module._parameters[name] = torch.nn.Parameter(value.to("meta"), requires_grad=False)

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        for name, value in self.values.items():
            module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self._park(module)
        return output


def park(pipeline: Any) -> None:
    """Sequential offloading without an accelerator (accelerate's own refuses the CPU as the place to run)."""
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            for module in component.modules():
                add_hook_to_module(module, Parked())


def park_whole(pipeline: Any) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


class FamilyTests:
    """Inherit, and say what the tiny pipeline is and what its attention looks like."""

    maker: Callable[[], Any]
    keywords: dict[str, Any] = {}
    schedulers: list[Callable[[], Any]] = []
    grids: set[tuple[int, ...]] = set()
    text: int | None = None  # text tokens of every place; None where it is as many as the prompts need
    readers = 1  # how many tokenizers read a prompt into the text tokens
    video = False
    one_negative = False  # the pipeline takes one negative prompt for all
    negative = True  # whether the pipeline takes negative prompts at all
    scale = "guidance_scale"
    in_parts = True  # whether the library's denoiser needs no weights outside of the modules that hold them
    cut_off = True  # whether there is a limit within reach of a tiny test

    @property
    def pipeline(self) -> Any:
        return shared(type(self).maker)

    def call(self, **more: Any) -> dict[str, Any]:
        small = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 32, "width": 32}
        return {**small, "output_type": "np", **self.keywords, **more}

    def inputs(self, count: int) -> dict[str, Any]:
        """What the family needs besides prompts, such as images; the same for the pipeline and the bridge."""
        return {}

    def theirs(self, prompts: list[str], pipeline: Any = None, seed: int = 5, **more: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)
        output = (pipeline or self.pipeline)(
            prompt=prompts, generator=generator, **self.inputs(len(prompts)), **self.call(**more)
        )
        return np.asarray(output.frames if self.video else output.images)

    def ours(self, prompts: list[str], pipeline: Any = None, **more: Any) -> np.ndarray:
        bridge = showtell.load(pipeline or self.pipeline)
        act = bridge.animate if self.video else bridge.generate
        if "seed" not in more and "generator" not in more:
            more["generator"] = torch.Generator().manual_seed(5)
        return np.stack(act(prompts, **{**self.inputs(len(prompts)), **self.call(**more)}))

    def watched(self, *using: Any, **more: Any) -> np.ndarray:
        if self.video:
            more["output_type"] = "latent"  # nothing here needs the frames
        return self.ours(PAIR, using=using, num_inference_steps=2, **more)

    def options(self) -> dict[str, Any]:
        names = showtell.load(self.pipeline).adapter.text_options  # type: ignore[attr-defined]
        return {name: value for name, value in self.keywords.items() if name in names}

    # Equality

    def test_equal_to_the_pipeline(self) -> None:
        for prompts in (ONE, THREE):
            more: dict[str, Any] = {}
            if self.negative:
                more["negative_prompt"] = "big" if self.one_negative else ["big"] * len(prompts)
            expected = self.theirs(prompts, **more)
            assert expected.std() > 0.02, "the tiny pipeline must draw something for equality to mean anything"
            got = self.ours(prompts, **more)
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() <= 1e-4

    def test_equal_on_every_scheduler(self) -> None:
        assert self.schedulers
        for make in self.schedulers:
            pipeline = fresh(type(self).maker)
            pipeline.scheduler = make()
            expected = self.theirs(THREE, pipeline)
            difference = np.abs(self.ours(THREE, pipeline) - expected).max()
            assert difference <= 1e-4, f"{pipeline.scheduler.config}: {difference}"

    def test_unguided(self) -> None:
        more = {self.scale: 1.0}
        assert np.abs(self.ours(THREE, **more) - self.theirs(THREE, **more)).max() <= 1e-4

    def test_prompt_guidance_and_noise_matter(self) -> None:
        base = self.ours(ONE)
        assert np.abs(self.ours(["a dog on the table"]) - base).max() > 1e-3
        assert np.abs(self.ours(ONE, generator=torch.Generator().manual_seed(6)) - base).max() > 1e-2
        assert np.abs(self.ours(ONE, **{self.scale: 9.0}) - base).max() > 1e-3
        if self.negative:
            assert np.abs(self.ours(ONE, negative_prompt="a big dog") - base).max() > 1e-4

    def test_sample_is_independent_of_its_batch(self) -> None:
        together = self.ours(THREE, seed=3)
        assert np.abs(self.ours(THREE, seed=3, batch_size=2) - together).max() <= 1e-3
        assert np.abs(self.ours(THREE[:1], seed=3)[0] - together[0]).max() <= 1e-3

    def test_images_to_latents_and_back(self) -> None:
        bridge: Any = showtell.load(self.pipeline)
        if "invert" not in bridge.can:
            with pytest.raises(ShowtellError, match="cannot invert"):
                bridge.to_latents(np.zeros((32, 32, 3), dtype=np.float32))
            return
        latents = self.ours(ONE, output_type="latent")
        images = self.ours(ONE)
        decoded = bridge.to_images(torch.tensor(latents), output_type="np")
        assert np.abs(np.stack(decoded) - images).max() <= 1e-5
        adapter = bridge.adapter
        with torch.no_grad():
            encoded = adapter.latents_of(torch.tensor(images).permute(0, 3, 1, 2) * 2 - 1)
        assert encoded.shape == latents.shape
        assert (adapter.rescale(adapter.unscale(encoded)) - encoded).abs().max() < 1e-4

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        bridge = showtell.load(self.pipeline)
        bridge.save(tmp_path)
        loaded: Any = showtell.load(tmp_path)
        loaded.pipeline.set_progress_bar_config(disable=True)
        assert loaded.name == bridge.name and "attend" in loaded.can
        assert np.abs(self.ours(ONE, loaded.pipeline) - self.ours(ONE)).max() <= 1e-5

    def test_lora_attaches_and_detaches(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        pipeline = fresh(type(self).maker)
        bridge: Any = showtell.load(pipeline)
        before = self.ours(ONE, pipeline)
        config = LoraConfig(r=2, lora_alpha=16, target_modules=["to_q", "to_v"], init_lora_weights=False)
        torch.manual_seed(0)  # else the adapter, and with it the change, is another every time
        inject_adapter_in_model(config, bridge.adapter.denoiser, "style")
        changed = self.ours(ONE, pipeline)
        assert np.abs(changed - before).max() > 1e-3
        assert np.abs(changed - self.theirs(ONE, pipeline)).max() <= 1e-4
        for layer in bridge.adapter.denoiser.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.delete_adapter("style")
        assert np.abs(self.ours(ONE, pipeline) - before).max() < 1e-5

    def test_offloaded(self) -> None:
        """Weights are needed nowhere but inside their modules, and the pipeline's hooks are let go at the end."""
        expected = self.ours(ONE)
        for offload in (park, park_whole) if self.in_parts else (park_whole,):
            pipeline = fresh(type(self).maker)
            offload(pipeline)
            freed: list[int] = []
            free = pipeline.maybe_free_model_hooks
            pipeline.maybe_free_model_hooks = lambda free=free, freed=freed: (freed.append(1), free())
            assert np.abs(self.ours(ONE, pipeline) - expected).max() <= 1e-5
            assert freed == [1]

    # Attention

    def test_every_attention_call_is_placed(self) -> None:
        pipeline = fresh(type(self).maker)
        bridge: Any = showtell.load(pipeline)
        ran: list[str] = []
        for name, module in bridge.adapter.denoiser.named_modules():
            if hasattr(module, "processor"):
                module.register_forward_pre_hook(lambda m, a, kw, n=name: ran.append(n), with_kwargs=True)
        seen: list[Place] = []
        using = [At(lambda run, site: seen.append(site.place), ALL)]
        self.ours(PAIR, pipeline, using=using, num_inference_steps=2)
        names = {place.name for place in seen}
        assert [place.name for place in seen] == [name for name in ran if name in names]
        assert {"cross", "joint"} & {place.kind for place in seen}
        assert {place.grid for place in seen} == self.grids
        lengths = {place.text.stop - place.text.start for place in seen if place.text is not None}
        assert len(lengths) == 1 and self.text in (None, *lengths)
        first = [place.depth for place in seen if place.step == 0]
        assert first == sorted(set(first)), "every call has a depth of its own"

    def test_maps_are_probabilities_over_the_attended_tokens(self) -> None:
        def check(run: Any, site: Site) -> None:
            maps, whole = site.maps(), site.probabilities("text", "image")
            assert maps.shape[2] == int(np.prod(site.grid))
            assert torch.equal(maps, whole[..., site.text])
            assert (whole.sum(-1) - 1).abs().max() < 1e-5
            assert (site.maps(over="text").sum(-1) - 1).abs().max() < 1e-5
            output = site.probabilities() @ site.value
            assert (output - site.output)[:, :, site.image].abs().max() < 1e-4
            spread.append(maps.std().item())

        spread: list[float] = []
        self.watched(At(check))
        assert spread and max(spread) > 1e-4

    def test_identity_edits_change_no_bit(self) -> None:
        plain = self.watched()
        for name, identity in IDENTITIES.items():
            got = self.watched(At(lambda run, site, act=identity: act(site)))
            assert np.array_equal(got, plain), name

    def test_masking_a_word_removes_it_from_the_softmax(self) -> None:
        bridge: Any = showtell.load(self.pipeline)
        positions = list(bridge.words(PAIR[0], **self.options())["ring"])

        def check(run: Any, site: Site) -> None:
            keep = torch.ones(site.text.stop - site.text.start, dtype=torch.bool)
            keep[positions] = False
            logits = site.logits("text", "image")
            site.mask(keep)
            columns = torch.ones(logits.shape[-1], dtype=torch.bool)
            columns[site.text] = keep
            removed = logits[..., columns].softmax(-1)
            now = site.probabilities("text", "image")
            assert now[..., ~columns].abs().max() == 0
            assert (now[..., columns] - removed).abs().max() < 1e-6
            seen.append(1)

        seen: list[int] = []
        masked = self.watched(At(check))
        assert seen and np.abs(masked - self.watched()).max() > 1e-5

    def test_edits_stay_in_their_branch_and_sample(self) -> None:
        def edit(run: Any, site: Site) -> None:
            rows, samples = site.query.shape[0], len(run.prompts)
            each = rows // len(site.branches) // samples
            weights = torch.ones(samples * each, 1, 1, site.text.stop - site.text.start)
            weights[each:, ..., 2] = 5.0
            before = site.output.clone()
            site.rescale(weights)
            change = (site.output - before).abs().amax(dim=(1, 2, 3))
            second = slice(site.branches["text"].start + each, site.branches["text"].stop)
            assert change[second].max() > 0 and change.sum() == change[second].sum()

        changed, plain = self.watched(At(edit)), self.watched()
        assert np.array_equal(changed[0], plain[0]) and np.abs(changed[1] - plain[1]).max() > 1e-5

    def test_edits_by_word_do_not_depend_on_the_batch(self) -> None:
        """The short text of a batch of unequal ones is where the layout says it is."""
        bridge: Any = showtell.load(self.pipeline)

        def strengthen(run: Any, site: Site) -> None:
            weights = torch.ones(len(run.prompts), 1, 1, site.text.stop - site.text.start)
            for i, prompt in enumerate(run.prompts):
                weights[i, ..., list(bridge.words(prompt, **self.options())["table"])] = 5.0
            site.rescale(weights)

        prompts = ["a table", "a big dog on the green table"]
        more: dict[str, Any] = {"num_inference_steps": 2}
        if self.video:
            more["output_type"] = "latent"
        together = self.ours(prompts, seed=[7, 8], using=[At(strengthen)], **more)
        alone = self.ours(prompts[:1], seed=[7], using=[At(strengthen)], **more)
        plain = self.ours(prompts[:1], seed=[7], **more)
        effect, difference = np.abs(alone - plain).max(), np.abs(together[0] - alone[0]).max()
        assert effect > 1e-4 and difference <= max(1e-5, effect / 20)

    def test_gradients_of_maps_reach_the_latents(self) -> None:
        class Probe(At):
            def before(self, run: Any, latents: torch.Tensor) -> None:
                maps.clear()
                with torch.enable_grad():
                    latents = latents.detach().requires_grad_()
                    run.predict(latents)
                    gradient = torch.autograd.grad(torch.stack(maps).sum(), latents)[0]
                norms.append(float(gradient.norm()))

        maps: list[torch.Tensor] = []
        norms: list[float] = []
        self.watched(Probe(lambda run, site: maps.append(site.maps()[..., 2].mean())))
        assert len(norms) >= 2 and min(norms) > 0

    # Words

    def test_positions_are_those_the_denoiser_reads(self) -> None:
        bridge: Any = showtell.load(self.pipeline)
        options = self.options()
        before = bridge.encode("a red ring above the dog", **options).tokens[0]
        after = bridge.encode("a red ring above the cat", **options).tokens[0]
        change = (before - after).abs().amax(dim=-1)
        words = bridge.words("a red ring above the dog", **options)
        assert len(words["dog"]) == self.readers
        assert all(change[position] > 1e-4 for position in words["dog"])
        assert len(words["ring"]) == self.readers
        same = bridge.words("a red ring above the cat", **options)
        assert same["ring"] == words["ring"] and same["cat"] == words["dog"]

    def test_what_is_cut_is_said_in_words(self) -> None:
        if not self.cut_off:
            return
        prompt = " ".join(["a red ring left of a blue star above the big green square table"] * 20)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bridge: Any = showtell.load(fresh(type(self).maker))
            bridge.encode(prompt + " on the cat", **self.options())
        said = [str(warning.message) for warning in caught if "cut off" in str(warning.message)]
        assert len(said) == 1 and "on the cat" in said[0]
        assert bridge.words(prompt + " on the cat", **self.options()).find("cat") == ()
