"""The command line: parses, calls, prints. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from showtell import ShowtellError, __version__

if TYPE_CHECKING:
    from showtell.bridges.base import Bridge

app = typer.Typer(
    name="showtell",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
world = typer.Typer(no_args_is_help=True, help="The synthetic world of scenes.")
app.add_typer(world, name="world")

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A folder, hub id or packaged base; the embedded one by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Shelf = Annotated[str | None, typer.Option(help="Only this shelf.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
Language = Annotated[str, typer.Option("--language", "-l", help="en, zh or es.")]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"showtell {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Show what you say, tell what you show: text to image, and back."""


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to show.", show_default=False)],
    number: Annotated[int, typer.Option("-n", min=1, help="Images of each prompt.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Several images become one grid.")] = Path("out.png"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; the model's own by default.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale; the model's own by default.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|WxH", help="Pixels, such as 64 or 96x64; the model's own by default."),
    ] = None,
    using: Annotated[
        list[str] | None,
        typer.Option("--using", metavar="SLUG[:key=value,...]", help="A paper's technique; may be given again."),
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Text to images."""
    from showtell import pictures

    for prompt in prompts:
        _said(prompt, "prompt", "say what the image should show")
    width, height = _size(size)
    _image_out(out)
    texts = [prompt for prompt in prompts for _ in range(number)]
    more: dict[str, Any] = {}
    if using:
        from showtell.papers.using import techniques

        more["using"] = techniques(using, texts)
    bridge = _load(model)
    start = perf_counter()
    images = bridge.generate(
        texts,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=height,
        width=width,
        **more,
    )
    seconds = perf_counter() - start
    columns = number if number > 1 and len(prompts) > 1 else None
    pictures.save(images[0] if len(images) == 1 else pictures.grid(images, columns), out)
    record = {
        "out": str(out),
        "prompts": prompts,
        "number": number,
        "seed": seed,
        **({"using": using} if using else {}),
        "seconds": round(seconds, 3),
    }
    noun = "image" if len(images) == 1 else "images"
    _print(record if as_json else f"{out}: {len(images)} {noun} in {seconds:.1f} s")


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    language: Language = "en",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Images to text: one sentence for each image."""
    _language(language)
    pixels = _images(images)
    captions = _load(model).caption(pixels, language=language)
    if as_json:
        _print([{"image": str(path), "caption": text} for path, text in zip(images, captions)])
    else:
        for path, text in zip(images, captions):
            _print(text if len(images) == 1 else f"{path}: {text}")


@app.command()
def answer(
    image: ImageFile,
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Answer a question about an image."""
    _said(question, "question", "ask something about the image")
    pixels = _images([image])
    [text] = _load(model).answer(pixels, [question])
    _print({"image": str(image), "question": question, "answer": text} if as_json else text)


@app.command()
def edit(
    image: ImageFile,
    instruction: Annotated[str, typer.Argument(help="What to change.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the edited image.", show_default=False)],
    seed: Seed = 0,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Change an image as an instruction says."""
    from showtell import pictures

    _said(instruction, "instruction", "say what to change")
    pixels = _images([image])
    _image_out(out)
    [edited] = _load(model).edit(pixels, [instruction], seed=seed)
    pictures.save(edited, out)
    record = {"image": str(image), "instruction": instruction, "out": str(out), "seed": seed}
    _print(record if as_json else str(out))


@app.command()
def attention(
    prompt: Annotated[str, typer.Argument(help="What to show.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The sheet of heat maps.")] = Path("attention.png"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; the model's own by default.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Where the image attends to each word of its prompt: one heat map for every word."""
    from showtell import pictures

    _said(prompt, "prompt", "say what the image should show")
    _image_out(out)
    bridge = _load(model)
    from showtell.measure.heatmaps import word_sheet
    from showtell.steer.segment import word_maps

    image, maps = word_maps(bridge, prompt, seed=seed, num_inference_steps=steps)
    pictures.save(word_sheet(image, maps), out)
    words = [word for word, _ in maps]
    record = {"out": str(out), "prompt": prompt, "seed": seed, "words": words}
    _print(record if as_json else f"{out}: {len(words)} words, {', '.join(words)}")


@app.command()
def score(
    image: ImageFile,
    text: Annotated[str, typer.Argument(help="What it should show.", show_default=False)],
    as_json: Json = False,
) -> None:
    """How well an image shows a text; for a caption of the world also which parts of it hold."""
    import showtell

    _said(text, "text", "say what the image should show")
    pixels = _images([image])
    with _uncollected():
        _quiet()
        judge = showtell.score
    [value] = judge(pixels, [text])
    scene = _scene_or_none(text)
    parts: Mapping[str, Any] | None = None
    if scene is not None:
        from showtell.measure.judge import scene_accuracy

        parts = scene_accuracy(pixels, [scene]).to_dict()
    if as_json:
        _print({"image": str(image), "text": text, "score": float(value), "scene": parts})
    else:
        _table(["measure", "value"], [("score", f"{value:.3f}"), *_flat(parts or {})])


@world.command("sample")
def world_sample(
    number: Annotated[int, typer.Option("-n", min=1, help="How many scenes.")] = 16,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Draw them all as one grid.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write scenes and captions as a JSON list.")] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or unseen.")] = "train",
    objects: Annotated[
        str | None, typer.Option(metavar="N|LOW-HIGH", help="How many objects, such as 3 or 1-4.")
    ] = None,
    language: Language = "en",
) -> None:
    """Sample scenes with their captions; without -o or --json the captions are printed."""
    from showtell import files, pictures
    from showtell.world import draw, sample

    _language(language)
    if out is not None:
        _image_out(out)
    if json_out is not None:
        files.check_writable(json_out)
    scenes = sample(number, seed=seed, split=split, objects=_range(objects))
    captions = [scene.caption(language) for scene in scenes]
    if out is not None:
        pictures.save(pictures.grid(draw(scenes)), out)
        _print(f"{out}: {number} scenes")
    if json_out is not None:
        records = [{"caption": text, "scene": json.loads(scene.to_json())} for text, scene in zip(captions, scenes)]
        files.write(json_out, json.dumps(records, ensure_ascii=False, indent=1) + "\n")
        _print(f"{json_out}: {number} scenes")
    if out is None and json_out is None:
        _print("\n".join(captions))


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which recipe.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the result.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(help="scenes, emoji, both with a comma, or a folder of pictures with captions."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="The recipe's own by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="The recipe's own by default.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; the recipe's own by default.")] = None,
    init: Annotated[Path | None, typer.Option(help="Folder of weights to start from instead of random ones.")] = None,
    seed: Seed = 0,
) -> None:
    """Train one of the library's own models by its recipe."""
    from showtell.train import recipes

    _folder_out(out)
    try:
        rate: dict[str, Any] = {} if lr is None else {"lr": lr}
        recipes.run(name, data=data, out=out, resume=resume, steps=steps, batch=batch, init=init, seed=seed, **rate)
    except KeyboardInterrupt:
        print("stopped early; --resume goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    _print(f"{out}: trained {name}")


@app.command()
def measure(
    what: Annotated[str, typer.Argument(metavar="bridge|judge", help="What to measure.")] = "bridge",
    number: Annotated[int, typer.Option("-n", min=2, help="Cases of each kind.")] = 200,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="train, validation, test or unseen.")] = "test",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Figures of a bridge that maps both ways, or of the judges, on prompts and pictures outside training."""
    if what not in ("bridge", "judge"):
        raise ShowtellError(f"cannot measure {what!r}; use bridge or judge")
    if what == "judge":
        from showtell.measure.judging import judge_figures

        figures: dict[str, Any] = judge_figures(number, seed, split)
        columns = list(next(iter(figures.values())))
        rows = [(name, *(f"{row[c]:.3f}" for c in columns)) for name, row in figures.items()]
        heads = ["pictures", *columns]
    else:
        from showtell.measure.both_ways import TARGETS, load_eye
        from showtell.measure.both_ways import measure as measured

        figures = measured(_load(model), number, seed, eye=load_eye(), split=split)
        rows = [(name, f"{value:.3f}", f"{TARGETS[name]:.2f}") for name, value in figures.items()]
        heads = ["figure", "measured", "target"]
    _print({"n": number, "seed": seed, "split": split, "figures": figures}) if as_json else _table(heads, rows)


@app.command()
def bases(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Those that are there.")] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="Cases of each kind.")] = 32,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page, with pictures in the folder beside it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Figures of the bases, the small checkpoints that experiments start from."""
    from showtell import files
    from showtell.measure import bases as measured

    _quiet()
    if out is not None:
        files.check_writable(out)
        _print(f"{measured.page(out, names or (), number, seed)}")
        return
    found = {name: measured.figures(name, number, seed) for name in names or measured.present()}
    rows = [(name, *row) for name, figures in found.items() for row in _flat(figures)]
    _print({"n": number, "seed": seed, "figures": found}) if as_json else _table(["base", "task", "value"], rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("demo.html"),
    seed: Seed = 0,
) -> None:
    """A page that shows what the embedded model can do: generate, caption, edit, answer."""
    from showtell import demo as page
    from showtell import files

    files.check_writable(out)
    shown = page.write(out, seed)
    _table(
        ["prompt", "told back", "agrees"],
        [(row.prompt, row.caption, "yes" if row.agrees else "no") for row in shown.rows],
    )
    agreeing = sum(row.agrees for row in shown.rows)
    _print(f"{agreeing} of {len(shown.rows)} captions agree with their prompts. The page: {out.resolve()}")


@app.command()
def papers(
    query: Annotated[str, typer.Argument(help="Words that all have to occur.")] = "",
    shelf: Shelf = None,
    as_json: Json = False,
) -> None:
    """The papers of the catalogue: what each is, whether it is written, and its newest verdict."""
    from showtell.reproduce import listing

    found = listing.records(query, shelf)
    if as_json:
        _print(found)
        return
    heads = ["arXiv", "slug", "shelf", "kind", "hosts", "verdict", "effect"]
    rows = [
        (
            *(r[name] for name in ("arxiv", "slug", "shelf", "kind")),
            " ".join(r["hosts"]),
            listing.standing(r),
            listing.effect(r),
        )
        for r in found
    ]
    _table(heads, rows)
    written = sum(r["implemented"] for r in found)
    _print(f"{len(found)} papers, {written} of them written")


@app.command()
def paper(
    name: Annotated[str, typer.Argument(metavar="ID", help="arXiv id or slug.", show_default=False)],
    as_json: Json = False,
) -> None:
    """One paper: its idea, how to use it on a real model, its experiment and the last result."""
    from showtell.papers import find
    from showtell.reproduce import listing

    about = listing.described(find(name))
    _print(about if as_json else listing.text(about))


@app.command()
def reproduce(
    names: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="arXiv ids or slugs.")] = None,
    shelf: Shelf = None,
    everything: Annotated[bool, typer.Option("--all", help="Every paper that is written.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each arm; 3 by default.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts of each set; 64 by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one draws other seeds and other test prompts.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run also what the ledger holds.")] = False,
    trial: Annotated[
        bool, typer.Option("--trial", help="On validation prompts, entering no ledger: to try an experiment out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for the rows and pictures.")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS|auto", help="Spread over a Ray cluster; local starts one.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Enter the results in the ledger of this checkout.")
    ] = False,
    self_test: Annotated[bool, typer.Option("--self-test", help="Try the laboratory on planted methods.")] = False,
    as_json: Json = False,
) -> None:
    """Re-test the claims of papers in miniature: method against baseline, with an interval and a control."""
    if self_test:
        _self_test(seed, as_json)
        return
    from showtell.reproduce import listing, many
    from showtell.reproduce.runner import FAILED, Settings

    chosen = many.chosen(names or [], shelf, everything)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _folder_out(out)
    given = {"prompts": prompts, "seeds": seeds}
    settings = Settings(seed=seed, fresh=fresh, trial=trial, **{name: value for name, value in given.items() if value})
    verdicts, rows = [], []
    with _progress() as show:
        for result in many.reproduce_all(chosen, settings, show, publish, out, ray):
            row = result.public()
            verdicts.append(row["verdict"])
            if result.note:
                print(f"{row['slug']}: {result.note}", file=sys.stderr)
            if as_json:
                print(json.dumps(row, ensure_ascii=False), flush=True)
            where = "run" if result.new else "ledger"
            rows.append(
                (
                    row["slug"],
                    row["verdict"],
                    listing.effect(row),
                    row["metric"] or "",
                    row["expect"] or "",
                    f"{row['seconds']:.0f}",
                    where,
                )
            )
    if not as_json:
        _table(["paper", "verdict", "effect", "metric", "expected", "s", "from"], rows)
    if FAILED in verdicts:
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="A page (.html) or Markdown (.md).")] = Path("report.html"),
    published: Annotated[bool, typer.Option("--published", help="Without results of your own.")] = False,
) -> None:
    """All results: per shelf a table with effect bars, per paper its arms and picture."""
    from showtell import files
    from showtell.reproduce import report as pages

    files.check_writable(out)
    _print(f"{out}: {pages.write(out, own=not published)} results")


