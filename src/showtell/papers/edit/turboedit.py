"""TurboEdit: Instant text-based image editing.
Wu, Kolkin, Brandt, Zhang, Shechtman, 2024, arXiv 2408.08332

A network learns to invert a generator of few steps: shown the picture and what has been reconstructed so far, it gives
each step's noise map, so that every pass corrects what is still missing. An edit freezes the maps and changes the
caption; as the caption is long, a change of one attribute changes that attribute alone.

Faithful: x_t = alpha x0_{t+1} + sigma eps_t and x0_t = F(x_t, t, c), zeros before the first pass; the inverter begins
as the generator's UNet, with mean and variance of the noise as output; a training step imitates the reconstruction so
far by one pass of the generator over the noised picture (no unrolling), draws the noise by reparameterisation and
weighs squared error and divergence from N(0, 1); strength between the encoded captions; a mask, given or from a word's
attention, blends with the reconstruction.
Ours: the weight of the divergence (not to be had), the mean of the noise when inverting, zero weights of new channels
at the start, one timestep per batch; no perceptual term, as latents of drawings are compared.
Scaled down: the generator is distilled from the base (consistency); captions are the world's own, exact ones, and short
ones name the edited thing alone. A quarter of the training batches is shown zeros for the reconstruction, so that the
control "no correction" is asked what it has learnt. Edit-friendly inversion keeps what each step lacks and so returns
its input by construction: its reconstruction is shown, not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from showtell.bridges.base import Run, Technique, Text, spread
from showtell.bridges.layout import Place
from showtell.bridges.stable_diffusion import with_extra
from showtell.errors import ShowtellError
from showtell.measure.edits import alone, rebuilt_psnr
from showtell.measure.experiment import Comparison, Lab
from showtell.steer.blend import blended, sample_masks
from showtell.steer.embeddings import completed, mixed
from showtell.steer.inversion import EditFriendlyInversion, Inversion
from showtell.steer.maps import near, token_maps
from showtell.steer.regions import Box
from showtell.steer.segment import phrase_masks
from showtell.train import fit
from showtell.train.consistency import distil, use_distilled
from showtell.train.networks import frozen, widened, with_denoiser
from showtell.train.noising import Noising
from showtell.train.samples import drawn, latents_of, paired, training_scenes

SCENES, DISTILLATION, TRAINING = 2000, 300, 200  # of the experiment
KINDS = ("recolour", "retexture", "replace")  # edits of one attribute
SKIPS = (0.0, 0.25, 0.5)  # of edit-friendly inversion, tuned on validation prompts
FEW: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0}
EXAMPLE = """
import showtell
from showtell import language
from showtell.papers.edit.turboedit import TurboEdit, train_inverter

