"""Show-o: One Single Transformer to Unify Multimodal Understanding and Generation.
Xie, Mao, Bai, Zhang, Wang, Lin, Gu, Chen, Yang, Shou, 2024, arXiv 2408.12528

One language model writes words from left to right and fills in the tokens of a picture in a few passes: words see what
is before them, image tokens besides see all of their own image ("omni-attention"). What is filled in may be a whole
picture, a hole in one, or what lies beside it.

Faithful: the attention, both losses, the cosine of the share that is hidden, empty prompts in a tenth of the cases,
guidance, 12 passes in which the most confident tokens are kept, holes without any tuning. The mask and the decoder are
`nets.segments.omni_mask` and `bridges.omni`; `train.unified.fill_loss` is the loss.
No library has a class for the released checkpoints; a model of `nets.image_text_lm` stands for them.
Scaled down: begun from nothing instead of from Phi-1.5, so no normalised queries, no stages and no flow of plain text;
pictures as 8x8 tokens of a codebook that is exact for its world; questions in the place of captions; Muon,
which learns from fewer pictures than AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from showtell.bridges.image_text_lm import bridge_of
from showtell.bridges.omni import OmniDecoder, omni_bridge
from showtell.errors import ShowtellError
from showtell.measure.cost import counted
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.scores import complete, score_images
from showtell.pictures import to_pil
from showtell.steer.boxes import grown
from showtell.steer.decoding import InGroups
from showtell.steer.regions import Box
from showtell.train.batches import Pool
from showtell.train.trainer import QUICK, fit
from showtell.train.unified import FEW, World, fill_loss, miniature, token_loss
from showtell.world import Scene, draw
from showtell.world.draw import boxes

EXAMPLE = """
import showtell
from showtell.papers.unify.show_o import extend, inpaint

