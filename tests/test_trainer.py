"""The trainer learns, averages, saves, is killed, goes on, and refuses what it must refuse."""

import copy
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from showtell import ShowtellError
from showtell.train import Pool, Stream, checkpoint, fit
from showtell.train.batches import iterate
from showtell.train.trainer import MUON_RATE, _decay_groups

TRUE = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(generator, size):
    x = generator.standard_normal((size, 8)).astype(np.float32)
    return {"x": x, "y": x @ TRUE}


def loss(model, batch, generator):
    """Uses the data, the generator and, through dropout, the global generator."""
    noise = 0.01 * torch.randn(batch["x"].shape, generator=generator, device=batch["x"].device)
    error = (model(batch["x"] + noise).float() - batch["y"]).square().mean()
    return error, {"rmse": error.sqrt()}


def network(dropout=0.1):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.GELU(), nn.Linear(16, 1))


def train(model=None, *, objective=loss, data=None, **options):
    settings = {"steps": 12, "lr": 0.01, "log_every": 4, "precision": "no", "progress": False, "seed": 5}
    return fit(model or network(), objective, data or Stream(make, 16), **settings | options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_speed(history):
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in history]


# --- learning ---


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_learns_a_linear_map(schedule):
    result = train(nn.Linear(8, 1), steps=300, lr=0.05, precision="bf16", schedule=schedule, log_every=100)
    np.testing.assert_allclose(result.model.weight.detach().numpy().T, TRUE, atol=0.02)
    assert [row["step"] for row in result.history] == [100, 200, 300]
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < 0.05 * first["loss"]
    assert (result.steps, result.samples) == (300, 300 * 16)
    assert not result.model.training and result.model.weight.dtype is torch.float32


@pytest.mark.parametrize("narrow", [True, False])  # float32 where a machine would merely emulate bfloat16
def test_bf16_is_autocast_over_float32_weights_and_covers_the_whole_loss(monkeypatch, narrow):
    monkeypatch.setattr("showtell.train.process.computes_in_bfloat16", lambda: narrow)
    wanted = torch.bfloat16 if narrow else torch.float32
    seen = []

    def watch(model, batch, generator):
        seen.append((torch.is_autocast_enabled("cpu"), model(batch["x"]).dtype, model.weight.dtype))
        return model(batch["x"]).float().square().mean(), {}

    train(nn.Linear(8, 1), objective=watch, steps=1, precision="bf16")
    train(nn.Linear(8, 1), objective=watch, steps=1, precision="no")
    assert seen == [(narrow, wanted, torch.float32), (False, torch.float32, torch.float32)]


@pytest.mark.parametrize("ema", [0.3, 0.9])  # soon, and never, at its full decay
def test_average_is_the_recurrence_by_hand(ema):
    seen = []

    def watch(model, batch, generator):
        seen.append(model.weight.detach().clone())
        return loss(model, batch, generator)

    torch.manual_seed(0)
    options = {"steps": 30, "lr": 0.1, "objective": watch, "schedule": "constant"}  # it still moves at the end
    averaged = train(nn.Linear(8, 1, bias=False), ema=ema, **options).model.weight
    start = seen[0]
    seen.clear()
    model = nn.Linear(8, 1, bias=False)
    model.weight.data.copy_(start)
    last = train(model, ema=None, **options).model.weight.detach()
    average = start
    for n, weights in enumerate([*seen[1:], last], start=1):
        decay = min(ema, n / (n + 9))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(averaged, average, rtol=1e-5, atol=1e-6)
    assert (averaged - last).abs().max() > 1e-3


