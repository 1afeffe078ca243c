"""Stable Diffusion 1.x and 2.x: a UNet whose cross-attention reads the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection

from ..errors import ShowtellError
from ..pictures import to_pil
from .adapter import Adapter
from .base import Run, Text
from .layout import Grid, TokenLayout, attention_calls, halvings
from .words import Piece


def unet_calls(unet: Any) -> list[tuple[str, str]]:
    """The attention calls of a UNet2DConditionModel: down, middle, up; self and cross in turn.

    A picture prompt (IP-Adapter) is attended right after the text, where nobody looks.
    """

    def kind(name: str, module: Any) -> str:
        return "cross" if module.is_cross_attention else "self"

    named = dict(getattr(unet, "_orig_mod", unet).named_modules())  # torch.compile wraps the module
    calls: list[tuple[str, str]] = []
    for call in attention_calls(unet, kind, order=("down_blocks", "mid_block", "up_blocks")):
        calls += [call, *[(call[0], "other")] * _picture_calls(named[call[0]].processor)]
    return calls


def _picture_calls(processor: Any) -> int:
    scales = getattr(processor, "scale", None) if "IPAdapter" in type(processor).__name__ else None
    return sum(any(one) if isinstance(one, list) else bool(one) for one in scales or [])


def unet_layout(adapter: Adapter, run: Run) -> TokenLayout:
    _, height, width = adapter.latent_shape(run)
    unet = getattr(adapter.denoiser, "_orig_mod", adapter.denoiser)
    last = len(unet.down_blocks) - 1
    grids: dict[int, Grid] = {}
    for level in range(last + 1):
        blocks = [unet.down_blocks[level], unet.up_blocks[last - level], *([unet.mid_block] if level == last else [])]
        if any(hasattr(block, "attentions") for block in blocks):  # some levels are convolutions alone
            grids |= list(halvings(height, width, level + 1).items())[-1:]
    return TokenLayout(unet_calls(adapter.denoiser), grids)


def predict_with_unet(
    adapter: Adapter, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text, added: Any = None
) -> torch.Tensor:
    """The UNet's prediction; distilled UNets take the guidance scale as an embedding.

    added: `added_cond_kwargs`. In `text.extra`: "channels" (n, c, height, width) follow the latents' own,
    "picture_0", ... are the embeddings of picture prompts. `run.own["residuals"]`: a further network, called
    with (run, latents, timestep, text, added), whose answer becomes keywords of the UNet's call.
    """
    size = adapter.denoiser.config.time_cond_proj_dim
    embedding = None
    if size is not None:
        scales = torch.tensor(run.guidance - 1).repeat(len(latents))
        embedding = adapter.pipeline.get_guidance_scale_embedding(scales, embedding_dim=size).to(latents)
    further = run.own.get("residuals")
    residuals = {} if further is None else further(run, latents, timestep, text, added)
    if "channels" in text.extra:
        latents = torch.cat([latents, text.extra["channels"]], dim=1)
    pictures = [tensor for name, tensor in text.extra.items() if name.startswith("picture_")]
    return adapter.denoiser(
        latents,
        timestep,
        encoder_hidden_states=text.tokens,
        timestep_cond=embedding,
        added_cond_kwargs={**(added or {}), "image_embeds": pictures} if pictures else added,
        return_dict=False,
        **residuals,
    )[0]


def add_pictures(adapter: Adapter, run: Run) -> None:
    """Embeds the picture prompts, one per sample, for every IP-Adapter (arXiv 2308.06721) that is loaded."""
    layers = getattr(adapter.denoiser.encoder_hid_proj, "image_projection_layers", ())
    given = run.options.get("ip_adapter_image")
    if given is None and layers:
        raise ShowtellError("this pipeline has an IP-Adapter loaded: give ip_adapter_image, or unload it.")
    if given is not None and not layers:
        raise ShowtellError("ip_adapter_image needs an IP-Adapter: call pipeline.load_ip_adapter first.")
    for index, layer in enumerate(layers):
        hidden = not isinstance(layer, ImageProjection)
        shown, blank = adapter.pipeline.encode_image(to_pil(given), adapter.device, 1, hidden)
        name, dtype = f"picture_{index}", run.text.tokens.dtype
        run.text = with_extra(run.text, name, shown[:, None].to(dtype))
        if run.negative is not None:
            run.negative = with_extra(run.negative, name, blank[:, None].to(dtype))


def with_extra(text: Text, name: str, tensor: torch.Tensor) -> Text:
    """`text` with one more tensor that is batched like it."""
    return replace(text, extra={**text.extra, name: tensor})


def rescaled(adapter: Adapter, run: Run, guided: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """The guided prediction with its spread pulled back to the conditional one's (arXiv 2305.08891, section
    3.4).
    """
    rescale = run.options.get("guidance_rescale", 0.0)
    if rescale > 0.0 and adapter.guided(run):
        # Here, since the module takes a second to import, and the embedded bridge shares the rest of this one.
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        return rescale_noise_cfg(guided, conditional, guidance_rescale=rescale)
    return guided


class StableDiffusion(Adapter):
    options = frozenset({"eta", "guidance_rescale", "clip_skip", "timesteps", "sigmas", "ip_adapter_image"})
    text_options = frozenset({"clip_skip"})

    def pieces(self, **options: Any) -> list[Piece]:
        return [Piece(self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length)]

    def encode(self, prompts: Sequence[str | None], negative: bool, **options: Any) -> Text:
        texts = [prompt or "" for prompt in prompts]
        # The pipeline reads negative prompts without clip_skip.
        skip = None if negative else options.get("clip_skip")
        if skip is not None:
            return Text(self._skipping(texts, skip))
        tokens, _ = self.pipeline.encode_prompt(texts, self.device, 1, False)
        return Text(tokens)

    def _skipping(self, texts: list[str], skip: int) -> torch.Tensor:
        # Not left to the pipeline, which looks for a `text_model` that newer transformers do not have.
        encoder, tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        limit = tokenizer.model_max_length
        inputs = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = inputs.attention_mask.to(self.device) if masked else None
        outputs = encoder(inputs.input_ids.to(self.device), attention_mask=mask, output_hidden_states=True)
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(outputs.hidden_states[-(skip + 1)])

    def guided(self, run: Run) -> bool:
        return run.guidance > 1 and self.denoiser.config.time_cond_proj_dim is None

    def condition(self, run: Run) -> None:
        add_pictures(self, run)

    def predict(self, run: Run, latents: torch.Tensor, timestep: torch.Tensor, text: Text) -> torch.Tensor:
        return predict_with_unet(self, run, latents, timestep, text)

    def guide(self, run: Run, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return rescaled(self, run, super().guide(run, outputs), outputs["text"])

    def decode(self, run: Run, latents: torch.Tensor, output_type: str) -> Any:
        pixels = self.pipeline.vae.decode(self.unscale(latents), return_dict=False)[0]
        pixels, flagged = self.pipeline.run_safety_checker(pixels, self.device, latents.dtype)
        keep = [True] * len(pixels) if flagged is None else [not bad for bad in flagged]
        return self.pipeline.image_processor.postprocess(pixels, output_type=output_type, do_denormalize=keep)

    def layout(self, run: Run) -> TokenLayout:
        return unet_layout(self, run)
