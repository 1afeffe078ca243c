"""`showtell train NAME`: the recipe of every packaged checkpoint, and of your own on a folder of captioned images.

A recipe makes a model and its data, hands both to the trainer, and writes the averaged weights in bfloat16 in the
Hugging Face layout, with a card that says how they came about.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from showtell import files
from showtell.data.mix import SPECIAL, Codec, Mixture, corpus
from showtell.data.signal import to_pixels, to_signal
from showtell.errors import ShowtellError
from showtell.train import objectives
from showtell.train.bases import codes, diffusion, seeing, tokens, video
from showtell.train.bases.pool import KINDS, make_pool, packaged_vae
from showtell.train.batches import Stream
from showtell.train.recipe import MUON, Batch, Recipe
from showtell.train.starting import start_from
from showtell.train.trainer import TrainResult, fit

# --- data ------------------------------------------------------------------------------------------------------------


def packaged_codec() -> Codec:
    """The tokenizer that comes with the package (folder weights/tokenizer)."""
    from transformers import PreTrainedTokenizerFast

    from showtell.weights import folder

    return Codec(PreTrainedTokenizerFast.from_pretrained(folder("tokenizer")))


def pictures(source: str) -> Mixture:
    """As `mixture`, of pictures: what a denoiser learns."""
    return mixture(source, pictures=True)


def mixture(source: str, **options: Any) -> Mixture:
    """The mixture that `--data` names: "scenes", "emoji", both with a comma, or a folder of captioned images."""
    names = source.split(",")
    if set(names) <= {"scenes", "emoji"}:
        from showtell.data.emoji import load

        emoji = load() if "emoji" in names else None
        return Mixture(packaged_codec(), scenes="scenes" in names, emoji=emoji, **options)
    from showtell.data.folder import load_folder

    return Mixture(packaged_codec(), scenes=False, pairs=load_folder(source), **options)


def _scenes(source: str) -> Callable[[np.random.Generator, int], Batch]:
    """Images and targets for parsers: scenes, some of them spoilt or out of the autoencoder, as generated images are;
    and emoji, where there is nothing to find."""
    from showtell.data.degrade import degrade
    from showtell.data.emoji import augment, load
    from showtell.data.mix import scenes_like
    from showtell.data.targets import targets
    from showtell.world import draw

    others = load().images if "emoji" in source else np.empty((0, 64, 64, 3), np.uint8)
    vae = packaged_vae()

    def make(rng: np.random.Generator, size: int) -> Batch:
        count = size - size // 8 * bool(len(others))
        scenes = scenes_like(rng, count)
        images = degrade(draw(scenes), rng, share=0.4)
        made = np.flatnonzero(rng.random(count) < 0.15)
        images[made] = through(vae, images[made])
        found = targets(scenes)
        if count < size:
            rows = rng.integers(len(others), size=size - count)
            images = np.concatenate([images, augment(others[rows], rng)])
            found = {name: np.concatenate([value, np.zeros_like(value[: len(rows)])]) for name, value in found.items()}
        return {"image": images} | found

    return make


@torch.no_grad()
def through(vae: Any, images: np.ndarray) -> np.ndarray:
    """uint8 pictures as the autoencoder gives them back."""
    if not len(images):
        return images
    latents = vae.encode(to_signal(torch.from_numpy(images))).latent_dist.mode()
    return to_pixels(vae.decode(latents).sample)


def _pictures(source: str) -> Callable[[np.random.Generator, int], Batch]:
    """Scenes and emoji, half and half, for the autoencoder."""
    from showtell.data.emoji import augment, load
    from showtell.data.mix import scenes_like
    from showtell.world import draw

    emoji = load().images

    def make(rng: np.random.Generator, size: int) -> Batch:
        rows = rng.integers(len(emoji), size=size // 2)
        shifted = augment(emoji[rows], rng, noise=0.0)
        return {"image": np.concatenate([draw(scenes_like(rng, size - size // 2)), shifted])}

    return make


# --- models ----------------------------------------------------------------------------------------------------------


def _flow() -> Any:
    from diffusers import AutoencoderKL

    from showtell.nets.flow_lm import FlowLM, FlowLMConfig, small_vae
    from showtell.weights import folder

    vae = AutoencoderKL.from_pretrained(folder("vae"), use_safetensors=True)
    sizes = small_vae() | {name: vae.config[name] for name in ("scaling_factor", "shift_factor")}
    seeing = _eye()
    names = ("trunk", "width", "depth", "letters", "closer")
    eye = {} if seeing is None else {name: getattr(seeing.config, name) for name in names}
    model = FlowLM(FlowLMConfig(vocab_size=len(packaged_codec().tokenizer), vae=sizes, eye=eye))
    model.vae.load_state_dict(vae.state_dict())
    if seeing is not None:
        model.eye.load_state_dict(seeing.state_dict())
    model.eye.requires_grad_(False)
    return _plain(model)


def _eye() -> Any:
    """The parser that a FlowLM sees with: the judge's network; None where there is none."""
    from showtell.nets.scene_parser import SceneParser
    from showtell.weights import folder

    with suppress(ShowtellError):
        return SceneParser.from_pretrained(folder("judge"))
    return None


