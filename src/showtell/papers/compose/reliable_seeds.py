"""All Seeds Are Not Equal: Enhancing Compositional Text-to-Image Generation with Reliable Random Seeds.
Li, Le, Xu, Salzmann, 2024, arXiv 2411.18810

The starting noise fixes habits of layout, so some seeds give right counts or relations for many prompts. They are mined
with a model that checks the images; then one samples from them alone, or fine-tunes the queries and keys of all
attention on the images that they give, after which any seed will do.

Faithful: reliability per number or relation, every seed on every mining prompt, the 3 best seeds kept, one image per
prompt of a training set, the usual denoising loss at a constant small rate on queries and keys only, averaged weights;
prompts and seeds of the test are unseen. As in the paper's first variant, images are not checked before training.
Scaled down: 32 mining prompts and 24 seeds instead of 300 and 100, 128 training images instead of 300, 200 steps of 16
at 1e-4 instead of 5,000 of 128 at 1e-6 times the batch. To stay within the minutes, counting is tried on the UNet and
relations on the DiT. The second judge mines, the first one scores. Maps of where each seed puts objects are not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from showtell.measure.experiment import Comparison, Lab
from showtell.measure.verifying import first_judge_only
from showtell.train import Pool, fit
from showtell.train.denoising import denoising_loss, only

MINED, TRAINED, STEPS = 32, 128, 200
SEEDS = range(50_000, 50_024)  # far from those that arms are run with
METRICS = {"counts": "count", "relations": "relations"}

EXAMPLE = """
import showtell
from showtell.papers.compose.reliable_seeds import finetune, mine, reliability, top_seeds

bridge = showtell.load("stabilityai/stable-diffusion-2-1")
checker = showtell.load("llava-hf/llava-1.5-7b-hf")
prompts, groups, seeds = ["two cats", "two dogs", "three cats"], ["two", "two", "three"], range(100)

def correct(images):
    said = checker.answer(images, "How many animals are there? Answer with one word.")
    return [group in answer.lower() for group, answer in zip(groups, said)]

found = reliability(mine(bridge, prompts, seeds, correct), groups)
best = top_seeds(found, seeds)                                        # group -> its 3 most reliable seeds
images = bridge.generate(prompts, seed=[best[group][0] for group in groups])
trained = finetune(bridge, prompts, [best[group][0] for group in groups], steps=5000, lr=1e-5)
"""


def mine(
    bridge: Any, prompts: list[str], seeds: Iterable[int], correct: Callable[[Any], Any], **options: Any
) -> np.ndarray:
    """Whether each seed's image of each prompt is right, bool (seeds, prompts). correct: images -> (prompts,)."""
    each = (bridge.generate(prompts, seed=[seed] * len(prompts), **options) for seed in seeds)
    return np.array([np.asarray(correct(images), dtype=float) == 1 for images in each])


