"""One page of what a bridge can do: show what is said, tell what is shown, edit, answer; with timings."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from PIL import Image

from showtell.errors import ShowtellError
from showtell.files import write as write_file
from showtell.pictures import encode
from showtell.world import Scene

if TYPE_CHECKING:
    from showtell.bridges.base import Bridge

# Written in English and said in the language given, so that the wording is always the world's own.
SCENES = (
    ("a red circle left of a blue square", "en"),
    ("a large yellow star above a small green heart", "en"),
    ("three purple triangles", "en"),
    ("a striped orange ring on a sky background", "en"),
    ("a blue diamond right of a pink flower", "zh"),
    ("two green crosses", "es"),
)
EMOJI = ("red apple", "snowman", "sunflower")


@dataclass(frozen=True)
class Shown:
    """A prompt, the image made of it, the caption told of that image, and whether the two agree."""

    prompt: str
    language: str
    image: Image.Image
    caption: str
    agrees: bool


@dataclass(frozen=True)
class Edited:
    """An instruction, the image before and after it, and whether the caption of the latter is right."""

    instruction: str
    before: Image.Image
    after: Image.Image
    caption: str
    agrees: bool


@dataclass(frozen=True)
class Answered:
    """A question about an image, the answer given, and the right one if the image shows its prompt."""

    question: str
    answer: str
    expected: str

    @property
    def agrees(self) -> bool:
        return _same(self.answer, self.expected)


@dataclass
class Demo:
    """Everything on the page. seconds: how long each part took."""

    name: str
    seed: int
    rows: list[Shown] = field(default_factory=list)
    edited: Edited | None = None
    answered: list[Answered] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, part: str, call: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = call()
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - start
        return result


def agree(prompt: str, caption: str) -> bool:
    """Whether a caption says what its prompt said: the same facts for scenes, the same name for others."""
    try:
        wanted = Scene.parse(prompt)
    except ShowtellError:
        return _same(prompt, caption)
    try:
        return wanted.matches(Scene.parse(caption))
    except ShowtellError:
        return False


def _same(a: str, b: str) -> bool:
    return " ".join(a.casefold().split()) == " ".join(b.casefold().split())


def collect(bridge: Bridge, seed: int = 0, demo: Demo | None = None) -> Demo:
    """Does with the bridge all that the page shows; editing and answering are left out where it cannot."""
    demo = demo or Demo(bridge.name, seed)
    prompts = [(Scene.parse(text).caption(language), language) for text, language in SCENES]
    prompts += [(name, "en") for name in EMOJI]
    texts = [text for text, _ in prompts]
    images = demo.timed(f"{len(texts)} images", lambda: bridge.generate(texts, seed=seed))
    captions = demo.timed(f"{len(texts)} captions", lambda: _captions(bridge, images, prompts))
    demo.rows = [
        Shown(text, language, image, caption, agree(text, caption))
        for (text, language), image, caption in zip(prompts, images, captions)
    ]
    scene, image = Scene.parse(texts[0]), images[0]
    if "edit" in bridge.can:
        demo.edited = demo.timed("the edit, with its caption", lambda: _edit(bridge, scene, image, seed))
    if "answer" in bridge.can:
        demo.answered = demo.timed("the answers", lambda: _answers(bridge, scene, image, seed))
    return demo


def _captions(bridge: Bridge, images: list[Image.Image], prompts: list[tuple[str, str]]) -> list[str]:
    """A caption of each image in the language of its prompt, one call for each language."""
    captions = [""] * len(images)
    for language in dict.fromkeys(language for _, language in prompts):
        chosen = [index for index, (_, its) in enumerate(prompts) if its == language]
        told = bridge.caption([images[index] for index in chosen], language=language)
        for index, caption in zip(chosen, told):
            captions[index] = caption
    return captions


def _edit(bridge: Bridge, scene: Scene, image: Image.Image, seed: int) -> Edited:
    from showtell.world.edits import edits

    # Kinds whose result does not depend on the layout: the image may have another than the parsed prompt.
    wanted = edits(scene, random.Random(seed), n=1, kinds=("recolour", "replace", "retexture"))[0]
    instruction = wanted.text("en")
    [after] = bridge.edit([image], [instruction], seed=seed)
    [caption] = bridge.caption([after])
    return Edited(instruction, image, after, caption, agree(wanted.after.caption(), caption))


def _answers(bridge: Bridge, scene: Scene, image: Image.Image, seed: int) -> list[Answered]:
    from showtell.world.questions import questions

    asked = questions(scene, random.Random(seed), n=3)
    answers = bridge.answer([image] * len(asked), [question.question for question in asked])
    return [Answered(q.question, answer, q.answer) for q, answer in zip(asked, answers)]


def render(demo: Demo) -> str:
    """The page as HTML that needs no other file."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inline"] = _inline
    return environment.from_string(_PAGE).render(demo=demo, agreeing=sum(row.agrees for row in demo.rows))