def _reading() -> Any:
    """A FlowLM whose language model alone is trained: its eye is a parser already."""
    model = _flow()
    model.dit.requires_grad_(False)
    model.grounding.requires_grad_(False)
    return model


def _drawing() -> Any:
    """A FlowLM whose denoiser alone is trained; its language model is the packaged one, or that of --init."""
    from safetensors.torch import load_file

    from showtell.weights import folder

    model = _flow()
    with suppress(ShowtellError):
        known, own = load_file(folder("bridge") / "model.safetensors"), model.state_dict()
        model.load_state_dict(own | {n: v for n, v in known.items() if n in own and own[n].shape == v.shape})
    model.requires_grad_(False)
    model.dit.requires_grad_(True)
    model.grounding.requires_grad_(True)
    return model


def _plain(model: Any) -> Any:
    """Plain attention where training on a CPU: its backward pass is faster than the fused kernel's."""
    if not torch.cuda.is_available():
        model.backbone.config._attn_implementation = "eager"
    return model


def _parser(**sizes: Any) -> Any:
    from showtell.nets.scene_parser import SceneParser, SceneParserConfig

    return SceneParser(SceneParserConfig(**sizes))


def _judge() -> Any:
    return _parser(closer=(32, 48, 64))


def _vae() -> Any:
    from diffusers import AutoencoderKL

    from showtell.nets.flow_lm import small_vae

    return AutoencoderKL(**small_vae())


@torch.no_grad()
def _unit_latents(model: Any) -> None:
    """Notes in the config what makes latents zero-mean and of unit variance (arXiv 2112.10752, section 4.3.2)."""
    images = _pictures("scenes,emoji")(np.random.default_rng(2**32), 512)["image"]
    latents = model.encode(to_signal(torch.from_numpy(images))).latent_dist.mean
    shift = float(latents.mean())
    model.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=shift)


_BOTH = ("scenes,emoji", "scenes", "emoji", "FOLDER")
RECIPES: dict[str, Recipe] = {
    "bridge-words": Recipe(
        "both directions, first half: a language model that reads pictures, plans and tells",
        _reading, mixture, objectives.reading_objective, 20000, 256, 1e-3, True, _BOTH,
    ),
    "bridge": Recipe(
        "both directions, second half: a denoiser that draws what the language model says (--init: of bridge-words)",
        _drawing, pictures, objectives.drawing_objective, 10000, 64, 1e-3, True, _BOTH, options=MUON,
    ),
    "judge": Recipe(
        "scene parser, convolutional, with a closer look at each object; the bridge's eye", _judge, _scenes,
        objectives.parser_objective, 12000, 64, 1e-3, sources=("scenes,emoji", "scenes"),
    ),
    "judge2": Recipe(
        "scene parser, U-shaped, another draw of scenes",
        lambda: _parser(trunk="unet", width=64), _scenes, objectives.parser_objective, 12000, 256, 1e-3,
        sources=("scenes,emoji", "scenes"),
    ),
    "vae": Recipe(
        "KL autoencoder: 64x64 pixels to 16x16 latents of 4 channels",
        _vae, _pictures, objectives.autoencoder_objective, 6000, 16, 2e-3, sources=("scenes,emoji",),
        finish=_unit_latents,
    ),
    **diffusion.RECIPES,
    **seeing.RECIPES,
    **codes.RECIPES,
    **tokens.RECIPES,
    **video.RECIPES,
}  # fmt: skip
_MADE: dict[str, Callable[[Path], Any]] = {  # what is not trained by steps
    "tokenizer": lambda target: train_packaged_tokenizer(target),
    "emoji-eye": lambda target: fit_emoji_eye(target),
    "pool": lambda target: [make_pool(packaged_vae(), kind) for kind in KINDS],
}
NAMES = (*_MADE, *RECIPES)


