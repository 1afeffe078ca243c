"""The laboratory's commands: what they print, as text and as JSON, and how they end."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

import showtell
from fake_paper import SOURCE, FakeWorld
from showtell import papers
from showtell.bridges.base import Technique
from showtell.cli import main
from showtell.errors import ShowtellError
from showtell.papers import Paper, catalogue, find, search, using
from showtell.pictures import load_image
from showtell.reproduce import ledger, listing, many, report, selftest
from showtell.reproduce.runner import Settings, record, reproduce
from showtell.steer.regions import Region


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        """Exit code, standard output and standard error of one call."""
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A catalogue of fake papers, and ledgers of this test's own."""
    world = FakeWorld(tmp_path, monkeypatch)
    book = ledger.Ledger(tmp_path / "published.jsonl", tmp_path / "pictures")
    monkeypatch.setattr(ledger, "published", lambda: book)
    world.papers = [world.paper()]

    def listed(shelf=None):
        return [paper for paper in world.papers if shelf in (None, paper.shelf)]

    monkeypatch.setattr(papers, "catalogue", listed)
    monkeypatch.setattr(many, "catalogue", listed)
    monkeypatch.setattr(report, "catalogue", listed)
    return world


# --- the catalogue


def test_every_row_of_the_catalogue_is_a_paper_of_its_shelf():
    found = catalogue()
    assert len(found) == len({paper.slug for paper in found}) == len({paper.arxiv for paper in found}) == 444
    for shelf in papers.SHELVES:
        assert {paper.shelf for paper in catalogue(shelf)} == {shelf}
    for paper in found:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv) and paper.slug.isidentifier()
        assert paper.hosts and paper.minutes > 0


def test_every_module_of_a_paper_has_a_row():
    files = {path for path in papers.HERE.glob("*/*.py") if path.name != "__init__.py"}
    assert files <= {paper.file for paper in catalogue()}


@pytest.mark.parametrize(
    "name", ["2408.11706", "frap", "FRAP", "arXiv:2408.11706", "https://arxiv.org/abs/2408.11706v2"]
)
def test_a_paper_is_found_by_id_and_slug(name):
    assert find(name).slug == "frap"


@pytest.mark.parametrize(
    ("name", "near"), [("frapp", "frap"), ("2408.11707", "2408.11706"), ("bounded", "bounded_attention")]
)
def test_unknown_papers_name_the_nearest(run, name, near):
    for command in ("paper", "reproduce"):
        code, out, err = run(command, name)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: unknown paper '{name}'; did you mean ") and near in err and err.count("\n") == 1


def test_search_wants_every_word_and_puts_titles_first():
    found = search("token merging")
    assert found[0].slug == "retom"
    assert {paper.shelf for paper in search("attention", "compose")} == {"compose"}
    assert search("xyzzy merging") == []
    with pytest.raises(ShowtellError, match="unknown shelf 'attic'"):
        search("", "attic")


def test_papers_lists_what_fits(run, fake):
    code, out, err = run("papers", "brighter", "--json")
    assert (code, err) == (0, "")
    [record] = json.loads(out)
    assert record["slug"] == "fake" and record["implemented"] is True and record["verdict"] is None
    assert "no result yet" in run("papers")[1]
    assert json.loads(run("papers", "--shelf", "align", "--json")[1]) == []


def test_paper_says_what_it_is_and_what_came_out(run, fake):
    assert "`showtell reproduce fake` makes one" in run("paper", "fake")[1]
    run("reproduce", "fake", "--prompts", 12, "--seeds", 2)
    code, out, _ = run("paper", "2001.00001")
    assert code == 0
    for text in (
        "Pictures are made brighter.",
        'bridge = showtell.load("nobody/anything")',
        "holds: brightness, fake > plain",
        ".png",
    ):
        assert text in out
    about = json.loads(run("paper", "fake", "--json")[1])
    assert (
        about["result"]["verdict"] == "holds" and about["pictures"] and about["example"].startswith("import showtell")
    )


# --- reproduce