def test_learning_rate_warms_up_and_falls():
    def rates(schedule):
        rows = train(steps=20, lr=1.0, warmup=5, schedule=schedule, log_every=1).history
        return [row["lr"] for row in rows]

    constant, cosine, wsd = rates("constant"), rates("cosine"), rates("wsd")
    assert constant[:5] == cosine[:5] == wsd[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(constant[5:]) == {1.0}
    assert cosine[5:] == pytest.approx([(1 + math.cos(math.pi * i / 15)) / 2 for i in range(15)])
    assert wsd[5:] == pytest.approx([1.0] * 13 + [2 / 3, 1 / 3])


def test_norms_biases_and_embeddings_do_not_decay():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out, self.norm = nn.Embedding(5, 4), nn.Linear(4, 5), nn.LayerNorm(4)
            self.convolution, self.frozen = nn.Conv2d(1, 2, 3), nn.Linear(4, 4).requires_grad_(False)
            self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
            self.tied = nn.Linear(4, 5, bias=False)
            self.tied.weight = self.words.weight

    model = Model()
    names = {id(p): name for name, p in model.named_parameters()}
    decaying, spared = ({names[id(p)] for p in group["params"]} for group in _decay_groups(model, 0.1))
    assert decaying == {"out.weight", "convolution.weight"}
    assert spared == {
        "words.weight",
        "out.bias",
        "norm.weight",
        "norm.bias",
        "convolution.bias",
        "pos_embed",
    }


def test_muon_moves_matrices_along_an_orthogonal_direction_and_the_rest_as_adamw():
    def moved(optimizer):
        model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        before = copy.deepcopy(model.state_dict())
        train(model, steps=1, lr=0.001, warmup=0, optimizer=optimizer, weight_decay=0.0, ema=None)
        return {name: value - before[name] for name, value in model.state_dict().items()}

    torch.manual_seed(0)
    muon = moved("muon")
    singular = torch.linalg.svdvals(muon["0.weight"])
    assert singular.max() < 2 * singular.min()  # Newton and Schulz bring them near one another, between 0.7 and 1.2
    # With match_rms the change of an entry is 0.2 of the rate, times MUON_RATE, if all directions are moved alike.
    size = muon["0.weight"].square().mean().sqrt()
    assert size == pytest.approx(0.2 * MUON_RATE * 0.001, rel=0.3)
    torch.manual_seed(0)
    adamw = moved("adamw")
    assert torch.equal(muon["1.bias"], adamw["1.bias"])
    assert not torch.equal(muon["0.weight"], adamw["0.weight"])


@pytest.mark.parametrize("narrow", [True, False])
def test_muon_rounds_to_bfloat16_only_where_the_machine_computes_in_it(monkeypatch, narrow):
    monkeypatch.setattr("showtell.train.trainer.computes_in_bfloat16", lambda: narrow)
    x = torch.from_numpy(make(np.random.default_rng(0), 16)["x"])
    target = x @ torch.randn(8, 6, generator=torch.Generator().manual_seed(0))

    def fitting(model, batch, generator):
        return (model(x.to(model.weight.dtype)) - target).square().mean(), {}

    torch.manual_seed(0)
    model = nn.Linear(8, 6, bias=False)
    again = copy.deepcopy(model).double()
    train(model, objective=fitting, steps=1, lr=0.1, warmup=0, optimizer="muon", weight_decay=0.0, ema=None)
    moved = again.weight.detach() - model.weight.detach()
    # The first step goes along the gradient, orthogonalised by five rounds of a quintic: arXiv 2502.16982, section 2.1.
    fitting(again, None, None)[0].backward()
    wanted = again.weight.grad / again.weight.grad.norm()
    for _ in range(5):
        gram = wanted @ wanted.T
        wanted = 3.4445 * wanted + (-4.775 * gram + 2.0315 * gram @ gram) @ wanted
    error = float((moved / moved.norm() - wanted / wanted.norm()).norm())
    assert error > 1e-3 if narrow else error < 1e-5


def test_muon_continued_is_bit_identical(tmp_path):
    class Stop(Exception):
        pass

    def stopping(model):
        raise Stop

    whole = train(optimizer="muon")
    with pytest.raises(Stop):
        train(optimizer="muon", out=tmp_path, save_every=4, evaluate=stopping, evaluate_every=6)
    continued = train(optimizer="muon", out=tmp_path, save_every=4, resume=True)
    assert same(whole.model, continued.model)
    assert not same(whole.model, train().model)


def test_two_accumulated_batches_are_one_batch_of_twice_the_size():
    data = Pool(make(np.random.default_rng(0), 64), 16)
    twice = Pool(data.arrays, 32)

    def plain(model, batch, generator):
        return (model(batch["x"]) - batch["y"]).square().mean(), {}

    models = [nn.Linear(8, 1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    a = train(models[0], objective=plain, data=data, accumulate=2)
    b = train(models[1], objective=plain, data=twice)
    torch.testing.assert_close(a.model.weight, b.model.weight, rtol=1e-5, atol=1e-6)
    assert a.samples == b.samples == 12 * 32
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in a.history] == pytest.approx([row[name] for row in b.history], rel=1e-4)


def test_the_model_comes_back_unwrapped_and_the_process_as_it_was():
    from accelerate.state import AcceleratorState

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    model = nn.Linear(8, 1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    handler = signal.getsignal(signal.SIGTERM)
    for precision in ("bf16", "no"):  # accelerate alone refuses a second precision in one process
        train(model, precision=precision)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert "forward" not in vars(model) and AcceleratorState._shared_state == {}
    assert signal.getsignal(signal.SIGTERM) is handler


# --- data ---


def test_batches_depend_on_seed_and_number_only_not_on_workers():
    def drawn(workers, seed, indices):
        return [batch["x"] for batch in iterate(Stream(make, 4, workers=workers), seed, indices)]

    alone, together = drawn(0, 7, range(9)), drawn(2, 7, range(9))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(drawn(2, 7, range(4, 9)), alone[4:], strict=True))
    assert len({float(x.sum()) for x in [*alone, *drawn(0, 8, range(9))]}) == 18


def test_pool_shows_every_row_once_per_epoch_in_a_new_order():
    pool = Pool({"row": np.arange(10), "other": torch.arange(10) * 2}, 4)
    batches = [pool(index, 3) for index in range(5)]  # two epochs; the third batch lies in both
    rows = np.concatenate([batch["row"] for batch in batches])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:]) and list(rows[:4]) != list(pool(0, 4)["row"])
    assert all((batch["other"].numpy() == 2 * batch["row"]).all() for batch in batches)
    np.testing.assert_array_equal(pool(2, 3)["row"], batches[2]["row"])


