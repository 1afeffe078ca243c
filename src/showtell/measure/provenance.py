"""What a result rests on: hashes of code and of weights, and where results are kept between runs."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
_LENGTH = 12  # hexadecimal digits of a hash: collisions among a million results are out of reach


def cache_folder() -> Path:
    """$SHOWTELL_CACHE, or ~/.cache/showtell: what can be made again, and a user's own results."""
    return Path(os.environ.get("SHOWTELL_CACHE") or "~/.cache/showtell").expanduser()


def digest(*parts: str) -> str:
    """A short hash of texts, in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_LENGTH]


def machine() -> str:
    """The kind of machine, in words: "Intel Xeon, 2 cores" or the name of the accelerator in use."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"


# --- weights ------------------------------------------------------------------------------------------------------


def weights_hash(folder: Path) -> str:
    """Hash of a checkpoint folder: tensors, configurations and tokenizers; not the card, which only describes."""
    digests = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt", ".model") and path.name != "card.json":
            stat = path.stat()
            digests.update(
                f"{path.relative_to(folder)} {_file_hash(str(path), stat.st_size, stat.st_mtime_ns)}".encode()
            )
    return digests.hexdigest()[:_LENGTH]


@lru_cache(maxsize=512)
def _file_hash(path: str, size: int, modified: int) -> str:
    """size and modified only tell a changed file from the one that was read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- code ---------------------------------------------------------------------------------------------------------


def code_hash(path: Path) -> str:
    """Hash of a module of the package and of the modules of the package that it imports itself.

    Lines of comment, docstrings, blank lines and the EXAMPLE of a paper do not count: they cannot change a result.
    """
    return _hash_of({path, *_imported(path)})


def deep_hash(path: Path) -> str:
    """The same over everything that is reached from the module; the bridges, found by name, count together."""
    reached, open_ends = {path}, [path]
    while open_ends:
        found = _imported(open_ends.pop())
        if any(file.parent == PACKAGE / "bridges" for file in found):
            found |= set((PACKAGE / "bridges").glob("*.py"))
        open_ends += found - reached
        reached |= found
    return _hash_of(reached)


def _imported(path: Path) -> set[Path]:
    return {file for name in _read(path).imported if (file := _file(name)) is not None}


def _hash_of(files: Iterable[Path]) -> str:
    named = sorted((_module(file), _read(file).essence) for file in files)
    return digest(*(f"{name}\n{text}" for name, text in named))


def _module(path: Path) -> str:
    """The full name of the module in a file; the bare file name outside the package."""
    if not path.is_relative_to(PACKAGE):
        return path.stem
    parts = ("showtell", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file(module: str) -> Path | None:
    """The file of a module of this package, or None."""
    if module.split(".")[0] != "showtell":
        return None
    place = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file() and place != PACKAGE:
            return path
    return None


@dataclass(frozen=True)
class _Source:
    """essence: the text without what cannot change a result. imported: modules of this package that it imports, in
    functions too; names that a room's `__init__` only passes on stand for the module that they live in."""

    essence: str
    imported: frozenset[str]


def _read(path: Path) -> _Source:
    return _parsed(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=2048)
def _parsed(path: str, modified: int) -> _Source:
    """Works on the text, since dumps of a syntax tree differ between versions of Python."""
    source, module = Path(path).read_text(encoding="utf-8"), _module(Path(path))
    package = module if Path(path).name == "__init__.py" else module.rpartition(".")[0]
    lines = source.splitlines()
    silent: set[int] = set()
    inside: set[int] = set()  # lines that continue a text, where # starts no comment
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if _file(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            imported |= _named(node, package)
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            inside |= set(range(node.lineno, node.end_lineno or 0))
        for part in _silent(node):
            silent |= set(range(part.lineno - 1, part.end_lineno or part.lineno))
    silent |= {row for row, line in enumerate(lines) if line.lstrip().startswith("#") and row not in inside}
    kept = [line.rstrip() for row, line in enumerate(lines) if line.strip() and row not in silent]
    return _Source("\n".join(kept), frozenset(imported - {module, "showtell"}))


def _silent(node: ast.AST) -> list[ast.stmt]:
    """Statements right below a node that say something to readers only: docstrings, and a paper's EXAMPLE."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    return [part for part in node.body if _is_text(part) or _is_example(part)]


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def _is_example(part: ast.stmt) -> bool:
    return isinstance(part, ast.Assign) and [getattr(target, "id", None) for target in part.targets] == ["EXAMPLE"]


def _named(node: ast.ImportFrom, package: str) -> set[str]:
    """The modules of this package behind `from ... import ...`."""
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    return {_home(base, alias.name) for alias in node.names} if base.split(".")[0] == "showtell" else set()


@lru_cache(maxsize=4096)
def _home(module: str, name: str, depth: int = 4) -> str:
    """The module that `from module import name` takes the name from."""
    if _file(f"{module}.{name}"):
        return f"{module}.{name}"
    init = PACKAGE.joinpath(*module.split(".")[1:], "__init__.py")
    if depth and init.is_file():
        for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
                base = f"{module}.{node.module}" if node.level else str(node.module)
                return _home(base, name, depth - 1)
    return module