def reliability(right: np.ndarray, groups: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    """Group (a number, a relation) -> the share of its prompts that each seed gets right, (seeds,)."""
    return {group: right[:, [one == group for one in groups]].mean(axis=1) for group in dict.fromkeys(groups)}


def top_seeds(
    found: Mapping[Any, np.ndarray], seeds: Sequence[int], keep: int = 3, best: bool = True
) -> dict[Any, list]:
    """Group -> its `keep` most reliable seeds (or the least), in order; of equal ones, the earlier."""
    sign = -1 if best else 1
    return {group: [seeds[i] for i in np.argsort(sign * share, kind="stable")[:keep]] for group, share in found.items()}


def finetune(
    bridge: Any, prompts: list[str], seeds: list[int], steps: int = STEPS, lr: float = 1e-4, batch_size: int = 16,
    seed: int = 0, **options: Any,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Trains the bridge, in place, on its own images of prompts with these seeds; the new weights, by name.

    options: keywords of `generate`.
    """
    latents = torch.stack(bridge.generate(prompts, seed=seeds, output_type="latent", **options)).float()
    model = bridge.adapter.denoiser
    chosen = only(model)
    pool = Pool({"latents": latents.cpu().numpy(), "row": np.arange(len(prompts))}, batch_size)
    loss = denoising_loss(bridge, prompts, **options)
    fit(model, loss, pool, steps=steps, lr=lr, warmup=0, schedule="constant", seed=seed, progress=False)
    model.eval().requires_grad_(False)
    return {name: parameter.detach().clone() for name, parameter in chosen.items()}


def group_of(scene: Any) -> Hashable:
    """What a scene's reliability is counted under: its relation, or how many there are of the most frequent thing."""
    number = max(len(group) for group in scene.groups)
    return number if number > 1 or not scene.relations else scene.relations[0].kind


def study(lab: Lab, base: str, task: str) -> list[Comparison]:
    """Fine-tuning on, and sampling from, the seeds that are reliable for a task on a base."""
    bridge, test, known = lab.base(base), lab.prompts(task), lab.validation(task, TRAINED)
    mined, metric = known[:MINED], first_judge_only(getattr(test, METRICS[task]))

    def mining() -> dict[str, torch.Tensor]:
        check = partial(getattr(mined, METRICS[task]), judge="second")
        return {"right": torch.tensor(mine(bridge, mined.texts, lab.progress(SEEDS, "mining"), check))}

    right = lab.trained(f"mining {task} on {base}", mining)["right"].numpy()
    found = reliability(right, [group_of(scene) for scene in mined.scenes])
    lists = {"top seeds": top_seeds(found, SEEDS), "bottom seeds": top_seeds(found, SEEDS, best=False)}

    def drawn(scenes: Any, allowed: Mapping[Any, list], seed: int) -> list[int]:
        """A seed for every scene, of those allowed for its group (any, for a group that was not mined)."""
        rng = np.random.default_rng(seed)
        return [int(rng.choice(allowed.get(group_of(scene), list(SEEDS)))) for scene in scenes]

    def shuffled(seed: int) -> dict[Any, list]:
        rng = np.random.default_rng(seed)
        return top_seeds({group: rng.permutation(share) for group, share in found.items()}, SEEDS)

    def sampled(name: str) -> Any:
        def arm(seed: int) -> Any:
            allowed = lists[name] if name in lists else shuffled(seed)
            return bridge.generate(test.texts, seed=drawn(test.scenes, allowed, seed))

        return arm

    def tuned(name: str, allowed: Mapping[Any, list]) -> Any:
        def make(seed: int) -> dict[str, torch.Tensor]:
            fresh = [10**6 + 1000 * seed + i for i in range(len(known))]
            chosen = drawn(known.scenes, allowed, seed) if allowed else fresh
            return finetune(lab.base(base, fresh=True), known.texts, chosen, seed=seed)

        def arm(seed: int) -> Any:
            copy = lab.base(base, fresh=True)
            weights = lab.trained(f"{name} {task} on {base}", make, seed)
            copy.adapter.denoiser.load_state_dict(weights, strict=False)
            return copy.generate(test.texts, seed=seed)

        return arm

    plain = {"base": lambda seed: bridge.generate(test.texts, seed=seed)}
    training = {"reliable seeds": tuned("reliable", lists["top seeds"]), "random seeds": tuned("random", {}), **plain}
    sampling = {name: sampled(name) for name in (*lists, "shuffled ranking")} | plain
    better = "reliable seeds > base, reliable seeds > random seeds"
    ranked = "top seeds > base, top seeds > bottom seeds"
    return [
        lab.compare(training, metric=metric, expect=better, control="random seeds"),
        lab.compare(sampling, metric=metric, expect=ranked, control="shuffled ranking"),
    ]


def experiment(lab: Lab) -> list[Comparison]:
    return [*study(lab, "unet", "counts"), *study(lab, "dit", "relations")]