def test_reproduce_prints_one_object_per_paper(run, fake):
    fake.papers.append(fake.paper(SOURCE.replace("0.7", "0.2"), "worse"))
    code, out, err = run("reproduce", "--all", "--prompts", 12, "--seeds", 2, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(row["slug"], row["verdict"]) for row in rows] == [("fake", "holds"), ("worse", "does not hold")]
    assert list(rows[0]) == list(ledger.FIELDS)
    assert len(fake.ran) == 12
    assert run("reproduce", "--all", "--prompts", 12, "--seeds", 2, "--json")[1] == out
    assert fake.ran == []


def test_reproduce_with_another_seed_draws_other_prompts_and_seeds(run, fake):
    run("reproduce", "fake", "--prompts", 4, "--seeds", 1, "--seed", 5)
    assert fake.ran == ["fake 5000", "plain 5000", "off 5000"]


def test_what_cannot_run_is_a_line_and_the_rest_goes_on(run, fake):
    fake.papers.insert(0, fake.paper(SOURCE.replace('"vae"', '"nowhere"'), "lost"))
    code, out, err = run("reproduce", "--shelf", "compose", "--prompts", 4, "--seeds", 1)
    assert code == 0
    assert err.startswith("lost: no packaged weights 'nowhere'") and err.count("\n") == 1
    assert "not runnable" in out and "fake" in out


def test_what_breaks_is_a_line_and_exit_code_1(run, fake):
    fake.papers.insert(0, fake.paper("def experiment(lab):\n    return lab.no_such_thing\n", "broken"))
    code, out, err = run("reproduce", "--all", "--prompts", 4, "--seeds", 1, "--json")
    assert code == 1
    assert next(json.loads(line)["verdict"] for line in out.splitlines()) == "failed"
    assert "AttributeError" in err and "broken.py, line 2" in err and err.count("\n") == 1
    assert len(fake.ran) == 3


def test_reproduce_writes_rows_and_pictures_to_a_folder(run, fake, tmp_path):
    for _ in range(2):  # measured, then from the ledger
        out = tmp_path / "deep" / "results"
        assert run("reproduce", "fake", "--prompts", 4, "--seeds", 1, "--out", out)[0] == 0
        assert json.loads((out / "fake.json").read_text())["slug"] == "fake"
        assert load_image(out / "fake.png").size[0] > 300
        (out / "fake.png").unlink()


def test_publish_enters_the_published_ledger(run, fake):
    run("reproduce", "fake", "--prompts", 4, "--seeds", 1)
    assert list(ledger.published().rows()) == []
    run("reproduce", "fake", "--prompts", 4, "--seeds", 1, "--publish")
    assert [row["slug"] for row in ledger.published().rows()] == ["fake"]
    assert len(fake.ran) == 3


def test_nothing_to_reproduce_and_papers_nobody_wrote_are_refused(run):
    assert run("reproduce")[0] == 2
    unwritten = next(paper for paper in catalogue() if not paper.implemented)
    code, out, err = run("reproduce", unwritten.slug)
    assert (code, out) == (2, "") and "nobody has written it yet" in err


def test_an_interrupted_run_exits_130(run, fake, monkeypatch):
    monkeypatch.setenv("FAKE_STOP", "plain 0")
    assert run("reproduce", "fake", "--prompts", 4, "--seeds", 1)[0] == 130


# --- the report


def test_the_report_needs_no_other_file(run, fake, tmp_path):
    fake.papers.append(fake.paper(SOURCE.replace("0.7", "0.2"), "worse"))
    run("reproduce", "--all", "--prompts", 12, "--seeds", 2)
    page = tmp_path / "report.html"
    code, out, _ = run("report", "-o", page)
    assert (code, out) == (0, f"{page}: 2 results\n")
    html = page.read_text()
    assert "1 holds, 1 does not hold" in html
    assert html.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:|#|https://arxiv\.org)", html)
    assert run("report", "-o", tmp_path / "report.txt")[0] == 2


def test_the_published_page_holds_published_results_only(run, fake, tmp_path):
    page = tmp_path / "ledger.md"
    run("reproduce", "fake", "--prompts", 12, "--seeds", 2)
    assert run("report", "--published", "-o", page)[1] == f"{page}: 0 results\n"
    run("reproduce", "fake", "--prompts", 12, "--seeds", 2, "--publish")
    run("report", "--published", "-o", page)
    [row] = [line for line in page.read_text().splitlines() if line.startswith("| [fake]")]
    assert "| fake > plain | brightness | off | vae | 12 x 2 |" in row and report.EARLIER not in page.read_text()
    fake.papers[0].file.write_text(SOURCE.replace("0.7", "0.6"))
    run("report", "--published", "-o", page)
    assert f"holds {report.EARLIER} |" in page.read_text() or f") {report.EARLIER} |" in page.read_text()