bridge = showtell.load("runs/show-o")                                           # saved by the bridge of such a model
[image] = bridge.generate("a red circle", seed=0)                               # 12 passes
[answer] = bridge.answer(image, "what colour is the circle?")
[other] = inpaint(bridge, [image], [(0.0, 0.0, 0.5, 0.5)], ["a blue star"], seed=0)
[wider] = extend(bridge, [image], ["a red circle"], right=0.25, seed=0)         # a quarter further to the right
"""


def tokens_of(bridge: Any, images: Any) -> Tensor:
    """The tokens (n, height, width) of pictures. Raises ShowtellError where the bridge does not fill in tokens."""
    decoder = getattr(bridge, "decoder", None)
    if not isinstance(decoder, OmniDecoder):
        raise ShowtellError(f"{bridge.name} does not fill in image tokens; take a masked image-text model.")
    model, side = decoder.model, decoder.model.vq.config.sample_size
    pixels = decoder.processor.images.preprocess(to_pil(images), height=side, width=side)
    return model.encode(pixels.to(model.device)).view(len(images), *decoder.grid(None, None))


def inpaint(bridge: Any, images: Any, holes: Sequence[Box], prompts: Sequence[str], **more: Any) -> list[Any]:
    """Pictures as their prompts say, filled in anew where a token's middle lies in the picture's box, kept elsewhere.

    holes: (x0, y0, x1, y1) in [0, 1] each. more: as for `bridge.generate`.
    """
    tokens = tokens_of(bridge, images)
    if len(holes) != len(tokens):
        raise ShowtellError(f"{len(tokens)} pictures but {len(holes)} boxes; give one box per picture.")
    rows, columns = (torch.arange(n) / n + 0.5 / n for n in tokens.shape[1:])
    for token, (x0, y0, x1, y1) in zip(tokens, holes, strict=True):
        hole = ((rows >= y0) & (rows <= y1))[:, None] & ((columns >= x0) & (columns <= x1))
        token[hole.to(token.device)] = bridge.decoder.codes_count
    return bridge.generate(list(prompts), latents=tokens, **more)


def extend(bridge: Any, images: Any, prompts: Sequence[str], right: float = 0.25, **more: Any) -> list[Any]:
    """Pictures moved to the left by that share of their width, and filled in where they end."""
    tokens = tokens_of(bridge, images)
    count = round(right * tokens.shape[2])
    if not 0 < count < tokens.shape[2]:
        raise ShowtellError(f"right={right} moves {count} of {tokens.shape[2]} columns; use a share between them.")
    new = torch.full_like(tokens[:, :, :count], bridge.decoder.codes_count)
    return bridge.generate(list(prompts), latents=torch.cat([tokens[:, :, count:], new], dim=2), **more)


SCENES, STEPS, BATCH, PASSES, MARGIN = 9000, 360, 48, 12, 0.05
WORLD = World(8)
HOW: dict[str, tuple[Any, Any]] = {  # name -> (loss, bridge)
    "show-o": (fill_loss, omni_bridge),
    "token by token": (token_loss, bridge_of),
    "causal images": (partial(fill_loss, omni=False), partial(omni_bridge, omni=False)),
}


def experiment(lab: Lab) -> list[Comparison]:
    @cache
    def pool() -> Pool:
        scenes = WORLD.scenes(SCENES, 0, objects=(1, 2), **FEW)
        return WORLD.mixed(scenes, BATCH, 2 * len(scenes) // 3)

    @cache
    def bridge(name: str, seed: int) -> Any:
        loss, made = HOW[name]

        def learn(model: Any, seed: int) -> None:
            fit(model, loss, pool(), steps=STEPS, seed=seed, **QUICK)

        blank = partial(miniature, WORLD, masked=loss is not token_loss)
        return made(lab.network(name, blank, learn, seed, shared=True), WORLD.tokenizer)

    scenes = WORLD.scenes(lab.n, lab.seed, lab.split, objects=2, **FEW)
    prompts, questions = [scene.caption() for scene in scenes], WORLD.questions(scenes, lab.seed)

    @cache
    def drawn(name: str, passes: int | None, seed: int) -> list[Any]:
        if name != "token by token":
            return bridge(name, seed).generate(prompts, seed=seed, num_inference_steps=passes)
        return bridge(name, seed).generate(prompts, seed=seed, using=[InGroups(passes)] if passes else [])

    def answered(name: str, seed: int) -> np.ndarray:
        return WORLD.answered(bridge(name, seed), scenes, questions)

    def passes(name: str, seed: int) -> np.ndarray:
        own = bridge(name, seed)
        with counted([own.decoder.language_model]) as calls:
            own.generate(prompts[:1], seed=seed)
        return np.full(len(scenes), len(calls), dtype=float)

    # Another thing in the place of each scene's last; its hole takes all patches of a thing and no others.
    wanted = [WORLD.replaced(scene, other) for scene, other in zip(scenes, [*scenes[1:], scenes[0]], strict=True)]
    holes = [grown(tuple(boxes(scene)[-1].tolist()), MARGIN) for scene in scenes]
    texts = [scene.caption() for scene in wanted]

    def filled(hole: bool, seed: int) -> list[Any]:
        own = [box if hole else (2.0, 2.0, 2.0, 2.0) for box in holes]
        return inpaint(bridge("show-o", seed), list(draw(scenes)), own, texts, seed=seed)

    def judged(of: Sequence[Scene]) -> Any:
        return partial(score_images, complete, scenes=of)

    both = ("show-o", "token by token")
    return [
        lab.compare(
            {
                "show-o": partial(drawn, "show-o", PASSES),
                "token by token": partial(drawn, "token by token", None),
                "token by token in groups": partial(drawn, "token by token", PASSES),
                "causal images": partial(drawn, "causal images", PASSES),
            },
            judged(scenes), name="things right", texts=prompts, control="causal images", trained=True,
            expect="show-o > token by token - 0.05, show-o > token by token in groups",
        ),
        lab.compare({name: partial(passes, name) for name in both}, expect="token by token >= 5 * show-o",
                    name="passes through the model"),
        lab.compare({name: partial(answered, name) for name in both}, expect="show-o > token by token - 0.03",
                    name="answers right", trained=True),
        lab.compare({"show-o": partial(filled, True), "no hole": partial(filled, False)}, judged(wanted),
                    expect="show-o > no hole", control="no hole", name="things right in a filled hole", texts=texts,
                    trained=True),
    ]  # fmt: skip
