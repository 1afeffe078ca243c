"""A result rests on the code that its experiment reaches, and on no other."""

from pathlib import Path

import pytest

from showtell.measure import provenance

PAPER = """
from showtell.steer import maps
from showtell.steer.weights import weighted as scaled, unrelated

SIZE = 3
OTHER = 4


class Method:
    def run(self):
        return scaled(SIZE)


def experiment(lab):
    return Method().run() + maps.smooth(1)


def not_reached():
    return unrelated(OTHER)
"""
MAPS = """
def smooth(x):
    return _mean(x)


def _mean(x):
    return x / 2


def sharpen(x):
    return 2 * x
"""
WEIGHTS = """
FACTOR = 2


def weighted(x):
    return FACTOR * x


def unrelated(x):
    return x
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {"steer/__init__.py": "", "steer/maps.py": MAPS, "steer/weights.py": WEIGHTS, "papers/own.py": PAPER}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    provenance._home.cache_clear()
    yield tmp_path
    provenance._home.cache_clear()


def hashed(package: Path) -> str:
    provenance._parsed.cache_clear()
    return provenance.code_hash(package / "papers/own.py")


@pytest.mark.parametrize(
    ("file", "old", "new", "matters"),
    [
        ("papers/own.py", "SIZE = 3", "SIZE = 5", True),
        ("papers/own.py", "scaled(SIZE)", "scaled(SIZE + 1)", True),
        ("papers/own.py", "OTHER = 4", "OTHER = 5", False),
        ("papers/own.py", "class Method:", 'class Method:\n    makes = ("text",)\n', False),
        ("papers/own.py", "unrelated(OTHER)", "unrelated(1)", False),
        ("papers/own.py", "def experiment(lab):", "def experiment(lab):\n    # a remark", False),
        ("steer/maps.py", "return _mean(x)", "return _mean(x + 1)", True),
        ("steer/maps.py", "x / 2", "x / 3", True),  # reached through smooth
        ("steer/maps.py", "2 * x", "3 * x", False),
        ("steer/weights.py", "FACTOR = 2", "FACTOR = 3", True),
        ("steer/weights.py", "return x", "return 2 * x", False),
        ("steer/weights.py", "def unrelated", "def further(x):\n    return x\n\n\ndef unrelated", False),
        ("steer/weights.py", "FACTOR = 2", "FACTOR = 2\nprint(FACTOR)", True),  # what is always run always counts
    ],
)
def test_what_counts(package: Path, file: str, old: str, new: str, matters: bool) -> None:
    before = hashed(package)
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    assert (hashed(package) != before) == matters


def test_a_module_without_an_experiment_counts_as_a_whole(package: Path) -> None:
    before = provenance.code_hash(package / "steer/maps.py")
    (package / "steer/maps.py").write_text(MAPS.replace("2 * x", "3 * x"))
    provenance._parsed.cache_clear()
    assert provenance.code_hash(package / "steer/maps.py") != before
