"""The laboratory on a fake paper: what an experiment is given, what is kept, never done twice, caught."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fake_paper import SOURCE, FakeWorld, brightness, fake_prompts
from showtell.errors import ShowtellError
from showtell.measure.experiment import Lab, MissingBase, as_comparisons
from showtell.reproduce import ledger, picture
from showtell.reproduce.runner import Settings, failed, measured, record, reproduce


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return FakeWorld(tmp_path, monkeypatch)


SMALL = Settings(prompts=12, seeds=2)
EVERY = [f"{arm} {seed}" for seed in (0, 1) for arm in ("fake", "plain", "off")]


# --- what an experiment is given


def test_seeds_and_prompts_follow_the_base_seed():
    first, second = (Lab(seed=seed, n=4, draw=fake_prompts) for seed in (0, 1))
    assert first.seeds == [0, 1, 2]
    assert not set(first.seeds) & set(second.seeds)
    assert first.prompts("pairs").texts == [f"pairs test 0 {i}" for i in range(4)]
    assert first.prompts("pairs", 2).texts == ["pairs test 0 0", "pairs test 0 1"]
    assert second.validation("pairs").texts[0] == "pairs validation 1 0"
    with pytest.raises(ShowtellError, match="0 prompts"):
        Lab(n=0)


def test_bases_are_shared_unless_a_fresh_one_is_asked_for(fake):
    lab = Lab()
    assert lab.base("vae") is Lab().base("vae")
    fresh = lab.base("vae", fresh=True)
    assert fresh is not lab.base("vae")
    assert torch.equal(fresh.decoder.conv_in.weight, lab.base("vae").decoder.conv_in.weight)
    with pytest.raises(MissingBase, match="showtell train nothing"):
        lab.base("nothing")


def test_a_comparison_is_checked_before_anything_runs():
    arms = {"m": print, "p": print}
    for more in ({"expect": "m > q"}, {"expect": "m > p", "control": "q"}, {"expect": "m > p", "curve": {"q": []}}):
        with pytest.raises(ShowtellError, match="none of the arms"):
            Lab().compare(arms, **more)
    with pytest.raises(ShowtellError, match=r"lab\.compare"):
        as_comparisons({"m": 1})
    assert Lab().compare(arms, brightness, expect="m > p").judged_twice
    assert not Lab().compare(arms, lambda images: images, expect="m > p").judged_twice


def test_what_is_trained_is_trained_once(fake):
    lab, made = Lab("fake", fake.paper().file), []

    def make(seed):
        made.append(seed)
        return {"weight": torch.full((2,), float(seed))}

    first = lab.trained("net", make, 3)
    again = Lab("fake", fake.paper().file).trained("net", make, 3)
    assert made == [3] and torch.equal(first["weight"], again["weight"])
    lab.trained("net", make, 4)
    lab.trained("net", make, 3, width=8)
    lab.trained("other", make, 3)
    assert made == [3, 4, 3, 3]
    Lab("fake", fake.paper(SOURCE + "\nX = 1\n").file).trained("net", make, 3)
    assert made == [3, 4, 3, 3, 3]
    for path in (fake.folder / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-4])  # as a disk that filled up leaves it
    assert torch.equal(Lab("fake", fake.paper().file).trained("net", make, 3)["weight"], first["weight"])
    assert len(made) == 6


def test_a_network_is_blank_trained_and_loaded(fake):
    """Trained once in place, kept under the paper's name, and what comes back is a network of its own, in eval mode."""
    made = []

    def learn(model, seed):
        made.append(seed)
        torch.nn.init.constant_(model.weight, float(seed))

    def blank(seed):
        return torch.nn.Linear(2, 1)

    file = fake.paper().file
    first, again = (Lab("fake", file).network("net", blank, learn, 3, shared=True) for _ in range(2))
    assert made == [3] and first is not again and not first.training
    assert torch.equal(first.weight, torch.full((1, 2), 3.0)) and torch.equal(again.bias, first.bias)
    kept = Lab("fake", file).trained("net", lambda seed: {"weight": [0.0]}, 3, shared=True)
    assert torch.equal(kept["weight"], first.weight), "a state dict like any other of this paper"


def test_another_seed_or_split_trains_again_unless_what_is_trained_is_shared(fake):
    def trains(**lab):
        made = []
        file = fake.paper().file
        Lab("fake", file, **lab).trained("own", lambda: made.append("own") or {})
        Lab("fake", file, **lab).trained("common", lambda: made.append("common") or {}, shared=True)
        return made

    assert trains() == ["own", "common"]
    assert trains() == []
    assert trains(seed=1) == ["own"]
    assert trains(split="validation") == ["own"]