bridge = showtell.load("stabilityai/sdxl-turbo")
few = {"num_inference_steps": 4, "guidance_scale": 1.0}
pictures = bridge.generate(["a red ring left of a blue star", "a green square above a red ring"], **few)
caption = "a red ring left of a blue star"
latents = bridge.to_latents(pictures)
inverter = train_inverter(bridge, latents, [caption, "a green square above a red ring"], steps=2, batch_size=2)
edited = language.load().edit(caption, "make the ring green")
[image] = bridge.generate(edited, using=[TurboEdit(inverter, latents[:1], caption)], **few)
"""


def inverted(run: Any, inverter: Any, clean: Tensor, made: Tensor, timestep: Any, text: Text) -> tuple[Tensor, Tensor]:
    """(mean, logarithm of the variance) of the noise, like `clean`, that leads from `made` to it at a timestep."""
    beside = with_denoiser(run.adapter, inverter)
    found = beside.predict(run, clean, timestep, with_extra(text, "channels", made))
    mean, log_variance = found.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 20)  # so that the exponential stays finite


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats per number."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def generated(run: Any, made: Tensor, noise: Tensor, timestep: Any, text: Text) -> Tensor:
    """The generator's step: clean latents from those of the step before and this step's noise map."""
    noisy = run.add_noise(made, noise, timestep)
    return run.clean(run.evaluate(noisy, text, timestep), noisy, timestep)


class TurboEdit(Technique):
    """Sampling in few steps along the noise maps of inverted latents, to be called with guidance_scale=1.

    inverter: of `train_inverter`. latents: of the pictures, (n, ...). source: their captions; by default the call's,
    which reconstructs. strength: 0 is the source caption, 1 the call's. mask: where to edit: a box, a mask (height,
    width), a list of one each, or a phrase of the prompt whose attention says where. corrected: whether a pass is shown
    the reconstruction so far (else zeros).
    """

    def __init__(
        self, inverter: Any, latents: Tensor, source: str | list[str] | None = None, strength: float = 1.0,
        mask: Box | Tensor | list[Any] | str | None = None, corrected: bool = True,
    ) -> None:  # fmt: skip
        self.inverter, self.latents_, self.source = inverter, latents, source
        self.strength, self.mask, self.corrected = strength, mask, corrected

    def start(self, run: Any, latents: Tensor) -> Tensor:
        if self.latents_.shape != latents.shape:
            raise ShowtellError(f"latents to edit have the shape {tuple(self.latents_.shape)}, not {latents.shape}.")
        state, clean = run.state(self), self.latents_.to(latents)
        source = run.text
        if self.source is not None:
            source = completed(run.encode(spread(self.source, len(run.prompts), "source")), run.text)
        made = nothing = torch.zeros_like(clean)  # as yet there is no reconstruction
        state.noise, state.kept, state.maps, state.inverting = [], [], [], True
        for timestep in run.timesteps:
            mean, _ = inverted(run, self.inverter, clean, made if self.corrected else nothing, timestep, source)
            made = generated(run, made, mean, timestep, source)
            state.noise.append(mean)
            state.kept.append(made)
        state.inverting = False
        run.text = mixed(source, run.text, self.strength)
        return run.add_noise(nothing, state.noise[0])

    def wants(self, run: Run, place: Place) -> bool:
        asked = isinstance(self.mask, str) and not run.state(self).inverting
        return asked and place.text is not None and near(run, place)

    def attention(self, run: Run, site: Any) -> None:
        if (found := token_maps(site)) is not None:
            run.state(self).maps.append(found)

    def prediction(self, run: Any, guided: Tensor, conditional: Any, unconditional: Any) -> None:
        state = run.state(self)
        state.made = run.clean(guided, run.given)
        if self.mask is not None:
            # A phrase's mask is of what it has attended to so far.
            where = phrase_masks(run, state.maps, self.mask) if isinstance(self.mask, str) else self.mask
            state.made = blended(state.made, state.kept[run.step], sample_masks(where, state.made))

    def latents(self, run: Any, latents: Tensor) -> Tensor:
        state = run.state(self)
        return state.made if run.step + 1 == run.steps else run.add_noise(state.made, state.noise[run.step + 1])


def train_inverter(
    bridge: Any, latents: Tensor, prompts: Sequence[str], steps: int = 1000, batch_size: int = 32, lr: float = 5e-4,
    weight: float = 0.01, few: int = 4, blank: float = 0.0, seed: int = 0, **options: Any,
) -> Any:  # fmt: skip
    """A network that inverts the bridge, as a generator of `few` steps, on pictures' latents (n, ...) and captions (n).

    weight: of the divergence. blank: share of the batches without a reconstruction. options: of `Noising`.
    """
    noising = Noising(bridge, **options)
    run: Any = noising.run(prompts)
    bridge.adapter.set_timesteps(run, few)
    run.text = noising.text(prompts)
    inverter = widened(bridge.adapter.denoiser, 2 * latents.shape[1], 2 * latents.shape[1])

    def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict]:
        clean, text = batch["latents"], run.text.rows(batch["row"].long())
        index = int(torch.randint(len(run.timesteps), (1,), generator=generator))
        timestep, made = run.timesteps[index], torch.zeros_like(clean)
        draw = partial(torch.randn, clean.shape, generator=generator, device=clean.device)
        if index:  # what the passes before would have reconstructed
            with torch.no_grad():
                made = generated(run, clean, draw(), run.timesteps[index - 1], text)
        hidden = blank > 0 and float(torch.rand((), generator=generator)) < blank
        shown = torch.zeros_like(made) if hidden else made
        mean, log_variance = inverted(run, model, clean, shown, timestep, text)
        again = generated(run, made, mean + (log_variance / 2).exp() * draw(), timestep, text)
        error, apart = (again.float() - clean).square().mean(), divergence(mean, log_variance)
        return error + weight * apart, {"error": error.detach(), "divergence": apart.detach()}

    with frozen(bridge.adapter.denoiser):
        fit(inverter, loss, paired(latents, batch_size), steps=steps, lr=lr, precision="no", seed=seed, progress=False)
    return inverter.eval().requires_grad_(False)


def experiment(lab: Lab) -> list[Comparison]:
    bridge, prompts = lab.base("unet", fresh=True), lab.prompts("edits", kinds=KINDS)
    scenes = training_scenes(SCENES)
    latents, captions = latents_of(bridge, drawn(scenes)), [scene.caption() for scene in scenes]
    sources, channels = latents_of(bridge, prompts.sources), 2 * latents.shape[1]
    few = lab.trained("few steps", lambda: distil(bridge, latents, captions, DISTILLATION), shared=True)
    use_distilled(bridge, few)

    def learn(seed: int) -> Any:
        return train_inverter(bridge, latents, captions, TRAINING, blank=0.25, seed=seed)

    @cache
    def inverter(seed: int) -> Any:
        net = widened(bridge.adapter.denoiser, channels, channels)
        net.load_state_dict(lab.trained("inverter", learn, seed, shared=True))
        return net.eval().requires_grad_(False)

    def friendly(images: Tensor, told: list[str], skip: float, seed: int = 0) -> Technique:
        return EditFriendlyInversion(images, told, guidance=1.0, skip=skip, seed=seed)

    @cache
    def best_skip() -> float:
        held = lab.validation("edits", max(1, lab.n // 4), kinds=KINDS)
        known = latents_of(bridge, held.sources)
        made = {s: bridge.generate(held.plain, using=[friendly(known, held.captions, s)], **FEW) for s in SKIPS}
        return max(made, key=lambda s: float(held.edited(made[s]).mean()))

    def arm(technique: Callable[[int], Technique], asked: list[str]) -> Any:
        return lambda seed: bridge.generate(asked, using=[technique(seed)], seed=seed, **FEW)

    def learnt(told: list[str], asked: list[str], **more: Any) -> Any:
        return arm(lambda seed: TurboEdit(inverter(seed), sources, told, **more), asked)

    whole, edited = prompts.captions, prompts.plain
    short, after = ([alone(edit)[side].caption() for edit in prompts.edits] for side in (0, 1))

    def arms(asked: list[str], skip: Callable[[], float]) -> dict[str, Any]:
        return {
            "turboedit": learnt(whole, asked),
            "ddim inversion": arm(lambda seed: Inversion(sources, whole), asked),
            "edit friendly inversion": arm(lambda seed: friendly(sources, whole, skip(), seed), asked),
            "no correction": learnt(whole, asked, corrected=False),
        }

    editing, rebuilding = arms(edited, best_skip), arms(whole, lambda: 0.0)
    telling = {"turboedit": editing["turboedit"], "short captions": learnt(short, after)}
    expect, likeness = "turboedit > ddim inversion", partial(rebuilt_psnr, originals=prompts.sources)
    both = f"{expect}, turboedit > edit friendly inversion"
    return [
        lab.compare(editing, metric=prompts.edited, expect=both, control="no correction"),
        lab.compare(rebuilding, metric=likeness, expect=expect, control="no correction"),
        lab.compare(telling, metric=prompts.preserved, expect="turboedit > short captions", control="short captions"),
    ]