@app.command()
def compare(
    shelf: Annotated[str, typer.Option(help="Whose methods.", show_default=False)],
    task: Annotated[str, typer.Option(help="The prompt set.")] = "pairs",
    base: Annotated[str, typer.Option(help="A packaged base, a folder or a hub id.")] = "unet",
    metric: Annotated[str, typer.Option(help="What counts as right: a metric of prompt sets.")] = "whole",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method.")] = 3,
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 64,
    seed: Seed = 0,
    pairs: Annotated[bool, typer.Option("--pairs", help="Every two of the methods together instead.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A plot of accuracy against cost; of pairs, a page in Markdown.")
    ] = None,
    as_json: Json = False,
) -> None:
    """All methods of a shelf side by side: the same prompts, base and seeds; accuracy, time, evaluations, memory."""
    from showtell import files
    from showtell.reproduce import compare as side_by_side
    from showtell.reproduce import pairs as two_by_two

    if out is not None:
        files.check_writable(out) if pairs else _image_out(out)
    chosen = (shelf, task, base, metric, prompts, seeds, seed)
    found: two_by_two.Combined | side_by_side.SideBySide
    with _progress() as show:
        found = two_by_two.combine(*chosen, show) if pairs else side_by_side.compare(*chosen, show)
    for name, why in found.left_out.items():
        print(f"{name}: {why}", file=sys.stderr)
    if isinstance(found, side_by_side.SideBySide):
        if out is not None:
            side_by_side.plot(found, out)
    elif out is not None:
        options = f"--task {task} --base {base} --metric {metric} --prompts {prompts} --seeds {seeds} --seed {seed}"
        two_by_two.write(out, [found], f"showtell compare --shelf {shelf} --pairs {options} -o {out}")
    _print(found.record()) if as_json else _table(*found.table())


