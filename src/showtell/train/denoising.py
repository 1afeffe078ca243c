"""Training the denoiser of any diffusion bridge on latents and prompts, by the objective that it was trained with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from showtell.bridges.loop import DenoisingRun, _is_flow
from showtell.errors import ShowtellError
from showtell.train.batches import Pool
from showtell.train.trainer import fit

Batch = dict[str, Tensor]
Loss = tuple[Tensor, dict[str, Tensor]]
QUERIES_AND_KEYS = ("to_q", "to_k", "add_q_proj", "add_k_proj")


def denoising_loss(
    bridge: Any, prompts: Sequence[str], height: int | None = None, width: int | None = None, **options: Any
) -> Callable[[nn.Module, Batch, torch.Generator | None], Loss]:
    """A loss for `fit(bridge.adapter.denoiser, loss, ...)`.

    prompts: encoded once, by text encoders that stay as they are. height, width, options: as for `generate`.
    Batches hold {"latents": (n, channels, height, width), "row": (n,) which of the prompts belongs to each}. Flow
    models learn the velocity at logit-normal times (arXiv 2403.03206), others what their scheduler's prediction type
    says at uniform steps (arXiv 2006.11239).
    """
    run = DenoisingRun(bridge, bridge.adapter, list(prompts), ())
    run.options, run.guidance = dict(options), 1.0
    run.height, run.width = bridge._size(height, width, run.options)
    run.scheduler = copy.deepcopy(bridge.pipeline.scheduler)
    with torch.no_grad():
        run.text = bridge.encode(run.prompts, **run.options)
        bridge.adapter.condition(run)
    flow, kind = _is_flow(run.scheduler), run.scheduler.config.get("prediction_type", "epsilon")

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator | None) -> Loss:
        clean, text = batch["latents"], run.text.rows(batch["row"].long())
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        shape = (len(clean), *[1] * (clean.ndim - 1))
        if flow:
            sigma = torch.randn(shape, generator=generator, device=clean.device).sigmoid()
            alpha, times, target = 1 - sigma, 1000 * sigma.flatten(), noise - clean
        else:
            levels = run.scheduler.alphas_cumprod.to(clean.device)
            times = torch.randint(len(levels), (len(clean),), generator=generator, device=clean.device)
            alpha, sigma = (root.view(shape) for root in (levels[times].sqrt(), (1 - levels[times]).sqrt()))
            target = {"epsilon": noise, "sample": clean}.get(kind, alpha * noise - sigma * clean)
        predicted = bridge.adapter.predict(run, alpha * clean + sigma * noise, times, text).float()
        error = (predicted - target).square().mean()
        return error, {"mse": error.detach()}

    return loss


def finetune(
    bridge: Any, latents: Tensor, prompts: Sequence[str], steps: int, batch_size: int = 16, lr: float = 1e-5,
    seed: int = 0, **options: Any,
) -> Any:  # fmt: skip
    """Trains all weights of the bridge's denoiser in place on latents (n, ...) and their prompts (n); the denoiser.

    options: as for `denoising_loss`.
    """
    denoiser, loss = bridge.adapter.denoiser.requires_grad_(True), denoising_loss(bridge, prompts, **options)
    data = Pool({"latents": latents.cpu().numpy(), "row": np.arange(len(latents))}, batch_size)
    fit(denoiser, loss, data, steps=steps, lr=lr, schedule="constant", ema=None, precision="no", seed=seed,
        progress=False)  # fmt: skip
    return denoiser.eval().requires_grad_(False)


def only(model: nn.Module, layers: Collection[str] = QUERIES_AND_KEYS) -> dict[str, nn.Parameter]:
    """Lets only the parameters of layers with these names train (by default the projections to queries and keys of all
    attention); name -> parameter. Raises ShowtellError where the model has none.
    """
    found = {name: p for name, p in model.named_parameters() if set(name.split(".")) & set(layers)}
    if not found:
        raise ShowtellError(f"this model has no layers called {', '.join(layers)}.")
    model.requires_grad_(False)
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found
