"""The demo page, with a bridge that draws what it is told by the world's own rules."""

from __future__ import annotations

import re

import pytest

import showtell
from showtell import demo
from showtell.cli import main
from showtell.errors import ShowtellError
from showtell.pictures import to_pil
from showtell.world import Scene, draw


class WorldBridge:
    """Shows scenes exactly, all else as one circle; tells what it showed, in the language asked for."""

    name = "a bridge <b>for tests</b>"
    can = frozenset({"generate", "caption", "edit", "answer"})

    def __init__(self):
        self.shown = {}

    def show(self, text):
        try:
            scene = Scene.parse(text)
        except ShowtellError:
            scene = Scene.parse("a black circle")
        [image] = to_pil(draw(scene))
        self.shown[image.tobytes()] = scene
        return image

    def generate(self, prompts, seed):
        return [self.show(text) for text in prompts]

    def caption(self, images, language="en"):
        return [self.shown[image.tobytes()].caption(language) for image in images]

    def edit(self, images, instructions, seed):
        return [self.show("a black circle")]

    def answer(self, images, questions):
        return ["Yes" for _ in questions]


def test_agreement():
    assert demo.agree("a red circle left of a blue square", "a blue square right of a red circle")
    assert not demo.agree("a red circle left of a blue square", "a red circle right of a blue square")
    assert not demo.agree("a red circle", "no sentence of the world")
    assert demo.agree("red apple", "Red  apple")
    assert not demo.agree("red apple", "green apple")


def test_agreement_across_languages():
    scene = Scene.parse("three red circles")
    assert demo.agree(scene.caption("zh"), scene.caption("es"))
    assert not demo.agree(scene.caption("zh"), Scene.parse("two red circles").caption("es"))


def test_what_is_collected():
    shown = demo.collect(WorldBridge())
    assert [row.agrees for row in shown.rows] == [True] * len(demo.SCENES) + [False] * len(demo.EMOJI)
    assert {row.language for row in shown.rows} == {"en", "zh", "es"}
    assert shown.edited is not None
    assert not shown.edited.agrees
    assert shown.edited.before is shown.rows[0].image
    assert len(shown.answered) == 3
    assert [one.agrees for one in shown.answered] == [one.expected == "yes" for one in shown.answered]
    assert len(shown.seconds) == 4


def test_what_a_bridge_cannot_do_is_left_out():
    bridge = WorldBridge()
    bridge.can = frozenset({"generate", "caption"})
    shown = demo.collect(bridge)
    assert (shown.edited, shown.answered) == (None, [])
    assert "Edited" not in demo.render(shown)


def test_the_page_stands_alone_and_escapes():
    page = demo.render(demo.collect(WorldBridge()))
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', page)) == len(re.findall("<img ", page))
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "&lt;b&gt;for tests" in page
    for text, language in demo.SCENES:
        assert Scene.parse(text).caption(language) in page


@pytest.fixture
def bridge(monkeypatch):
    monkeypatch.setitem(showtell.__dict__, "load", WorldBridge)


def test_on_the_command_line(bridge, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "-o", str(tmp_path / "page.html")])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert f"{len(demo.SCENES)} of {len(demo.SCENES) + len(demo.EMOJI)} captions agree" in said
    assert str(tmp_path / "page.html") in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_demo_that_fails_leaves_the_old_page(bridge, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ShowtellError("no")

    monkeypatch.setattr(WorldBridge, "generate", fail)
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(ShowtellError):
        demo.write(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "old"


def test_demo_page_by_the_packaged_model(tmp_path) -> None:
    """From the command line with real weights: a page that holds everything, and honest verdicts on it."""
    import re
    import subprocess
    import sys

    page = tmp_path / "demo.html"
    done = subprocess.run(
        [sys.executable, "-m", "showtell", "demo", "-o", str(page)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    html = page.read_text(encoding="utf-8")
    assert str(page) in done.stdout.replace("\n", "")
    assert len(re.findall(r"data:image/png;base64,", html)) >= 6
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing is fetched from anywhere