# --- what the commands share ------------------------------------------------------------


def _self_test(seed: int, as_json: bool) -> None:
    from showtell.reproduce.selftest import EXPERIMENTS, self_test

    tried = self_test(seed=seed)
    if as_json:
        _print(
            [{"method": t.method.name, "right": t.method.right, "rates": t.rates, "passed": t.passed} for t in tried]
        )
    else:
        verdicts = ["holds", "inconclusive", "does not hold"]
        rows = [
            (
                t.method.name,
                *(f"{t.rates.get(v, 0):.1%}" for v in verdicts),
                t.method.wrong,
                "yes" if t.passed else "NO",
            )
            for t in tried
        ]
        _table([f"planted, {EXPERIMENTS} times", *verdicts, "at most 2.5 %", "kept"], rows)
    if not all(t.passed for t in tried):
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Any]:
    """A function that shows a bar for an iterable, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    _quiet()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield lambda items, what: bars.track(items, description=what)


def _load(model: str | None) -> Bridge:
    """The bridge, loaded without the libraries' own progress bars."""
    import showtell

    with _uncollected():
        _quiet()
        if model is None:
            return showtell.load()
    return showtell.load(model)  # may be large: what loading leaves behind is freed as usual


@contextmanager
def _uncollected() -> Iterator[None]:
    """For imports, which make most of a million objects that stay to the end: looking through them for garbage again
    and again, and once more at the exit, takes nearly a third of a short command's time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def _quiet() -> None:
    """No progress bars of the libraries: standard error is for errors and warnings."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _images(paths: Sequence[Path]) -> list[Any]:
    from showtell.pictures import load_image

    return [load_image(path) for path in paths]


