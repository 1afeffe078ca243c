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
    """Hash of the code of a module that decides a result: what `experiment` reaches there by name, and what each name
    that this imports from the package reaches in its own module. A module without an experiment counts as a whole.

    Lines of comment, docstrings, blank lines, the EXAMPLE of a paper and what a technique `makes` do not count:
    they cannot change a result.
    """
    own = _read(path)
    roots = {"experiment"} if any("experiment" in part.defines for part in own.parts) else None
    wanted: dict[Path, set[str] | None] = {}
    here = _reached(own, roots)
    for module, name in _needs(here):
        if (file := _file(module)) is None or file == path:
            continue
        known = wanted.setdefault(file, set())
        wanted[file] = None if name is None or known is None else known | {name}
    named = [(_module(path), _text(here))]
    named += sorted((_module(file), _text(_reached(_read(file), names))) for file, names in wanted.items())
    return digest(*(f"{name}\n{text}" for name, text in named))


def _reached(source: _Source, roots: set[str] | None) -> list[_Part]:
    """The top-level statements that these names need; what defines nothing is always run. None: all of them."""
    if roots is None:
        return list(source.parts)
    names = set(roots)
    while True:
        parts = [part for part in source.parts if part.defines & names or not part.defines]
        more = names.union(*(part.uses | {name for name, _ in part.members} for part in parts))
        if more == names:
            return parts
        names = more


def _text(parts: Iterable[_Part]) -> str:
    return "\n".join(part.text for part in parts if part.text and not part.imports)


def _needs(parts: list[_Part]) -> set[tuple[str, str | None]]:
    """(module, name) of what these statements import from the package; name None: the module as a whole."""
    bare = set().union(*(part.uses for part in parts))
    members = set().union(*(part.members for part in parts))
    found: set[tuple[str, str | None]] = set()
    for bound, module, name in set().union(*(part.inner | part.imports for part in parts)):
        if name is not None or bound in bare:
            found |= {(module, name)} if bound in bare or any(one == bound for one, _ in members) else set()
        else:
            found |= {(module, attribute) for one, attribute in members if one == bound}
    return found


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


_Import = tuple[str, str, str | None]
"""The name that an import binds, the module of this package that it is from, its name there; None: the module."""


@dataclass(frozen=True)
class _Part:
    """A top-level statement: its text, the names that it defines, the names that it uses, those of which it uses a
    member (name, member), and its imports; `inner` are those inside a function."""

    text: str
    defines: frozenset[str]
    uses: frozenset[str]
    members: frozenset[tuple[str, str]]
    imports: frozenset[_Import]
    inner: frozenset[_Import]


@dataclass(frozen=True)
class _Source:
    """essence: the text without what cannot change a result. imported: modules of this package that it imports, in
    functions too; names that a room's `__init__` only passes on stand for the module that they live in."""

    essence: str
    imported: frozenset[str]
    parts: tuple[_Part, ...]


def _read(path: Path) -> _Source:
    return _parsed(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=2048)
def _parsed(path: str, modified: int) -> _Source:
    """Works on the text, since dumps of a syntax tree differ between versions of Python."""
    source, module = Path(path).read_text(encoding="utf-8"), _module(Path(path))
    package = module if Path(path).name == "__init__.py" else module.rpartition(".")[0]
    lines, tree = source.splitlines(), ast.parse(source)
    silent: set[int] = set()
    inside: set[int] = set()  # lines that continue a text, where # starts no comment
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            inside |= set(range(node.lineno, node.end_lineno or 0))
        for part in _silent(node):
            silent |= set(range(part.lineno - 1, part.end_lineno or part.lineno))
    silent |= {row for row, line in enumerate(lines) if line.lstrip().startswith("#") and row not in inside}
    kept = {row: line.rstrip() for row, line in enumerate(lines) if line.strip() and row not in silent}
    parts = tuple(_part(node, kept, package) for node in tree.body)
    imported = frozenset().union(*({home for _, home, _ in part.imports | part.inner} for part in parts))
    return _Source("\n".join(kept.values()), imported - {module, "showtell"}, parts)


def _part(node: ast.stmt, kept: dict[int, str], package: str) -> _Part:
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    text = "\n".join(kept[row] for row in range(first - 1, node.end_lineno or first) if row in kept)
    inside = _walk(node)
    of_members = [one for one in inside if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)]
    members = frozenset((one.value.id, one.attr) for one in of_members if isinstance(one.value, ast.Name))
    taken = {id(one.value) for one in of_members}
    names = [one for one in inside if isinstance(one, ast.Name)]
    uses = frozenset(one.id for one in names if id(one) not in taken)
    statements = [one for one in inside if isinstance(one, ast.Import | ast.ImportFrom)]
    imports = frozenset().union(*(_named(one, package) for one in statements))
    if isinstance(node, ast.Import | ast.ImportFrom):
        bound = frozenset((alias.asname or alias.name).split(".")[0] for alias in node.names)
        return _Part(text, bound, frozenset(), frozenset(), imports, frozenset())
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        defines = frozenset({node.name})
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        defines = frozenset(one.id for one in names if isinstance(one.ctx, ast.Store))
    else:
        defines = frozenset()
    return _Part(text, defines, uses, members, frozenset(), imports)


def _walk(node: ast.AST) -> list[ast.AST]:
    """The node and all below it but annotations, which are never run (all modules defer them)."""
    found = [node]
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            found += _walk(child) if isinstance(child, ast.AST) else []
    return found


def _silent(node: ast.AST) -> list[ast.stmt]:
    """Statements right below a node that change no result: docstrings, a paper's EXAMPLE, what a technique `makes`."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    silent = ["EXAMPLE", "makes"] if isinstance(node, ast.ClassDef) else ["EXAMPLE"]  # `makes` only refuses others
    return [part for part in node.body if _is_text(part) or _assigned(part) in silent]


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def _assigned(part: ast.stmt) -> str | None:
    """The one name that a statement assigns to."""
    targets = part.targets if isinstance(part, ast.Assign) else []
    return getattr(targets[0], "id", None) if len(targets) == 1 else None


def _named(node: ast.Import | ast.ImportFrom, package: str) -> set[_Import]:
    """What an import takes from this package."""
    if isinstance(node, ast.Import):
        return {(alias.asname or alias.name, alias.name, None) for alias in node.names if _file(alias.name)}
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    if base.split(".")[0] != "showtell":
        return set()
    found: set[_Import] = set()
    for alias in node.names:
        home = _home(base, alias.name)
        found.add((alias.asname or alias.name, home, None if home == f"{base}.{alias.name}" else alias.name))
    return found


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
