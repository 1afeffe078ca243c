"""Techniques see and edit attention alike on every architecture; with nothing attached nothing is
intercepted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import showtell
import tiny
from showtell.bridges import attention
from showtell.bridges.attention import Site
from showtell.bridges.base import Technique
from showtell.bridges.layout import Place
from showtell.errors import ShowtellError

PROMPTS = ["a red ring left of a blue star", "a dog on the table"]
# Attention calls of one pass, grids seen, and text tokens of the tiny models.
SHAPES: dict[str, tuple[int, set[tuple[int, ...]], int]] = {
    "sd": (14, {(8, 8), (4, 4)}, 16),
    "sdxl": (22, {(8, 8), (4, 4)}, 16),
    "sd3": (4, {(4, 4)}, 32),
    "flux": (4, {(4, 4)}, 16),
    "pixart": (4, {(4, 4)}, 16),
    "pixart-sigma": (4, {(4, 4)}, 16),
}


class At(Technique):
    """Calls a function at attention sites of some kinds."""

    def __init__(self, act: Callable[[Any, Site], Any], kinds: tuple[str, ...] = ("cross", "joint")) -> None:
        self.act, self.kinds = act, kinds

    def wants(self, run: Any, place: Place) -> bool:
        return place.kind in self.kinds

    def attention(self, run: Any, site: Site) -> None:
        self.act(run, site)


def images(name: str, *using: Technique, **more: Any) -> np.ndarray:
    bridge = showtell.load(tiny.shared(name))
    return np.stack(bridge.generate(PROMPTS, using=using, **tiny.keywords(name, num_inference_steps=2, **more)))


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_every_attention_call_is_placed(name: str) -> None:
    seen: list[Place] = []
    images(name, At(lambda run, site: seen.append(site.place), ("self", "cross", "joint")))
    calls, grids, text = SHAPES[name]
    first = [place for place in seen if place.step == 0]
    assert [place.depth for place in first] == list(range(calls)) and len(seen) == calls * seen[0].steps
    assert {place.grid for place in seen} == grids
    lengths = {place.text.stop - place.text.start for place in seen if place.text is not None}
    assert lengths == {text}
    assert {"cross", "joint"} & {place.kind for place in seen}


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_attention_calls_come_from_the_modules_named(name: str) -> None:
    """The order that the layout says is the order in which the modules run."""
    pipeline = tiny.make(name)
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    ran: list[str] = []
    for module_name, module in model.named_modules():
        if hasattr(module, "processor"):
            module.register_forward_pre_hook(lambda m, args, kwargs, n=module_name: ran.append(n), with_kwargs=True)
    said: list[str] = []
    showtell.load(pipeline).generate(
        PROMPTS[0],
        using=[At(lambda run, site: said.append(site.name), ("self", "cross", "joint"))],
        **tiny.keywords(name, num_inference_steps=1 if name != "pixart" else 2),
    )
    assert said == ran and said


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_maps_are_probabilities_over_the_attended_tokens(name: str) -> None:
    def check(run: Any, site: Site) -> None:
        height, width = site.grid
        maps, whole = site.maps(), site.probabilities("text", "image")
        assert maps.shape[0] == len(PROMPTS) and maps.shape[2] == height * width
        assert torch.equal(maps, whole[..., site.text])
        assert (whole.sum(-1) - 1).abs().max() < 1e-5
        assert (site.maps(over="text").sum(-1) - 1).abs().max() < 1e-5
        assert site.maps(branch=None).shape[0] == site.query.shape[0]
        # What the model really computes with: the probabilities applied to the values are its output.
        output = site.probabilities() @ site.value
        assert (output - site.output).abs().max() < 1e-5
        checked.append(maps.std().item())

    checked: list[float] = []
    images(name, At(check))
    assert checked and max(checked) > 1e-4


IDENTITIES: dict[str, Callable[[Site], Any]] = {
    "read": lambda site: site.maps(),
    "edit": lambda site: site.edit(lambda maps: maps * 1.0),
    "rescale": lambda site: site.rescale(torch.ones(site.text.stop - site.text.start)),
    "rescale logits": lambda site: site.rescale(torch.ones(site.text.stop - site.text.start), on="logits"),
    "bias": lambda site: site.bias(torch.zeros(site.text.stop - site.text.start)),
    "mask": lambda site: site.mask(torch.ones(site.text.stop - site.text.start, dtype=torch.bool)),
    "take": lambda site: site.take([0, 1]),
    "key": lambda site: setattr(site, "key", site.key * 1.0),
    "output": lambda site: setattr(site, "output", site.output),
}


@pytest.mark.parametrize("name", tiny.MAKERS)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_identity_edits_change_no_bit(name: str, identity: str) -> None:
    edited = images(name, At(lambda run, site: IDENTITIES[identity](site)))
    assert np.array_equal(edited, images(name))


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_masking_a_word_removes_it_from_the_softmax(name: str) -> None:
    bridge = showtell.load(tiny.shared(name))
    options = {k: v for k, v in tiny.KEYWORDS[name].items() if k == "max_sequence_length"}
    positions = list(bridge.words(PROMPTS[0], **options)["ring"])

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
        image = site.output[site.branches["text"]][:, :, site.image]
        values = site.value[site.branches["text"]][:, :, columns]
        assert (image - removed @ values).abs().max() < 1e-5
        seen.append(1)

    seen: list[int] = []
    masked = images(name, At(check))
    assert seen and np.abs(masked - images(name)).max() > 1e-4


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_edits_stay_in_their_branch_and_sample(name: str) -> None:
    def edit(run: Any, site: Site) -> None:
        weights = torch.ones(2, 1, 1, site.text.stop - site.text.start)
        weights[1, ..., 2] = 5.0
        before = site.output.clone()
        site.rescale(weights)
        change = (site.output - before).abs().amax(dim=(1, 2, 3))
        second = site.branches["text"].start + 1
        assert change[second] > 0 and change.sum() == change[second]

    changed, plain = images(name, At(edit)), images(name)
    assert np.array_equal(changed[0], plain[0]) and np.abs(changed[1] - plain[1]).max() > 1e-5


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "pixart"])
def test_samples_can_share_keys_and_values(name: str) -> None:
    def share(run: Any, site: Site) -> None:
        site.take([0, 0], branch=None if len(site.branches) == 1 else "text")

    def check(run: Any, site: Site) -> None:
        rows = site.branches["text"]
        assert torch.equal(site.key[rows][1], site.key[rows][0])

    shared = images(name, At(share), At(check))
    assert np.abs(shared[1] - images(name)[1]).max() > 1e-4


def test_self_attention_has_no_text() -> None:
    def read(run: Any, site: Site) -> None:
        whole = site.probabilities("text")
        assert whole.shape[-2:] == (site.grid[0] * site.grid[1],) * 2
        with pytest.raises(ShowtellError, match="no text among its keys"):
            site.maps()
        keep = torch.ones(whole.shape[-2:], dtype=torch.bool).tril()
        site.mask(keep, keys="image")
        assert site.probabilities("text")[..., 0, 1:].abs().max() == 0

    assert np.abs(images("sd", At(read, ("self",))) - images("sd")).max() > 1e-4


class Attend(Technique):
    """Gradient steps on the latents that raise a word's attention, and a record of how much there was."""

    def __init__(self, position: int, size: float, hook: str = "before") -> None:
        self.position, self.size, self.hook = position, size, hook

    def wants(self, run: Any, place: Place) -> bool:
        return place.kind != "self"

    def attention(self, run: Any, site: Site) -> None:
        state = run.state(self)
        state.maps = [*getattr(state, "maps", []), site.maps()[..., self.position].mean()]

    def raised(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
        state = run.state(self)
        state.maps = []
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            run.predict(latents)
            total = torch.stack(state.maps).mean()
            gradient = torch.autograd.grad(total, latents)[0]
        state.record = [*getattr(state, "record", []), total.item()]
        state.maps = []
        return latents.detach() + self.size * gradient / (gradient.norm() + 1e-12)

    def start(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        if self.hook != "start":
            return None
        for _ in range(4):
            latents = self.raised(run, latents)
        return latents

    def before(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        return self.raised(run, latents) if self.hook == "before" else None

    def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor | None:
        return self.raised(run, latents) if self.hook == "latents" and run.step + 1 < run.steps else None

    def finish(self, run: Any, outputs: list[Any]) -> list[Any]:
        return [run.state(self).record]


@pytest.mark.parametrize("name", tiny.MAKERS)
@pytest.mark.parametrize("hook", ["start", "before", "latents"])
def test_gradients_of_maps_reach_the_latents(name: str, hook: str) -> None:
    bridge = showtell.load(tiny.shared(name))
    keywords = tiny.keywords(name, num_inference_steps=4)
    record = bridge.generate(PROMPTS[0], using=[Attend(3, 2.0, hook)], **keywords)[0]
    assert len(record) >= 3
    if hook == "start":
        assert record[-1] > record[0], "ascending the gradient raises what it is the gradient of"
    still = bridge.generate(PROMPTS[0], using=[Attend(3, 0.0, hook)], **keywords)[0]
    assert sum(record[1:]) > sum(still[1:])


def test_nothing_attached_intercepts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("intercepted")

    expected = images("sd")
    monkeypatch.setattr(attention._Observer, "__init__", never)

    class Elsewhere(Technique):
        def latents(self, run: Any, latents: torch.Tensor) -> torch.Tensor:
            return latents

    assert np.array_equal(images("sd"), expected)
    assert np.array_equal(images("sd", Elsewhere()), expected)


def test_unwanted_places_stay_on_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Place] = []
    original = Site.__init__
    monkeypatch.setattr(Site, "__init__", lambda self, at, *a: (built.append(at), original(self, at, *a))[1])

    class Quarter(Technique):
        def wants(self, run: Any, place: Place) -> bool:
            return place.grid == (4, 4) and place.kind == "cross" and place.step == 1

        def attention(self, run: Any, site: Site) -> None:
            site.maps()

    images("sd", Quarter())
    assert {(p.grid, p.kind, p.step) for p in built} == {((4, 4), "cross", 1)} and len(built) == 4


def test_text_encoder_and_vae_are_outside() -> None:
    pipeline = tiny.shared("sd")
    counted: list[int] = []
    original = F.scaled_dot_product_attention

    class Reads(Technique):
        def attention(self, run: Any, site: Site) -> None:
            counted.append(site.depth)
            assert site.of == 14

    showtell.load(pipeline).generate("a big dog", using=[Reads()], **tiny.keywords("sd", num_inference_steps=1))
    assert max(counted) == 13 and original is F.scaled_dot_product_attention


def test_attention_that_cannot_be_seen_is_an_error() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipeline = tiny.make("sd")
    pipeline.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ShowtellError, match="set_default_attn_processor"):
        showtell.load(pipeline).generate("a dog", using=[At(lambda run, site: site.maps())], **tiny.keywords("sd"))


def test_techniques_compose_in_order() -> None:
    class Add(Technique):
        def __init__(self, mark: str) -> None:
            self.mark = mark

        def prompt(self, run: Any, prompts: list[str]) -> list[str]:
            return [prompt + self.mark for prompt in prompts]

        def finish(self, run: Any, outputs: list[Any]) -> list[Any]:
            return [run.prompts[0]]

    bridge = showtell.load(tiny.shared("sd"))
    assert bridge.generate("a dog", using=[Add(" and"), Add(" cat")], **tiny.keywords("sd")) == ["a dog and cat"]


def test_later_techniques_see_earlier_edits() -> None:
    def halve(run: Any, site: Site) -> None:
        seen.append(site.maps().sum().item())
        site.rescale(torch.full((16,), 0.5))

    seen: list[float] = []
    images("sd", At(halve), At(halve))
    pairs = np.array(seen).reshape(-1, 2)
    assert np.allclose(pairs[:, 1], pairs[:, 0] / 2, rtol=1e-5)


def test_conditioning_and_prediction_hooks() -> None:
    class Blend(Technique):
        """FRAP-like: the text moved towards the empty prompt."""

        def __init__(self, weight: float) -> None:
            self.weight = weight

        def conditioning(self, run: Any, text: Any) -> torch.Tensor:
            return text.empty + self.weight * (text.tokens - text.empty)

    class Unguided(Technique):
        unconditional = True

        def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
            assert unconditional is not None
            return unconditional

    plain = images("sd")
    assert np.abs(images("sd", Blend(1.0)) - plain).max() < 1e-5
    assert np.abs(images("sd", Blend(0.0)) - plain).max() > 1e-3
    # With the text gone, both branches agree; so does taking the unconditional one at scale 1.
    gone = images("sd", Blend(0.0))
    assert np.abs(gone - images("sd", Unguided(), guidance_scale=1.0)).max() < 1e-4


@pytest.mark.parametrize("name", tiny.MAKERS)
def test_clean_inverts_the_noise(name: str) -> None:
    class Check(Technique):
        def prediction(self, run: Any, guided: Any, conditional: Any, unconditional: Any) -> torch.Tensor:
            noise = torch.ones_like(guided)
            clean = torch.full_like(guided, 0.25)
            state = run.state(self)
            state.noisy = run.add_noise(clean, noise)
            flow = "FlowMatch" in type(run.scheduler).__name__
            answer = noise - clean if flow else noise
            assert (run.clean(answer, state.noisy) - clean).abs().max() < 1e-3
            return guided

    images(name, Check())


def test_predicting_elsewhere_leaves_the_run_as_it_was() -> None:
    import diffusers

    class Peek(Technique):
        def before(self, run: Any, latents: torch.Tensor) -> None:
            run.predict(latents, run.timesteps[-1])
            run.evaluate(latents)

        def latents(self, run: Any, latents: torch.Tensor) -> None:
            if run.step + 1 < run.steps:
                run.predict(latents)
            else:
                with pytest.raises(ShowtellError, match="nothing left to predict"):
                    run.predict(latents)

    pipeline = tiny.make("sd")
    bridge = showtell.load(pipeline)
    for scheduler in (
        diffusers.EulerDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        pipeline.scheduler,
    ):
        keywords = tiny.keywords("sd", scheduler=scheduler)
        plain = bridge.generate(PROMPTS, **keywords)
        assert np.array_equal(np.stack(bridge.generate(PROMPTS, using=[Peek()], **keywords)), np.stack(plain))


def test_state_does_not_leak_between_calls_or_threads() -> None:
    class Collect(Technique):
        def wants(self, run: Any, place: Place) -> bool:
            return place.kind == "cross" and place.depth == 1

        def attention(self, run: Any, site: Site) -> None:
            state = run.state(self)
            state.maps = [*getattr(state, "maps", []), site.maps()]

        def finish(self, run: Any, outputs: list[Any]) -> list[Any]:
            return [(image, torch.stack(run.state(self).maps)) for image in outputs]

    bridge, technique = showtell.load(tiny.shared("sd")), Collect()
    keywords = tiny.keywords("sd")
    alone = {prompt: bridge.generate(prompt, using=[technique], **keywords)[0] for prompt in PROMPTS}
    together: dict[str, Any] = {}

    def work(prompt: str) -> None:
        for _ in range(3):
            together[prompt] = bridge.generate(prompt, using=[technique], **keywords)[0]

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in PROMPTS:
        assert np.array_equal(together[prompt][0], alone[prompt][0])
        assert torch.equal(together[prompt][1], alone[prompt][1]) and len(alone[prompt][1]) == 4