def test_what_was_trained_on_a_base_is_trained_again_when_the_base_changes(fake):
    made = []

    def train():
        lab = Lab("fake", fake.paper().file)
        lab.base("vae")
        return lab.trained("net", lambda: made.append(1) or torch.nn.Linear(1, 1))

    assert set(train()) == set(train()) == {"weight", "bias"}
    assert len(made) == 1
    fake.weights("vae", 2)
    train()
    assert len(made) == 2


# --- one experiment


def test_a_row_says_what_was_measured(fake):
    result = reproduce(fake.paper(), SMALL)
    public = result.public()
    assert " ".join(public) == ("arxiv slug shelf verdict metric expect arms effect ci control n seeds seconds base")
    assert public["verdict"] == "holds" and public["control"] == "off" and public["base"] == "vae"
    assert public["metric"] == "brightness" and public["expect"] == "fake > plain"
    assert (public["n"], public["seeds"]) == (12, 2)
    assert public["effect"] == pytest.approx(0.3, abs=0.05)
    assert public["effect"] == pytest.approx(public["arms"]["fake"] - public["arms"]["plain"], abs=1e-5)
    assert result.row["cpu_seconds"] > 0 and result.row["seconds"] > 0
    assert public["ci"][0] < public["effect"] < public["ci"][1]
    assert set(result.row["weights"]) >= {"vae", "judge", "judge2"}
    assert fake.ran == EVERY
    json.dumps(result.row)


def test_the_picture_shows_arms_side_by_side(fake):
    [(name, data)] = reproduce(fake.paper(), SMALL).pictures.items()
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert name.startswith("fake-") and name.endswith(".png")
    centres = [sheet[-96 - 4 - row * 100 + 48, 100 + 48] for row in (2, 1, 0)]  # fake, plain, off
    noise = [np.random.default_rng([0, len(arm)]).normal(0, 0.1, 12)[0] for arm in ("fake", "plain", "off")]
    for centre, mean, draw in zip(centres, (0.7, 0.4, 0.4), noise):
        assert centre == pytest.approx([(mean + draw) * 255] * 3, abs=1.5)


def test_a_trial_takes_validation_prompts_and_is_no_result(fake, monkeypatch):
    drawn = []
    draw = sys.modules["showtell.measure.prompts"].prompt_set
    monkeypatch.setattr(
        sys.modules["showtell.measure.prompts"],
        "prompt_set",
        lambda *args, split="test": drawn.append(split) or draw(*args, split),
    )
    trial = record(reproduce(fake.paper(), replace(SMALL, trial=True)))
    assert drawn == ["validation"] and trial.row["verdict"] == "holds" and fake.ran == EVERY
    record(trial, publish=True)
    assert not list(ledger.own().rows())
    assert reproduce(fake.paper(), SMALL).new and drawn == ["validation", "test"] and fake.ran == EVERY


def test_what_the_ledger_holds_is_not_measured_again(fake):
    first = record(reproduce(fake.paper(), SMALL))
    fake.ran  # noqa: B018 (empties it)
    again = reproduce(fake.paper(), SMALL)
    assert not again.new and again.row == first.row and fake.ran == []
    assert len(list(ledger.own().rows())) == 1
    record(again)
    assert len(list(ledger.own().rows())) == 1
    assert len(ledger.picture_of(again.row)) == 1


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ("a comment", 0),
        ("the docstring", 0),
        ("the code", 6),
        ("the weights", 6),
        ("the base seed", 6),
        ("the prompts", 6),
        ("one more seed", 3),
        ("fresh", 0),
        ("the cells", 0),
    ],
)
def test_what_makes_a_result_old(fake, change, runs):
    record(reproduce(fake.paper(), SMALL))
    fake.ran  # noqa: B018
    source, settings = SOURCE, SMALL
    if change == "a comment":
        source = SOURCE.replace("def experiment", "# What follows is the experiment.\n\ndef experiment")
    elif change == "the docstring":
        source = SOURCE.replace("Pictures are made brighter.", "Pictures get lighter.")
    elif change == "the code":
        source = SOURCE.replace("0.7", "0.75")
    elif change == "the weights":
        fake.weights("vae", 2)
    elif change == "the base seed":
        settings = Settings(12, 2, 1)
    elif change == "the prompts":
        settings = Settings(13, 2)
    elif change == "one more seed":
        settings = Settings(12, 3)
    elif change == "fresh":
        settings = Settings(12, 2, fresh=True)  # the row is made again, from the arms that are kept
    elif change == "the cells":
        for path in (fake.folder / "cache" / "cells").rglob("*.npz"):
            path.unlink()
    result = reproduce(fake.paper(source), settings)
    assert len(fake.ran) == runs
    assert result.new == (change not in ("a comment", "the docstring", "the cells"))


