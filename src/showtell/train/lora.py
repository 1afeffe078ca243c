"""LoRA (arXiv 2106.09685) on the attention of any diffusion bridge, by peft: several in one denoiser, one in use."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from showtell.errors import ShowtellError
from showtell.train.denoising import denoising_loss
from showtell.train.samples import latents_of, paired
from showtell.train.trainer import fit

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(bridge: Any, name: str, rank: int = 8, layers: Collection[str] = ATTENTION) -> None:
    """A new LoRA in the bridge's denoiser, which is then the one in use; it changes nothing yet."""
    from peft import LoraConfig, inject_adapter_in_model

    # Not `denoiser.add_adapter`, which some transformers of diffusers lack.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers))
    inject_adapter_in_model(config, bridge.adapter.denoiser, name)
    use_lora(bridge, name)


def lora_size(bridge: Any, layers: Collection[str] = ATTENTION, rank: int = 1) -> int:
    """How many numbers a LoRA of this rank would have on these layers of a denoiser that has none yet."""
    ends = tuple(f".{layer}" for layer in layers)
    found = [one.weight for name, one in bridge.adapter.denoiser.named_modules() if f".{name}".endswith(ends)]
    return rank * sum(weight.shape[0] + weight[0].numel() for weight in found)


def use_lora(bridge: Any, name: str | None) -> None:
    """Puts one of the denoiser's LoRAs in use, or none, which is the model as it was; only that one may train."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in bridge.adapter.denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(name is not None and name in module.lora_A)
            if name is not None and name in module.lora_A:
                module.set_adapter(name)


def merge_lora(bridge: Any, name: str) -> None:
    """Adds one of the denoiser's LoRAs to the weights that it changes, for good; no LoRA is left."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in bridge.adapter.denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(adapter_names=[name])
    recurse_remove_peft_layers(bridge.adapter.denoiser)


def lora_weights(bridge: Any, name: str) -> dict[str, Tensor]:
    """The LoRA's own weights by their names in the denoiser. Raises ShowtellError where there is none."""
    found = {key: value for key, value in bridge.adapter.denoiser.state_dict().items() if f".{name}." in key}
    if not found:
        raise ShowtellError(f"the denoiser has no LoRA called {name!r}; add one with add_lora")
    return found


def load_lora(bridge: Any, weights: Mapping[str, Tensor]) -> None:
    """Puts weights of `lora_weights` into LoRAs that were added before."""
    unknown = bridge.adapter.denoiser.load_state_dict(dict(weights), strict=False).unexpected_keys
    if unknown:
        raise ShowtellError(f"the denoiser has no place for {unknown[0]!r}; add the LoRA with add_lora, at its rank")


def train_lora(
    bridge: Any, name: str, pictures: Sequence[Any], prompts: Sequence[str], steps: int, batch_size: int = 32,
    lr: float = 1e-3, seed: int = 0, **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Trains a LoRA that was added to draw pictures (n) for their prompts (n); its weights. options: of `generate`."""
    denoiser = bridge.adapter.denoiser
    use_lora(bridge, name)
    data, loss = paired(latents_of(bridge, pictures), batch_size), denoising_loss(bridge, prompts, **options)
    fit(denoiser, loss, data, steps=steps, lr=lr, precision="no", seed=seed, progress=False)
    return lora_weights(bridge, name)


class Adapted:
    """A LoRA of a shared bridge as a model of its own; None is the bridge as it is."""

    def __init__(self, bridge: Any, name: str | None) -> None:
        self.bridge, self.name = bridge, name

    def generate(self, prompts: Any, **more: Any) -> list[Any]:
        use_lora(self.bridge, self.name)
        return self.bridge.generate(prompts, **more)
