"""What the bases can do, in numbers and pictures: docs/bases.md, written by `showtell bases`.

Prompts and images come from the test split; a judge reads what is generated. Accuracy is the share of images that are
right as a whole: every object, attribute, count and relation; "complete" the share of objects that are there as they
should be. Bases sample as in experiments, see `showtell.measure.experiment.STEPS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from showtell import files, pictures
from showtell.errors import ShowtellError
from showtell.measure.both_ways import says
from showtell.measure.cost import spent
from showtell.measure.experiment import STEPS, Lab
from showtell.measure.prompts import PromptSet, prompt_set
from showtell.weights import folder
from showtell.world import draw, sample

PROMPTS = ("pairs", "same-shape", "objects-3-4", "bindings", "counts", "relations", "attributes", "words", "styles")
COMPLETE = "complete"
SHOWN = ("unet", "mmdit", "dit", "ar", "masked", "scalewise")  # that show what is said
NAMES = (*SHOWN, "editor", "video", "animator", "vlm", "clip", "vq", "vae")
Figures = dict[str, float]


def figures(name: str, n: int = 32, seed: int = 0) -> Figures:
    """What base `name` scores on n cases of everything that it can do: prompt set or task -> share that is right.

    "seconds" is the processor time of one image (clip, edit or answer) in a batch. "SET, complete": the share of
    objects that are there as they should be. "error" of vq and vae is the mean absolute difference of pixels in [0,
    255]. Raises ShowtellError for names that are none of NAMES, and bases not trained yet.
    """
    if name not in NAMES:
        raise ShowtellError(f"unknown base {name!r}; use one of: {', '.join(NAMES)}")
    if name in ("vq", "vae"):
        return _rebuilt(name, n, seed)
    bridge = _load(name)
    tasks: list[Callable[[Any, int, int], Figures]] = {
        "editor": [_edited], "video": [_moved], "animator": [_gone_on], "vlm": [_told], "clip": [_matched],
        "ar": [_shown, _told],
    }.get(name, [_shown])  # fmt: skip
    found: Figures = {}
    for task in tasks:
        found = task(bridge, n, seed) | found
    return found


def _load(name: str) -> Any:
    return Lab("bases").base(name)


def _shown(bridge: Any, n: int, seed: int) -> Figures:
    found: Figures = {}
    seconds = 0.0
    for name in PROMPTS:
        prompts = prompt_set(name, n, seed)
        start = spent()
        images = bridge.generate(prompts.texts, seed=seed)
        seconds += spent() - start
        found[name] = float(prompts.whole(images).mean())
        found[f"{name}, {COMPLETE}"] = float(prompts.complete(images).mean())
    return found | {"seconds": seconds / (n * len(PROMPTS))}


def _edited(bridge: Any, n: int, seed: int) -> Figures:
    prompts = prompt_set("edits", n, seed)
    start = spent()
    images = bridge.edit(prompts.sources, prompts.texts, seed=seed)
    seconds = (spent() - start) / n
    return {"edits": float(prompts.whole(images).mean()), "seconds": seconds}


def _moved(bridge: Any, n: int, seed: int) -> Figures:
    """The first frame is judged as an image of the scene; what moves has to move, and what rests to rest, as told."""
    prompts = prompt_set("motion", n, seed)
    start = spent()
    clips = bridge.animate(prompts.texts, seed=seed)
    seconds = (spent() - start) / n
    first, moves = prompts.whole([clip[0] for clip in clips]), prompts.motion(clips)
    return {"first frame": float(first.mean()), "motion": float(moves.mean()), "seconds": seconds}


def _gone_on(bridge: Any, n: int, seed: int) -> Figures:
    """From a drawn first frame: what moves has to move as told, and to end as what it began as."""
    prompts = prompt_set("motion", n, seed)
    start = spent()
    clips = bridge.animate(prompts.texts, prompts.renders, seed=seed)
    seconds = (spent() - start) / n
    moves, same = prompts.motion(clips), prompts.identity(clips)
    return {"motion": float(moves.mean()), "identity": float(np.nanmean(same)), "seconds": seconds}


def _told(bridge: Any, n: int, seed: int) -> Figures:
    prompts = prompt_set("pairs", n, seed)
    start = spent()
    captions = bridge.caption(prompts.renders)
    right = [says(text, scene) for text, scene in zip(captions, prompts.scenes, strict=True)]
    asked = [(image, each[0]) for image, each in zip(prompts.renders, prompts.questions, strict=True) if each]
    answers = bridge.answer([image for image, _ in asked], [each.question for _, each in asked])
    seconds = (spent() - start) / (n + len(asked))
    correct = [answer == each.answer for answer, (_, each) in zip(answers, asked, strict=True)]
    return {"captions": float(np.mean(right)), "questions": float(np.mean(correct)), "seconds": seconds}


def _matched(bridge: Any, n: int, seed: int) -> Figures:
    """Each image finds its caption among those of n scenes."""
    prompts: PromptSet = prompt_set("objects-3-4", n, seed)
    start = spent()
    chances = bridge.embed(prompts.renders) @ bridge.embed(texts=prompts.texts).T
    seconds = (spent() - start) / n
    return {"retrieval": float((chances.argmax(dim=1).numpy() == np.arange(n)).mean()), "seconds": seconds}


def _rebuilt(name: str, n: int, seed: int) -> Figures:
    import torch
    from diffusers import AutoencoderKL, VQModel

    from showtell.data.signal import to_signal

    model = {"vae": AutoencoderKL, "vq": VQModel}[name].from_pretrained(folder(name), torch_dtype=torch.float32)
    pixels = to_signal(torch.from_numpy(draw(sample(n, seed, "test"))))
    start = spent()
    with torch.no_grad():
        made = model(pixels)
    made = made[0] if isinstance(made, tuple) else made.sample
    seconds = (spent() - start) / n
    return {"error": float((made - pixels).abs().mean() * 127.5), "seconds": seconds}


# --- the page --------------------------------------------------------------------------------------------------------


def grid(name: str, seed: int = 0) -> Any:
    """A sheet of what base `name` makes of eight prompts of the test split; None for bases that make no images."""
    if name in ("vlm", "clip", "vq", "vae"):
        return None
    bridge = _load(name)
    if name == "editor":
        prompts = prompt_set("edits", 8, seed)
        edited = bridge.edit(prompts.sources, prompts.texts, seed=seed)
        return pictures.grid([image for pair in zip(prompts.sources, edited, strict=True) for image in pair], 8)
    if name in ("video", "animator"):
        moving = prompt_set("motion", 4, seed)
        clips = bridge.animate(moving.texts, *([moving.renders] if name == "animator" else []), seed=seed)
        return pictures.grid([frame for clip in clips for frame in clip], len(clips[0]))
    texts = [*prompt_set("pairs", 8, seed).texts, *prompt_set("objects-3-4", 8, seed).texts]
    return pictures.grid(bridge.generate(texts, seed=seed), 8)


def page(out: Path, names: Sequence[str] = (), n: int = 32, seed: int = 0) -> Path:
    """Writes the table as Markdown to `out`, and a sheet of pictures for each base into the folder beside it.

    Figures are kept in a JSON file in that folder, so that naming some bases measures those alone again.
    """
    beside = out.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    kept = beside / "figures.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in names or present():
        known[name] = {"n": n, "seed": seed, "figures": figures(name, n, seed)}
        sheet = grid(name, seed)
        if sheet is not None:
            pictures.save(sheet, beside / f"{name}.png")
        files.write(kept, json.dumps(known, indent=1) + "\n")
    return files.write(out, _markdown(known, beside))


def present() -> list[str]:
    """The bases that are there."""
    found = []
    for name in NAMES:
        try:
            folder(name)
            found.append(name)
        except ShowtellError:
            continue
    return found


def _card(name: str) -> dict[str, Any]:
    path = folder(name) / "card.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _markdown(known: dict[str, Any], beside: Path) -> str:
    rows = []
    for name in (name for name in NAMES if name in known):
        card, found = _card(name), dict(known[name]["figures"])
        seconds = found.pop("seconds")
        size = sum(file.stat().st_size for file in folder(name).rglob("*") if file.is_file()) / 1e6
        rows.append(
            f"| `{name}` | {card.get('about', '')} | {card.get('parameters', 0) / 1e6:.2f} M, {size:.1f} MB "
            f"| {card.get('samples', 0):,} | {card.get('seconds', 0) / 60:.0f} min | {_said(found)} | {seconds:.2f} |"
        )
    head = (
        "| base | what it is | size | training samples | training time | right as a whole | seconds each |\n"
        "|---|---|---|---|---|---|---|"
    )
    counts = {(entry["n"], entry["seed"]) for entry in known.values()}
    used = "; ".join(f"{n} cases of each kind, seed {seed}" for n, seed in sorted(counts))
    sheets = [
        f"## {name}\n\n![what {name} makes]({beside.name}/{name}.png)\n"
        for name in NAMES
        if name in known and (beside / f"{name}.png").exists()
    ]
    return "\n".join(
        [
            "# Bases",
            "",
            "The small checkpoints that every experiment starts from: standard classes of diffusers and transformers,",
            "64x64 pixels, trained by `showtell train NAME` and kept in bfloat16. This page is written by",
            "`showtell bases -o docs/bases.md`.",
            "",
            f"Measured on the test split, read by the judge: {used}. Time of one is processor time.",
            f"Diffusion bases take {STEPS} steps. For vq and vae: mean absolute error of pixels in [0, 255].",
            "",
            head,
            *rows,
            "",
            *_room(known),
            "Sheets: a row of prompts of two objects, a row of three or four; for the editor pairs, before and after;",
            "for video and animator a clip per row.",
            "",
            *sheets,
        ]
    )


def _said(found: Figures) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items() if not name.endswith(COMPLETE))


def _room(known: dict[str, Any]) -> list[str]:
    """A table of the bases that show what is said: what they get right of each prompt set."""
    rows = []
    for name in (name for name in SHOWN if name in known):
        found = known[name]["figures"]
        cells = (f"{found[task]:.2f} / {found.get(f'{task}, {COMPLETE}', float('nan')):.2f}" for task in PROMPTS)
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        "## What leaves room",
        "",
        "Pictures that are right as a whole / objects that are there with all that is said of them. A method can help",
        "only where there is something to gain, so choose the prompts of an experiment here.",
        "",
        f"| base | {' | '.join(PROMPTS)} |",
        f"|{'---|' * (len(PROMPTS) + 1)}",
        *rows,
        "",
    ]