def test_effects_are_bars_on_a_line():
    assert report._bar({"effect": 0.25, "ci": [0.0, 0.6]}) == {"low": 50.0, "width": 50.0, "mean": 75.0}
    assert report._bar({"effect": None, "ci": None}) is None


def test_the_page_in_the_documentation_is_that_of_the_published_ledger():
    from pathlib import Path

    page = Path(__file__).parent.parent / "docs" / "ledger.md"
    assert page.read_text() == report.markdown(ledger.latest([ledger.published()]))


# --- the self-test


def test_planted_methods_get_the_verdicts_that_they_deserve():
    tried = {one.method.name: one for one in selftest.self_test()}
    assert all(one.passed for one in tried.values())
    assert tried["better"].rates["holds"] > 0.8
    assert tried["harmful"].rates["does not hold"] > 0.9
    assert tried["cheating: reads the judge"].rates["does not hold"] > 0.6
    assert tried["control keeps the gain"].rates["does not hold"] > 0.6
    assert tried["useless"].rates.get("holds", 0) <= 0.025


def test_the_self_test_notices_a_laboratory_that_is_too_generous(monkeypatch, run):
    monkeypatch.setattr(selftest, "verdict", lambda *args, **more: type("Always", (), {"verdict": "holds"}))
    code, out, _ = run("reproduce", "--self-test")
    assert code == 1 and out.count("NO") == 5


def test_more_prompts_see_smaller_effects():
    effects = [0.02, 0.1, 0.18, 0.26]
    few, many_ = (selftest.power(effects, 60, prompts, 3) for prompts in (16, 128))
    assert few == sorted(few) and sum(many_) > sum(few) + 0.5
    assert selftest.smallest_effect([0.1, 0.2], [0.6, 1.0]) == pytest.approx(0.15)
    assert selftest.smallest_effect([0.1, 0.2], [0.1, 0.2]) != selftest.smallest_effect([0.1, 0.2], [0.1, 0.2])


# --- techniques by name


class Weigh(Technique):
    def __init__(self, step_size: float = 1.0, bounds: tuple[float, float] = (0, 1), word: str | None = None) -> None:
        if step_size < 0:
            raise ShowtellError("step_size must be 0 or more")
        self.options = (step_size, bounds, word)


class Regions(Technique):
    def __init__(self, regions: list[list[Region]], until: float = 1.0) -> None:
        self.regions = regions


class Mapped(Technique):
    def __init__(self, boxes: dict[str, tuple[float, ...]]) -> None:
        self.boxes = boxes


@pytest.fixture
def named(monkeypatch):
    kinds = {"frap": Weigh, "bounded_attention": Regions, "spdiffusion": Mapped}
    monkeypatch.setattr(using, "technique_of", lambda paper: kinds[paper.slug])