def _image_out(path: Path) -> None:
    """Finds out before any long work that an image cannot be written there."""
    from showtell import files, pictures

    pictures.image_kind(path)
    files.check_writable(path)


def _folder_out(path: Path) -> None:
    """Finds out before any long work that a folder cannot be made or written to."""
    from showtell import files

    nearest = next(place for place in (path, *path.resolve().parents) if place.exists())
    if not nearest.is_dir():
        raise ShowtellError(f"cannot write to {path}: {nearest} is not a folder")
    files.check_writable(nearest / ".showtell")


def _said(text: str, what: str, instead: str) -> None:
    if not text.strip():
        raise ShowtellError(f"the {what} is empty; {instead}")


def _language(language: str) -> None:
    from showtell.world.language import LANGUAGES

    if language not in LANGUAGES:
        raise ShowtellError(f"unknown language {language!r}; use one of: {', '.join(LANGUAGES)}")


def _numbers(text: str, separator: str) -> list[int] | None:
    """One or two numbers of 1 or more, or None where the text is nothing of the kind."""
    parts = text.split(separator)
    whole = len(parts) <= 2 and all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts)
    return [int(part) for part in parts] if whole else None


def _size(text: str | None) -> tuple[int | None, int | None]:
    """(width, height) in pixels of "64" or "96x64"."""
    if text is None:
        return None, None
    numbers = _numbers(text.lower(), "x")
    if numbers is None:
        raise ShowtellError(f"cannot read the size {text!r}; give pixels, such as 64 or 96x64 (width x height)")
    return numbers[0], numbers[-1]