def test_a_killed_run_goes_on_with_the_arm_that_was_interrupted(fake):
    whole = reproduce(fake.paper(), SMALL).row
    fake.monkeypatch.setenv("SHOWTELL_CACHE", str(fake.folder / "other"))
    fake.ran  # noqa: B018
    fake.monkeypatch.setenv("FAKE_STOP", "plain 1")
    with pytest.raises(KeyboardInterrupt):
        reproduce(fake.paper(), SMALL)
    assert fake.ran == EVERY[:5]
    fake.monkeypatch.delenv("FAKE_STOP")
    row = reproduce(fake.paper(), SMALL).row
    assert fake.ran == EVERY[4:]
    for name in ("arms", "effect", "ci", "verdict", "findings"):
        assert row[name] == whole[name]


def test_a_damaged_cell_is_measured_again(fake):
    reproduce(fake.paper(), SMALL)
    fake.ran  # noqa: B018
    paths = sorted((fake.folder / "cache" / "cells").rglob("*.npz"))
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[1].write_bytes(b"")
    reproduce(fake.paper(), SMALL)
    assert len(fake.ran) == 2


def test_a_missing_base_is_a_line_and_no_verdict(fake):
    result = reproduce(fake.paper(SOURCE.replace('"vae"', '"nowhere"')), SMALL)
    assert result.row["verdict"] == "not runnable"
    assert "showtell train nowhere" in result.note and "\n" not in result.note
    record(result)
    assert list(ledger.own().rows()) == []


def test_an_arm_that_trains_the_shared_base_is_caught(fake):
    spoiled = SOURCE.replace(
        "        noise =", "        lab.base('vae').decoder.conv_in.weight.data += 1\n        noise ="
    )
    with pytest.raises(ShowtellError, match="arm 'fake' changed the weights of the base 'vae'"):
        reproduce(fake.paper(spoiled), SMALL)
    from showtell.measure import experiment

    experiment._OPEN.clear()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("np.zeros((2, 2))", "one number per item"),
        ("np.array([np.inf, 0])", "infinite"),
        ("np.zeros(seed + 1)", "1, 2 items"),
    ],
)
def test_scores_that_are_no_scores_are_refused(fake, returned, message):
    source = f"""
import numpy as np
def experiment(lab):
    arms = {{name: lambda seed: {returned} for name in ("m", "p")}}
    return lab.compare(arms, expect="m > p")
"""
    with pytest.raises(ShowtellError, match=message):
        reproduce(fake.paper(source), SMALL)


SEVERAL = """
import os
import numpy as np
from PIL import Image

def experiment(lab):
    def arm(name, low):
        def run(seed):
            with open(os.environ["FAKE_LOG"], "a") as file:
                file.write(f"{name} {seed}\\n")
            curve[name] += [(step, low * step) for step in (1, 2)]
            rng = np.random.default_rng([seed, len(name)])
            return [low + rng.normal(0, 0.05), *rng.normal(low, 0.05, 9)]
        return run
    curve = {"m": [], "plain": []}
    arms = {name: arm(name, low) for name, low in (("m", 0.6), ("plain", 0.4))}
    first = lab.compare(arms, np.asarray, name="first", expect="m > plain", curve=curve, axes=("step", "loss"))
    return [first, lab.compare(arms, lambda x: -np.asarray(x), name="second", expect="m > plain")]
"""


def test_several_metrics_share_the_arms_and_the_worst_verdict_counts(fake):
    result = reproduce(fake.paper(SEVERAL), SMALL)
    assert fake.ran == ["m 0", "plain 0", "m 1", "plain 1"]
    assert result.row["verdict"] == "does not hold"
    assert result.row["metric"] == "first" and result.row["effect"] > 0
    [also] = result.row["also"]
    assert also["metric"] == "second" and also["effect"] == pytest.approx(-result.row["effect"])


def test_the_same_arms_by_several_metrics_run_once(fake):
    ran = []
    lab = Lab("fake", fake.paper().file, n=4, seeds=2)
    arms = {"m": lambda seed: ran.append(seed) or np.ones(4), "p": lambda seed: np.zeros(4)}

    def double(scores):
        return 2 * scores

    made = lab.compare_by((np.asarray, double), arms, expect="m > p")
    result = measured(fake.paper(), lambda lab: made, lab, "code")
    assert [result.row["arms"]["m"], result.row["also"][0]["arms"]["m"]] == [1, 2]
    assert result.row["metric"] == "asarray" and result.row["also"][0]["metric"] == "double"
    assert ran == [0, 1]


