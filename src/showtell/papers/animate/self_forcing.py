"""Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion.
Huang, Li, He, Zhou, Shechtman, 2025, arXiv 2506.08009

A model that makes a clip chunk by chunk is trained on what it makes itself: every step of the training rolls a whole
clip out as sampling does, with cached keys and values, and a loss on the finished clip compares its distribution with
that of a bidirectional teacher. Trained on true frames instead, a model never meets its own mistakes until it is used.

Faithful: the few-step rollout, of which only a random last step of every chunk has gradients and none reach the cache;
distribution matching with a guided teacher and a critic that learns online, several updates to one of the generator;
the start from the teacher's ODE solutions; the rolling cache; teacher and diffusion forcing as baselines. Of the three
losses on clips (DMD, SiD, GAN) the first. Ours: any text-to-video bridge with rotary positions; the first frame is not
hidden from the last chunk in training, which matters for clips longer than those that were trained on.
Scaled down: 8 latent frames in chunks of 2, two updates of the critic instead of five, 40 of every arm's student, all
from one start; one learning rate for student and critic, and no averaging of weights; as the world's clips are better
than the teacher's, the baselines learn from the teacher's, so that all arms have one source.
Not measured: that the student is faster. A chunk takes 5 evaluations of a quarter of the clip, the teacher 40 of all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.measure.experiment import Comparison, Lab
from showtell.train.bases.pool import clip_scenes
from showtell.train.causal_video import causal, solutions, train_denoiser
from showtell.train.matching import critic_loss, matching_loss
from showtell.train.networks import with_denoiser
from showtell.train.rollouts import Rollouts

EXAMPLE = """
import copy
import showtell
from showtell.papers.animate.self_forcing import self_force, stream
from showtell.train.causal_video import causal, solutions
from showtell.train.networks import with_denoiser
from showtell.train.rollouts import Rollouts

bridge = showtell.load("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
teacher = with_denoiser(bridge.adapter, copy.deepcopy(bridge.adapter.denoiser))
prompts = ["a dog runs across a field", "waves at night"]                  # no clips are needed
rollouts = Rollouts(bridge, frames=3, chunk=1, steps=4)
paths = solutions(bridge, prompts, rollouts, num_inference_steps=48)
causal(rollouts, paths, prompts, updates=2, batch_size=2)
self_force(rollouts, teacher, prompts, updates=2, batch_size=2)
[clip] = stream(rollouts, ["a dog runs across a field"], seed=0)
"""


def self_force(
    rollouts: Rollouts, teacher: Any, prompts: Sequence[str], updates: int, critics: int = 5, guidance: float = 3.0,
    batch_size: int = 8, lr: float = 2e-4, seed: int = 0, seen: Tensor | None = None, **more: Any,
) -> Any:  # fmt: skip
    """Trains the bridge's denoiser in place on its own rollouts, of prompts alone; the denoiser.

    teacher: the adapter of a bidirectional model. critics: updates of the critic, which begins as the teacher, to one
    of the `updates` of the student. seen: clips (n, ...), one a prompt, that take the place of what the student made
    when later chunks look back: the control. more: for `fit`.
    """
    noising = rollouts.noising
    critic = with_denoiser(noising.adapter, copy.deepcopy(teacher.denoiser).train().requires_grad_(True))
    texts, empty = noising.text(prompts), noising.text([""])
    shape = noising.adapter.latent_shape(rollouts.run([""]))

    def loss(batch: dict[str, Tensor], generator: torch.Generator | None) -> Tensor:
        rows = batch["row"].long()
        text, learner = texts.rows(rows), int(batch["turn"][0]) > 0
        noise = torch.randn((len(rows), *shape), generator=generator, device=rows.device)
        last = int(torch.randint(1, rollouts.steps + 1, (), generator=generator, device=rows.device))
        with torch.set_grad_enabled(not learner):
            made = rollouts.make(text, noise, generator, last, None if seen is None else seen[rows])
        if learner:
            return critic_loss(noising, critic, made, text, generator)
        return matching_loss(noising, teacher, critic, made, text, empty.repeat(len(rows)), guidance, generator)

    def batches(index: int, seed: int) -> dict[str, Any]:
        rows = np.random.default_rng((seed, index)).integers(len(prompts), size=batch_size)
        return {"row": rows, "turn": np.full(batch_size, (index + 1) % (critics + 1))}  # the student's turn is 0

    steps = updates * (critics + 1)
    return train_denoiser(rollouts, {"critic": critic.denoiser}, loss, batches, steps=steps, lr=lr, seed=seed, **more)


@torch.no_grad()
def stream(rollouts: Rollouts, prompts: Sequence[str], seed: int = 0, output_type: str = "pil") -> list[Any]:
    """Clips of prompts, made chunk by chunk."""
    run = rollouts.run(prompts)
    run.text = rollouts.noising.text(prompts)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(run.prompts), *run.adapter.latent_shape(run)), generator=generator)
    return list(run.adapter.decode(run, rollouts.make(run.text, noise, generator), output_type))


FRAMES, CHUNK, TEACHER, GUIDANCE = 8, 2, 20, 4.0
TEXTS, BEGIN, UPDATES, CRITICS, BATCH = 96, 200, 40, 2, 4


def experiment(lab: Lab) -> list[Comparison]:
    base, prompts = lab.base("video"), lab.prompts("motion", kinds=["translate", "rotate", "bounce"])
    texts = [scene.caption() for scene in clip_scenes(np.random.default_rng(0), TEXTS)]
    call: dict[str, Any] = {"num_inference_steps": TEACHER, "guidance_scale": GUIDANCE}

    def student(state: dict[str, Tensor] | None = None) -> Rollouts:
        bridge = lab.base("video", fresh=True)
        if state is not None:
            bridge.adapter.denoiser.load_state_dict(state)
        return Rollouts(bridge, FRAMES, CHUNK)

    def solved() -> dict[str, Tensor]:
        return {"paths": solutions(base, texts, student(), **call)}

    def paths() -> Tensor:
        return lab.trained("paths", solved, shared=True, texts=TEXTS)["paths"]

    def begun() -> Any:
        return causal(student(), paths(), texts, BEGIN)

    def trained(name: str, seed: int) -> Any:
        model = student(lab.trained("begun", begun, shared=True, updates=BEGIN))
        if name.endswith(" forcing"):
            return causal(model, paths(), texts, UPDATES, name.split()[0], BATCH, 2e-4, seed)
        seen = paths()[:, 0] if name == "ground-truth context" else None
        return self_force(model, base.adapter, texts, UPDATES, CRITICS, GUIDANCE, BATCH, seed=seed, seen=seen)

    @cache
    def clips(name: str, seed: int) -> list[Any]:
        if name == "teacher":
            return base.animate(prompts.texts, seed=seed, **call)
        state = lab.trained(name, partial(trained, name), seed, shared=True, updates=UPDATES)
        return stream(student(state), prompts.texts, seed)

    def last_frame(clips: Sequence[Any], judge: str = "first") -> np.ndarray:
        """Share of the things that the last frame shows as they should be."""
        return prompts.complete([clip[-1] for clip in clips], judge)

    names = ("self_forcing", "teacher forcing", "diffusion forcing", "teacher", "ground-truth context")
    expect = "self_forcing > teacher forcing, self_forcing > diffusion forcing, self_forcing > teacher - 0.03"
    arms = {name: partial(clips, name) for name in names}
    return lab.compare_by((last_frame, prompts.identity), arms, expect=expect, control="ground-truth context")