def run(
    name: str,
    data: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    batch: int | None = None,
    init: str | Path | None = None,
    seed: int = 0,
    workers: int = 0,
    **options: Any,
) -> TrainResult | None:
    """Trains recipe `name` into `out` (default: ./NAME); options go to `showtell.train.trainer.fit`.

    data: one of the recipe's sources. init: a folder of weights to start from. Checkpoints go to OUT.training.
    Raises ShowtellError for unknown names or sources, and weights that are missing or of another size;
    KeyboardInterrupt where a signal stopped it (resume=True goes on).
    """
    if name not in NAMES:
        import difflib

        near = difflib.get_close_matches(name, NAMES, 3) or NAMES
        raise ShowtellError(f"unknown recipe {name!r}; did you mean: {', '.join(near)}?")
    target = Path(out or name)
    if name in _MADE:
        _MADE[name](target)
        return None
    recipe = RECIPES[name]
    source = data or recipe.sources[0]
    if source not in recipe.sources and not ("FOLDER" in recipe.sources and Path(source).is_dir()):
        raise ShowtellError(f"{name} cannot train on {source!r}; give one of: {', '.join(recipe.sources)}")
    seed = seed + 1_000_000 * (name == "judge2")  # the second judge sees other scenes
    torch.manual_seed(seed)
    model = recipe.model()
    if init is not None:
        start_from(model, Path(init))
    stream = Stream(recipe.data(source), batch or recipe.batch, workers=workers)
    work = target.with_name(target.name + ".training")
    options = {**recipe.options, **options}
    result = fit(
        model, recipe.loss, stream, steps=steps or recipe.steps, lr=options.pop("lr", recipe.lr), out=work,
        resume=resume, seed=seed, save_every=options.pop("save_every", 1000),
        config={"recipe": name, "data": source, "init": str(init)}, **options,
    )  # fmt: skip
    card = {"recipe": name, "data": source, "seed": seed, "batch": stream.batch_size, "steps": result.steps,
            "samples": result.samples, "seconds": round(result.seconds), "init": init and str(init)}  # fmt: skip
    if recipe.finish is not None:
        recipe.finish(result.model)
    save(result.model, target, recipe, card)
    return result


def save(model: Any, target: Path, recipe: Recipe, card: dict[str, Any]) -> None:
    """Writes the checkpoint in bfloat16 with its card, and tokenizer and word list for models of text."""
    model = model.to("cpu", torch.bfloat16)
    model.save_pretrained(target)
    files.share(target)
    if recipe.text:
        from showtell.weights import folder

        for path in folder("tokenizer").iterdir():
            files.write(target / path.name, path.read_bytes())
    card |= {"about": recipe.about, "parameters": sum(p.numel() for p in model.parameters())}
    files.write(target / "card.json", json.dumps(card, indent=1) + "\n")


def train_packaged_tokenizer(target: Path) -> None:
    """The tokenizer of the embedded models, and the list of the words that they know."""
    from showtell.data.emoji import load
    from showtell.data.text import known_words, train_tokenizer

    texts, items = list(corpus()), load().items
    english = [item.names["en"] for item in items]
    names = [name for item in items for code in ("en", "zh", "es") if (name := item.names.get(code))]
    tokenizer = train_tokenizer([*texts, *names * 8], vocab_size=2048, special=SPECIAL)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(target)
    forms = {word.lower(): word for word in known_words(english)}  # nothing else in the corpus has capitals
    known = [forms.get(word, word) for word in known_words(map(str.lower, [*texts, *names]))]
    files.write(target / "words.json", json.dumps(sorted(known), ensure_ascii=False))


def fit_emoji_eye(target: Path, draws: int = 6, seed: int = 0) -> None:
    """The emoji retrieval model: a linear discriminant between all emoji, each shifted, scaled and noisy `draws` times.
    It has a closed form and takes seconds."""
    from showtell.data.degrade import degrade
    from showtell.data.emoji import augment, load
    from showtell.nets.image_encoder import ImageEncoder, ImageEncoderConfig, discriminant

    images, rng = load().images, np.random.default_rng(seed)
    model = ImageEncoder(ImageEncoderConfig())

    def flat(pictures: np.ndarray) -> np.ndarray:
        return model.pixels(to_signal(torch.from_numpy(pictures))).double().numpy()

    clean = flat(images)
    within = np.zeros((clean.shape[1],) * 2)
    for _ in range(draws):
        apart = flat(degrade(augment(images, rng), rng, share=0.5)) - clean
        within += apart.T @ apart / (draws * len(clean))
    vectors = discriminant(clean - clean.mean(axis=0), within, model.config.embedding_size)
    with torch.no_grad():
        model.project.weight.copy_(torch.from_numpy(vectors).T)
        model.project.bias.copy_(torch.from_numpy(-clean.mean(axis=0) @ vectors))
    model.to(torch.bfloat16).save_pretrained(target)
    files.share(target)
    card = {"recipe": "emoji-eye", "data": "emoji", "seed": seed, "samples": draws * len(clean)}
    card |= {"about": "emoji retrieval model, a linear discriminant", "parameters": model.project.weight.numel()}
    files.write(target / "card.json", json.dumps(card, indent=1) + "\n")