def test_seeds_that_share_a_training_are_told_from_those_that_share_nothing(fake):
    source = SOURCE.replace("        noise =", "        TRAINED\n        noise =").replace("0.1, lab.n", "0.2, lab.n")
    trained = source.replace("TRAINED", "lab.trained(name, lambda: {'w': [1.0]}, seed)")
    widths = []
    for text in (source.replace("TRAINED", "pass"), trained, trained):  # the third time from the cells
        row = reproduce(fake.paper(text), SMALL).row
        widths.append([high - low for _, _, low, high, _ in row["findings"]])
    assert sum(widths[1]) > sum(widths[0])
    assert widths[1] == widths[2]


def test_points_of_a_curve_are_kept_with_the_arm(fake, monkeypatch):
    drawn = []
    monkeypatch.setattr(picture, "curves", lambda lines, axes, title: drawn.append((lines, axes)) or b"plot")
    first = reproduce(fake.paper(SEVERAL), SMALL)
    assert [name.endswith("-curve.png") for name in first.pictures] == [True]
    reproduce(fake.paper(SEVERAL), SMALL)  # from the cells alone: no arm adds a point
    assert drawn[0] == drawn[1]
    assert drawn[0] == ({"m": [(1, 0.6), (2, 1.2)] * 2, "plain": [(1, 0.4), (2, 0.8)] * 2}, ("step", "loss"))


def test_a_failure_says_what_broke(fake):
    result = failed(fake.paper(), SMALL, RuntimeError("no such luck\nmore"))
    assert result.row["verdict"] == "failed" and result.note == "RuntimeError: no such luck"


# --- pictures


def test_stills_and_clips_are_told_apart():
    still = Image.new("RGB", (300, 150), "red")
    assert picture.shown([still] * 9).shape == (6, 1, 64, 128, 3)
    assert picture.shown([[still] * 4, [still] * 3]).shape == (2, 3, 64, 128, 3)
    assert picture.shown(np.zeros(3)) is None
    assert picture.shown([]) is None
    assert picture.shown(["text"]) is None


def test_clips_become_a_moving_picture():
    clip = np.stack([np.full((2, 8, 8, 3), 20 * frame, np.uint8) for frame in range(4)], axis=1)
    ending, data = picture.encoded(picture.sheet({"m": clip, "plain": clip[:, :2]}, ["one", "two"]))
    for sheet in (data, picture.small(data)):
        with Image.open(io.BytesIO(sheet)) as image:
            assert ending == ".webp" and image.n_frames == 4


# --- the ledger


def test_a_torn_line_is_skipped_and_the_next_one_is_whole(tmp_path):
    book = ledger.Ledger(tmp_path / "deep" / "ledger.jsonl", tmp_path / "pictures")
    assert list(book.rows()) == []
    book.append({"slug": "a", "text": "ü\n"}, {"a.png": b"1"})
    with open(book.path, "ab") as file:
        file.write(b'{"slug": "b", "ver')
    book.append({"slug": "c"})
    assert [row["slug"] for row in book.rows()] == ["a", "c"]
    assert book.find_picture("a.png").read_bytes() == b"1"
    assert book.find_picture("b.png") is None


def test_the_newest_row_counts(tmp_path):
    book = ledger.Ledger(tmp_path / "ledger.jsonl", tmp_path)
    for slug, time, verdict in (("a", "2", "holds"), ("a", "1", "inconclusive"), ("b", "1", "does not hold")):
        book.append({"slug": slug, "time": time, "verdict": verdict})
    assert {slug: row["verdict"] for slug, row in ledger.latest([book]).items()} == {"a": "holds", "b": "does not hold"}


def test_publishing_keeps_a_small_picture_and_only_one_row(fake, monkeypatch):
    book = ledger.Ledger(fake.folder / "published.jsonl", fake.folder / "pictures")
    monkeypatch.setattr(ledger, "published", lambda: book)
    record(record(reproduce(fake.paper(), SMALL)), publish=True)
    [row] = book.rows()
    assert row["pictures"] == ["fake.webp"] and (book.pictures / "fake.webp").is_file()
    monkeypatch.setenv("SHOWTELL_CACHE", str(fake.folder / "empty"))
    fake.ran  # noqa: B018
    again = record(reproduce(fake.paper(), SMALL), publish=True)
    assert not again.new and fake.ran == [] and len(list(book.rows())) == 1