def test_options_are_read_as_literals(named):
    [technique] = using.techniques(["frap:step_size=0.5,bounds=(0.2, 2),word=red"], ["x"])
    assert technique.options == (0.5, (0.2, 2), "red")
    assert using.techniques(["frap"], ["x"])[0].options == (1.0, (0, 1), None)
    assert using.read("frap:a=true,b='x,y=z',c=[1,{2:3}],d=none")[1] == {
        "a": True,
        "b": "x,y=z",
        "c": [1, {2: 3}],
        "d": None,
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("frapp", "did you mean frap"),
        ("frap:stepsize=1", "did you mean step_size"),
        ("frap:0.5", "key=value"),
        ("frap:step_size=-1", "0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(named, spec, message):
    with pytest.raises(ShowtellError, match=message):
        using.techniques([spec], ["x"])


def test_boxes_that_were_not_given_come_from_the_planner(named):
    prompts = ["a red ring left of a blue star", "a green square"]
    [regions, boxes] = using.techniques(["bounded_attention", "spdiffusion"], prompts)
    [[ring, star], [square]] = regions.regions
    assert ring.prompt.endswith("red ring") and ring.where[2] <= star.where[0] + 0.2
    assert square.prompt.endswith("green square")
    assert [list(one) for one in boxes.boxes] == [[ring.prompt, star.prompt], [square.prompt]]
    [own] = using.techniques(["spdiffusion:boxes={'red ring': (0, 0, 1, 1)}"], prompts)
    assert own.boxes == {"red ring": (0, 0, 1, 1)}


def test_papers_read_what_they_need_from_the_prompts():
    """What a paper has to know of a prompt besides boxes, its `for_prompts` takes from the language model."""
    prompts = ["a red ring left of a blue star", "a striped green square"]
    [subjects] = using.techniques(["isolated_diffusion"], prompts)
    assert [len(split.entities) for split in subjects.subjects] == [2, 1]
    [parts] = using.techniques(["isolated_diffusion"], prompts[1:])
    assert parts.parts[0][1] == ["a striped square", "a green square"]
    [graphs] = using.techniques(["shyi:until=0.3"], prompts)
    assert graphs.until == 0.3 and [len(split.entities) for split in graphs.splits] == [2, 1]
    [demanded] = using.techniques(["noise_refinement"], prompts)
    assert len(demanded.wanted) == 2 and demanded.failed is None
    regions, enhanced = using.techniques(["mccd:ratio=0.5"], prompts)
    assert [len(one) for one in regions.regions] == [3, 2] and len(enhanced.named) == 2
    [planned] = using.techniques(["rag_diffusion:hard=1"], prompts)
    assert planned.hard == 1 and [len(one) for one in planned.parts] == [2, 1]
    [weights] = using.techniques(["elbo_t2ialign:strength=1.5"], prompts)
    assert type(weights).__name__ == "PhraseWeights" and weights.strength == 1.5
    with pytest.raises(ShowtellError, match="samples more than once"):
        using.techniques(["divcon"], prompts)
    with pytest.raises(ShowtellError, match="has no option 'strenght'"):
        using.techniques(["elbo_t2ialign:strenght=1"], prompts)
    with pytest.raises(ShowtellError, match="both make the guided prediction anew"):
        using.techniques(["mccd", "isolated_diffusion"], prompts)
    with pytest.raises(ShowtellError, match="Frap and Scope both set the encoded text at every step"):
        using.techniques(["frap", "scope_prompt"], prompts)


def test_generate_uses_what_was_named(named, run, monkeypatch, tmp_path):
    calls = []

    class Bridge:
        def generate(self, prompts, **options):
            calls.append((prompts, options))
            return [Image.new("RGB", (8, 8)) for _ in prompts]

    monkeypatch.setitem(showtell.__dict__, "load", lambda *_: Bridge())
    out = tmp_path / "o.png"
    said = run(
        "generate",
        "a green square",
        "-n",
        2,
        "--using",
        "frap:step_size=2",
        "--using",
        "bounded_attention",
        "-o",
        out,
        "--json",
    )[1]
    [(prompts, options)] = calls
    assert prompts == ["a green square"] * 2
    assert [type(one) for one in options["using"]] == [Weigh, Regions] and len(options["using"][1].regions) == 2
    assert json.loads(said)["using"] == ["frap:step_size=2", "bounded_attention"]
    assert run("generate", "a", "--using", "nothing_like_it", "-o", out)[0] == 2


def test_a_paper_brings_the_technique_that_its_file_defines(tmp_path, monkeypatch):
    source = """
from showtell.bridges.base import Technique
class _Private(Technique): ...
class Method(Technique): ...
class Control(Method): ...
"""
    paper = FakeWorld(tmp_path, monkeypatch).paper(source, "something")
    assert using.technique_of(paper).__name__ == "Method"
    with pytest.raises(ShowtellError, match="brings no technique"):
        using.technique_of(FakeWorld(tmp_path, monkeypatch).paper("X = 1\n", "nothing"))


def test_every_written_paper_says_what_it_is():
    for paper in [one for one in catalogue() if one.implemented]:
        about = listing.described(paper)
        assert paper.arxiv in about["idea"] and about["example"], paper.slug


def test_records_of_one_run_are_the_same_in_every_ledger(fake):
    result = record(reproduce(fake.papers[0], Settings(8, 1)))
    assert listing.records()[0]["effect"] == result.row["effect"]
    assert isinstance(fake.papers[0], Paper)