def test_pool_transform_is_seeded_by_the_batch():
    pool = Pool({"x": np.zeros(6)}, 3, transform=lambda batch, generator: {"x": batch["x"] + generator.random(3)})
    np.testing.assert_array_equal(pool(1, 0)["x"], pool(1, 0)["x"])
    assert not np.array_equal(pool(1, 0)["x"], pool(2, 0)["x"])


def test_a_worker_does_not_change_the_result():
    assert same(train().model, train(data=Stream(make, 16, workers=1)).model)


# --- killed, stopped, continued ---


def script(folder, at, number):
    """A process that trains with checkpoints at 5 and 10 and sends itself the signal in step `at`."""
    code = f"""
import os, test_trainer as t
steps = 0
def loss(*arguments):
    global steps
    steps += 1
    if steps == {at}:
        os.kill(os.getpid(), {int(number)})
    return t.loss(*arguments)
t.torch.set_num_threads(1)
options = dict(evaluate=t.error, evaluate_every=3, keep="best:-error")
t.train(objective=loss, out={str(folder)!r}, save_every=5, **options)
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def error(model):
    batch = make(np.random.default_rng(99), 64)
    predicted = model(torch.from_numpy(batch["x"])) + 0.01 * torch.randn(64, 1)  # may draw, and disturbs nothing
    return {"error": (predicted - torch.from_numpy(batch["y"])).abs().mean()}


def test_killed_and_continued_is_bit_identical(tmp_path):
    options = {"evaluate": error, "evaluate_every": 3, "save_every": 5}
    whole = train(keep="best:-error", out=tmp_path / "whole", **options)
    killed = script(tmp_path / "killed", 9, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 8  # three steps after the checkpoint
    model = network()
    torch.nn.init.zeros_(model[0].weight)  # what it starts from must not matter
    continued = train(model, keep="best:-error", out=tmp_path / "killed", resume=True, **options)
    assert same(whole.model, continued.model)
    assert without_speed(whole.history) == without_speed(continued.history)
    assert (whole.best, whole.samples) == (continued.best, continued.samples)
    logged = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert logged == continued.history


def test_sigterm_ends_the_step_and_saves(tmp_path):
    stopped = script(tmp_path, 7, signal.SIGTERM)
    assert stopped.returncode == -signal.SIGINT, stopped.stderr
    assert "stopped after step 7" in stopped.stderr
    assert checkpoint.load(tmp_path)[1]["step"] == 7
    continued = train(out=tmp_path, resume=True, save_every=5, evaluate=error, evaluate_every=3, keep="best:-error")
    whole = train(evaluate=error, evaluate_every=3, keep="best:-error")
    assert same(whole.model, continued.model)


def test_resume_starts_afresh_without_a_checkpoint_and_returns_a_finished_run_at_once(tmp_path):
    first = train(out=tmp_path / "new" / "run", resume=True)
    again = train(out=tmp_path / "new" / "run", resume=True)
    assert same(first.model, again.model) and same(first.model, train().model)
    assert again.history == first.history and again.samples == first.samples


def test_a_folder_with_a_run_is_not_overwritten_without_resume(tmp_path):
    train(out=tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(ShowtellError, match="--resume"):
        train(out=tmp_path)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lr": 0.02}, "lr was 0.01, is 0.02"),
        ({"steps": 13}, "steps was 12, is 13"),
        ({"config": {"recipe": "b"}}, "recipe"),
        ({"model": nn.Linear(8, 1)}, "model was Sequential"),
        ({"data": Stream(make, 8)}, "batch size was 16, is 8"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change, told):
    train(out=tmp_path, config={"recipe": "a"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ShowtellError, match=told):
        train(**{"out": tmp_path, "resume": True, "config": {"recipe": "a"}} | change)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_checkpoint_is_refused_unread(tmp_path):
    target, bomb = tmp_path / checkpoint.NAME, tmp_path / "exploded"
    for write in (
        lambda: torch.save(Bomb(bomb), target),
        lambda: target.write_bytes(pickle.dumps(Bomb(bomb))),
    ):
        write()
        with pytest.raises(ShowtellError, match="damaged"):
            train(out=tmp_path, resume=True)
        assert not bomb.exists()


def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path):
    train(out=tmp_path)
    path = tmp_path / checkpoint.NAME
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    for damaged in (
        bytes(flipped),
        whole[:-100],
        whole[:4],
        b"",
        whole.replace(b'\\"step\\": 12', b'\\"step\\": 11', 1),
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(ShowtellError, match="damaged"):
            train(out=tmp_path, resume=True)
        assert path.read_bytes() == damaged


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    calls, replace = [], os.replace

    def second_fails(source, target):  # as if killed between writing the new file and putting it in place
        if str(target).endswith(checkpoint.NAME):
            calls.append(target)
            if len(calls) == 2:
                raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(Killed):
        train(out=tmp_path / "run", save_every=5)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "run")[1]["step"] == 5
    (tmp_path / "run" / f".{checkpoint.NAME}.left").write_bytes(b"half a file")
    assert same(train(out=tmp_path / "run", save_every=5, resume=True).model, train().model)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [checkpoint.NAME, "log.jsonl"]


def test_tied_weights_are_saved_and_continued(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.second.weight = self.first.weight
            torch.nn.init.eye_(self.first.weight)

        def forward(self, x):
            return self.second(self.first(x))[:, :1]

    class Stop(Exception):
        pass

    def stopping(model):
        raise Stop

    with pytest.raises(Stop):
        train(Tied(), out=tmp_path, save_every=4, evaluate=stopping, evaluate_every=6)
    assert checkpoint.load(tmp_path)[1]["step"] == 4
    assert same(train(Tied(), out=tmp_path, save_every=4, resume=True).model, train(Tied()).model)


# --- stopping on nonsense ---


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path):
    steps = []

    def spoiled(model, batch, generator):
        steps.append(1)
        value, logs = loss(model, batch, generator)
        return value * (float("nan") if len(steps) == 7 else 1.0), logs

    with pytest.raises(ShowtellError, match="loss is not finite at step 7"):
        train(objective=spoiled, out=tmp_path, save_every=5, log_every=100)
    assert checkpoint.load(tmp_path)[1]["step"] == 5


def test_a_gradient_that_is_not_finite_stops_too():
    def spoiled(model, batch, generator):
        return (model(batch["x"]) * 0).abs().sqrt().sum(), {}  # its value is 0, its gradient nan

    with pytest.raises(ShowtellError, match="gradient norm is not finite at step 1"):
        train(objective=spoiled, clip=None)


# --- evaluating ---


def test_evaluation_sees_averaged_weights_in_eval_mode_and_changes_nothing():
    seen = []

    def look(model):
        seen.append((model.training, torch.is_grad_enabled(), model[0].weight.clone()))
        return {"draw": torch.rand(1)}

    with_evaluation = train(evaluate=look, evaluate_every=4)
    assert same(with_evaluation.model, train().model)
    assert [row["step"] for row in with_evaluation.history if "eval/draw" in row] == [4, 8, 12]
    assert all(not training and not grad for training, grad, _ in seen)
    assert torch.equal(seen[-1][2], with_evaluation.model[0].weight)
    assert not torch.equal(seen[0][2], train(ema=None, steps=4, schedule="constant").model[0].weight)


def test_keeps_the_best_weights():
    weights, scores = [], iter([1.0, 3.0, 2.0])

    def score(model):
        weights.append(model[0].weight.clone())
        return {"score": next(scores)}

    result = train(evaluate=score, evaluate_every=4, keep="best:score")
    assert result.best == (8, 3.0)
    assert torch.equal(result.model[0].weight, weights[1]) and not torch.equal(weights[1], weights[2])
    scores = iter([1.0, 3.0, 2.0])
    assert train(evaluate=score, evaluate_every=4, keep="best:-score").best == (4, 1.0)


def test_the_best_weights_outlive_an_interruption(tmp_path):
    weights, options = [], {"out": tmp_path, "evaluate_every": 3, "save_every": 4, "keep": "best:score"}

    class Stop(Exception):
        pass

    def falling(model):
        weights.append(model[0].weight.clone())
        if len(weights) == 3:
            raise Stop
        return {"score": -len(weights)}

    with pytest.raises(Stop):
        train(evaluate=falling, **options)
    continued = train(evaluate=lambda model: {"score": -9.0}, resume=True, **options)
    assert continued.best == (3, -1.0)
    assert torch.equal(continued.model[0].weight, weights[0]) and not torch.equal(weights[0], weights[1])


def test_modules_that_the_caller_keeps_in_eval_mode_stay_so():
    modes = []

    def watch(model, batch, generator):
        if not modes:
            model[1].eval()
        modes.append([module.training for module in model])
        return loss(model, batch, generator)

    train(objective=watch, evaluate=lambda model: {}, evaluate_every=1, steps=3)
    assert modes[1] == [True, False, True, True, True]


# --- what it says ---


def test_progress_is_a_line_per_row_without_a_terminal(capsys):
    train(progress=True, evaluate=lambda model: {"score": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["4/12", "8/12", "12/12"]
    assert "loss" in lines[0] and "samples/s" in lines[0] and "eval/score 0.5" in lines[2]
    train(progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"schedule": "linear"}, "cosine, constant, wsd"),
        ({"precision": "fp16"}, "bf16, no"),
        ({"keep": "best:score"}, "best:NAME"),
        ({"keep": "best:score", "evaluate": lambda model: {"error": 1.0}}, "evaluate gives only: error"),
        ({"model": nn.Linear(8, 1).bfloat16()}, "float32"),
        ({"model": nn.Linear(8, 1).requires_grad_(False)}, "nothing to train"),
        ({"objective": lambda model, batch, generator: model(batch["x"]).mean()}, "dict of numbers"),
    ],
)
def test_bad_input_is_told_in_one_line(options, told):
    with pytest.raises(ShowtellError, match=told) as caught:
        train(**options)
    assert "\n" not in str(caught.value)


# --- compiling, several processes ---


@pytest.mark.slow
def test_compiled_training_agrees(tmp_path):
    def small():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))

    seen = []

    def watch(model, batch, generator):
        seen.append(type(model).__name__)
        return loss(model, batch, generator)

    plain, compiled = train(small()), train(small(), objective=watch, compile=True)
    assert set(seen) == {"OptimizedModule"} and type(compiled.model) is nn.Sequential
    for a, b in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one_with_two_accumulated_batches(tmp_path):
    """Each of the two sees batches of its own, and together they take the steps of one that sees them all."""
    path = tmp_path / "two.py"
    path.write_text(
        "import os, sys, torch, test_trainer as t\n"
        "from safetensors.torch import save_file\n"
        "torch.set_num_threads(1)\n"
        "seen = []\n"
        "def loss(model, batch, generator):\n"
        "    seen.append(float(batch['x'].sum()))\n"
        "    return t.plain(model, batch, generator)\n"
        "model = t.deterministic()\n"
        "t.train(model, objective=loss, out=sys.argv[1], save_every=6)\n"
        "rank = os.environ['RANK']\n"
        "save_file(dict(model.state_dict(), seen=torch.tensor(seen)), f'{sys.argv[1]}/{rank}.safetensors')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(path), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    ranks = [load_file(tmp_path / "run" / f"{rank}.safetensors") for rank in (0, 1)]
    expected = [float(batch["x"].sum()) for batch in iterate(Stream(make, 16), 5, range(24))]
    assert ranks[0]["seen"].tolist() == pytest.approx(expected[0::2])
    assert ranks[1]["seen"].tolist() == pytest.approx(expected[1::2])
    alone = train(deterministic(), objective=plain, accumulate=2)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-4, atol=1e-6)
    assert checkpoint.load(tmp_path / "run")[1]["samples"] == 12 * 32


def deterministic():
    torch.manual_seed(0)
    return nn.Linear(8, 1)


def plain(model, batch, generator):
    return (model(batch["x"]) - batch["y"]).square().mean(), {}