def _range(text: str | None) -> tuple[int, int] | None:
    """(low, high) of "3" or "1-4"."""
    if text is None:
        return None
    numbers = _numbers(text, "-")
    if numbers is None or numbers[0] > numbers[-1]:
        raise ShowtellError(f"cannot read --objects {text!r}; give a number or a range, such as 3 or 1-4")
    return numbers[0], numbers[-1]


def _scene_or_none(text: str) -> Any:
    from showtell.world import Scene

    try:
        return Scene.parse(text)
    except ShowtellError:
        return None


def _flat(record: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """The leaves of a nested record as (name, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{above}{key} ")
        else:
            rows.append((f"{above}{key}", f"{value:.3f}" if isinstance(value, float) else str(value)))
    return rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))  # as they are: a prompt may hold brackets
    Console().print(table)


def _print(value: Any) -> None:
    """Text as it is, anything else as JSON."""
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1))


def _fail(error: Exception) -> None:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror.lower()}"
    else:
        message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line for what a bridge warns of, such as an unknown word; none for what programmers are told."""
    if issubclass(category, UserWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Bad input is one line and exit code 2, an interruption exit code 130."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice is for programmers
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            app(args=arguments, prog_name="showtell")
        except (ShowtellError, OSError) as error:
            _fail(error)
        except SystemExit as stop:
            if stop.code == 130:
                print("interrupted", file=sys.stderr)
            raise
