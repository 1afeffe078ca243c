"""InstantStyle: Free Lunch towards Style-Preserving in Text-to-Image Generation.
Wang, Spinelli, Wang, Bai, Qin, Chen, 2024, arXiv 2404.02733

A picture prompt (IP-Adapter) carries content along with style. Two remedies without training: the content's text
embedding is subtracted from the picture's, as both live in CLIP's space, and the picture is let into those few blocks
that carry style.

Faithful: subtraction from the global embedding before the adapter's projection, weight 1; one block for style
(up_blocks.0.attentions.1 of SDXL, by default), optionally the one for layout (LAYOUT); strength as the pipeline's
`set_ip_adapter_scale` says. A block is switched off for the call alone: picture tokens of zero have zero values.
Scaled down: the miniature adapter is trained on the base beforehand, briefly; its style block is found by the sweep on
validation references. Where the pipeline's own text encoder does not share the picture's space (all but SDXL), a CLIP
bridge has to be given. What leaks has no control of its own: any single block lets little through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from showtell.bridges.base import Technique, spread
from showtell.bridges.stable_diffusion import with_extra
from showtell.errors import ShowtellError
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.styling import StyleTask
from showtell.steer.features import features
from showtell.train.ip_adapter import adapter_of, add_ip_adapter, train_ip_adapter
from showtell.train.samples import drawn, training_scenes

STYLE, LAYOUT = "up_blocks.0.attentions.1", "down_blocks.2.attentions.1"  # of SDXL
SCENES, TRAINING = 3000, 600  # of the experiment
EXAMPLE = """
import showtell
from showtell.papers.personalize.instantstyle import LAYOUT, STYLE, InstantStyle

bridge = showtell.load("stabilityai/stable-diffusion-xl-base-1.0")
[reference] = bridge.generate("a painting of a cat", seed=1)
bridge.pipeline.load_ip_adapter("h94/IP-Adapter", subfolder="sdxl_models", weight_name="ip-adapter_sdxl.bin")
style = InstantStyle(content="a cat")
[image] = bridge.generate("a dog on the table", ip_adapter_image=reference, using=[style], seed=0)
[image] = bridge.generate("a dog", ip_adapter_image=reference, using=[InstantStyle([STYLE, LAYOUT])], seed=0)
"""


def readers_of(unet: Any) -> dict[str, str]:
    """Cross-attention module -> the block that it is in."""
    names = [name for name, module in unet.named_modules() if getattr(module, "is_cross_attention", False)]
    return {name: name.split(".transformer")[0] for name in names}


def blocks_of(unet: Any) -> list[str]:
    """The blocks of a UNet that a picture prompt is read in, from the input to the output."""
    blocks = dict.fromkeys(readers_of(unet).values())
    return [name for part in ("down_blocks", "mid_block", "up_blocks") for name in blocks if name.startswith(part)]


class InstantStyle(Technique):
    """For calls with `ip_adapter_image`. blocks: where the picture is read; all of `blocks_of` change nothing.

    content: what is on the picture and should not come along, for all samples or one each; weight: of its subtraction.
    clip: a bridge of the CLIP that the picture is read with, where the model's pooled text is not of that space.
    """

    def __init__(
        self, blocks: Sequence[str] = (STYLE,), content: str | list[str] | None = None, weight: float = 1.0,
        clip: Any = None,
    ) -> None:  # fmt: skip
        self.blocks, self.content, self.weight, self.clip = list(blocks), content, weight, clip

    def start(self, run: Any, latents: torch.Tensor) -> None:
        known, picture = blocks_of(run.adapter.denoiser), run.text.extra.get("picture_0")
        if picture is None:
            raise ShowtellError("InstantStyle needs a picture prompt: load an IP-Adapter and give ip_adapter_image.")
        if missing := [name for name in self.blocks if name not in known]:
            raise ShowtellError(f"this model has no block {missing[0]!r}; it has: {', '.join(known)}.")
        if self.content is not None and self.weight:
            told = self.embedded(run, spread(self.content, len(run.prompts), "content"))
            if told is None or told.shape[-1] != picture.shape[-1] or picture.ndim != 3:
                raise ShowtellError("the text and the picture are not embedded in one space; give clip=... of it.")
            run.text = with_extra(run.text, "picture_0", picture - self.weight * told[:, None].to(picture))

    def embedded(self, run: Any, texts: list[str]) -> torch.Tensor | None:
        """The texts' global embeddings, (n, channels), not normalised."""
        return run.encode(texts).pooled if self.clip is None else self.clip.embed(texts=texts, unit=False)

    def around(self, run: Any) -> AbstractContextManager[None]:
        unet = run.adapter.denoiser
        closed = [name for name, block in readers_of(unet).items() if block not in self.blocks]
        return features(unet, before=dict.fromkeys(closed, _unseen))


def _unseen(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """What a cross-attention is given, with picture tokens that say nothing."""
    words, pictures = kwargs["encoder_hidden_states"]
    return args, {**kwargs, "encoder_hidden_states": (words, [torch.zeros_like(one) for one in pictures])}


def sweep(
    bridge: Any, references: Sequence[Any], prompts: Sequence[str], style: Callable[[Any], np.ndarray],
    leakage: Callable[[Any], np.ndarray], **more: Any,
) -> dict[str, float]:  # fmt: skip
    """Block -> style minus leakage with the picture in that block alone, the best first; more: of `generate`.

    style, leakage: images -> (n,), how much they have of the references' style and of their content.
    """
    found = {}
    for block in blocks_of(bridge.adapter.denoiser):
        images = bridge.generate(list(prompts), ip_adapter_image=references, using=[InstantStyle([block])], **more)
        found[block] = float(np.mean(style(images) - leakage(images)))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def experiment(lab: Lab) -> list[Comparison]:
    bridge, clip = lab.base("unet", fresh=True), lab.base("clip")
    add_ip_adapter(bridge.pipeline, clip)
    scenes = training_scenes(SCENES)

    def trained() -> Any:
        return train_ip_adapter(bridge, drawn(scenes), [scene.caption() for scene in scenes], TRAINING)

    adapter_of(bridge.pipeline.unet).load_state_dict(lab.trained("IP-Adapter", trained, steps=TRAINING))
    known, test = StyleTask(lab.validation("styles", max(2, lab.n // 4))), StyleTask(lab.prompts("styles"))
    ranked = list(sweep(bridge, known.references, known.texts, known.style, known.content_leaked))

    def arm(blocks: Sequence[str], scale: float = 1.0, content: Any = None, seed: int = 0) -> Any:
        bridge.pipeline.set_ip_adapter_scale(scale)
        using = [InstantStyle(blocks, content, clip=clip)]
        return bridge.generate(test.texts, ip_adapter_image=test.references, using=using, seed=seed)

    arms = {
        "instantstyle": lambda seed: arm(ranked[:1], content=test.content, seed=seed),
        "all blocks": lambda seed: arm(ranked, seed=seed),
        "all blocks at half scale": lambda seed: arm(ranked, 0.5, seed=seed),
        # Each seed takes another one, so that the control is not the runner-up alone.
        "another block": lambda seed: arm([ranked[1 + seed % (len(ranked) - 1)]], content=test.content, seed=seed),
    }
    expect = "instantstyle > all blocks, instantstyle > all blocks at half scale"
    return [
        lab.compare(arms, metric=test.style_without_content, expect=expect, control="another block"),
        lab.compare(arms, metric=test.content_leaked, expect="all blocks > instantstyle"),
    ]
