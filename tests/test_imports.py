"""Imports go only leftwards through the rooms, the world knows no models, and importing showtell is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "showtell"

# Left to right; a room may import from itself and from rooms further left. Rooms of one tuple are neighbours.
ORDER = [
    ("errors", "files", "pictures", "weights"),
    ("world",),
    ("data",),
    ("nets",),
    ("bridges", "language"),
    ("steer",),
    ("train",),
    ("measure",),
    ("papers",),
    ("reproduce",),
    ("demo",),
    ("serve", "cli"),
    ("__main__",),
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# What `from showtell import name` stands for.
ROOT_NAMES = {
    "load": "bridges",
    "Bridge": "bridges",
    "Technique": "bridges",
    "score": "measure",
    "ShowtellError": "errors",
    "UnsupportedError": "errors",
    "__version__": "errors",
}


def module_name(path: Path) -> str:
    parts = ("showtell", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Full names of everything that a module imports, in functions and TYPE_CHECKING blocks too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*here, *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def rooms_of(name: str) -> str | None:
    """The room that a full name lies in; None outside showtell and for showtell itself."""
    parts = name.split(".")
    if parts[0] != "showtell" or len(parts) == 1:
        return None
    return ROOT_NAMES.get(parts[1], parts[1]) if len(parts) == 2 else parts[1]


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    room = rooms_of(module)
    if room is None:  # showtell/__init__.py names what lies in many rooms
        return []
    wrong = []
    for name in sorted(imports(source, module, is_package)):
        other = rooms_of(name)
        if other is None or other == room:
            continue
        if other not in RANK:
            wrong.append(f"{module} imports {name}, which lies in no known room")
        elif RANK[other] > RANK[room] or (RANK[other] == RANK[room] and room not in ORDER[0]):
            wrong.append(f"{module} imports {name}: {other} is not left of {room}")
    return wrong


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_lies_in_a_known_room():
    strangers = {rooms_of(module_name(path)) for path in MODULES} - set(RANK) - {None}
    assert not strangers, f"no room is called {strangers}"


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_go_leftwards(path):
    assert offences(path.read_text(), module_name(path), path.name == "__init__.py") == []


def test_the_world_needs_no_models():
    heavy = {"torch", "diffusers", "transformers", "accelerate", "peft", "torchvision"}
    for path in (PACKAGE / "world").rglob("*.py"):
        found = imports(path.read_text(), module_name(path), path.name == "__init__.py")
        assert not heavy & {name.split(".")[0] for name in found}, path


@pytest.mark.parametrize(
    ("module", "source", "right"),
    [
        ("showtell.steer.layout", "from showtell.bridges.base import Technique", True),
        ("showtell.bridges.base", "from showtell.steer import layout", False),
        ("showtell.bridges.base", "from ..steer import layout", False),
        ("showtell.bridges.base", "from .. import steer", False),
        ("showtell.bridges.base", "from . import steer", True),
        ("showtell.bridges.base", "def f():\n    import showtell.measure.judge", False),
        ("showtell.bridges.base", "from showtell.language.grammar import G", False),
        ("showtell.world.scene", "from showtell import load", False),
        ("showtell.world.scene", "from ..errors import ShowtellError", True),
        ("showtell.papers.compose.a", "from showtell import load, score", True),
        ("showtell.papers.compose.a", "from showtell.cli import main", False),
        ("showtell.papers.compose.a", "from ...cli import main", False),
        ("showtell.cli", "from showtell.attic import old", False),
        ("showtell.world.scene", "import numpy, torch", True),
    ],
)
def test_the_rule_itself(module, source, right):
    assert (offences(source, module) == []) is right


def test_the_rule_inside_a_package_file():
    assert offences("from ..steer import layout", "showtell.bridges", is_package=True)
    assert not offences("from .base import Technique", "showtell.bridges", is_package=True)


def test_importing_is_cheap():
    """Names, not seconds: none of the libraries that take seconds to import may come in."""
    heavy = [
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "numpy",
        "PIL",
        "matplotlib",
        "pydantic",
    ]
    code = f"import sys, showtell, showtell.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_embedded_model_needs_no_later_rooms_and_no_pipelines():
    """What takes a second to import and is not used for an image must not come in on the way to it."""
    heavy = ["diffusers.pipelines", "matplotlib"]
    heavy += [f"showtell.{room}" for room in ("language", "steer", "train", "measure", "papers", "reproduce")]
    code = (
        "import sys, showtell; bridge = showtell.load();"
        "picture = bridge.generate('a red ring', num_inference_steps=1); bridge.caption(picture);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_root_names_are_the_ones_listed_here():
    import showtell

    assert set(showtell.__all__) == set(ROOT_NAMES)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        showtell.lode  # noqa: B018