def _inline(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encode(image)).decode()


def write(path: str | os.PathLike[str], seed: int = 0) -> Demo:
    """Makes the page with the embedded bridge and writes it in one step. Raises ShowtellError."""
    import showtell

    demo = Demo("", seed)
    bridge = demo.timed("loading", showtell.load)
    demo.name = bridge.name
    collect(bridge, seed, demo)
    write_file(path, render(demo))
    return demo


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>showtell</title>
<style>
  :root { color-scheme: light dark; --line: #8883; --soft: #888; --good: #1a7f37; --bad: #b35900; }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 3rem auto; padding: 0 1.25rem; }
  h1 { font-size: 2.2rem; margin: 0; letter-spacing: -0.02em; }
  h2 { font-size: 1.15rem; margin: 2.75rem 0 1rem; }
  p { margin: 0.25rem 0; }
  .soft { color: var(--soft); }
  .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(16.5rem, 1fr)); gap: 1rem; }
  .card { border: 1px solid var(--line); border-radius: 0.75rem; overflow: hidden; }
  .card div { padding: 0.75rem 1rem 1rem; }
  img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff;
        image-rendering: pixelated; }
  .said { font-weight: 600; }
  .verdict { font-size: 0.85rem; font-weight: 600; color: var(--bad); }
  .verdict.yes { color: var(--good); }
  .pair { display: grid; grid-template-columns: 1fr auto 1fr; gap: 1rem; align-items: center;
          max-width: 36rem; }
  .pair img { border: 1px solid var(--line); border-radius: 0.75rem; }
  table { border-collapse: collapse; width: 100%; max-width: 40rem; }
  th, td { text-align: left; padding: 0.4rem 1rem 0.4rem 0; border-bottom: 1px solid var(--line); }
  th { font-size: 0.85rem; color: var(--soft); font-weight: 600; }
  td.number { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>showtell</h1>
<p class="soft">Shows what you say, and tells what you show. {{ demo.name }}, seed {{ demo.seed }}.</p>

{% macro verdict(agrees, yes, no) %}
<p class="verdict {{ 'yes' if agrees }}">{{ yes if agrees else no }}</p>
{% endmacro %}

<h2>Said, shown, told back</h2>
<p class="soft">Every image is made of its prompt alone, every caption of its image alone.
{{ agreeing }} of {{ demo.rows | length }} captions agree with their prompts.</p>
<div class="cards">
{% for row in demo.rows %}
  <article class="card">
    <img src="{{ row.image | inline }}" alt="{{ row.prompt }}">
    <div lang="{{ row.language }}">
      <p class="said">{{ row.prompt }}</p>
      <p>{{ row.caption }}</p>
      {{ verdict(row.agrees, "the caption agrees", "the caption differs") }}
    </div>
  </article>
{% endfor %}
</div>

{% if demo.edited %}
<h2>Edited: {{ demo.edited.instruction }}</h2>
<div class="pair">
  <img src="{{ demo.edited.before | inline }}" alt="before"><span>→</span>
  <img src="{{ demo.edited.after | inline }}" alt="after">
</div>
<p>{{ demo.edited.caption }}</p>
{{ verdict(demo.edited.agrees, "told back as instructed", "not told back as instructed") }}
{% endif %}

{% if demo.answered %}
<h2>Asked about the first image</h2>
<table>
<tr><th>question</th><th>answer</th><th>by its prompt</th></tr>
{% for one in demo.answered %}
<tr><td>{{ one.question }}</td><td class="verdict {{ 'yes' if one.agrees }}">{{ one.answer }}</td>
<td>{{ one.expected }}</td></tr>
{% endfor %}
</table>
{% endif %}

<h2>Time on this machine</h2>
<table>
{% for part, seconds in demo.seconds.items() %}
<tr><td>{{ part }}</td><td class="number">{{ "%.2f" | format(seconds) }} s</td></tr>
{% endfor %}
</table>
</body>
</html>
"""
