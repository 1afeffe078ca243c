"""The catalogue of papers and where each one's module lies: `papers/<shelf>/<slug>.py`.

Rows come from `catalogue/<shelf>.yaml`; a paper is implemented when its module is there. Nothing registers itself.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from showtell.errors import ShowtellError

HERE = Path(__file__).parent
SHELVES = (
    "represent",
    "generate",
    "accelerate",
    "compose",
    "prompt",
    "align",
    "personalize",
    "control",
    "responsible",
    "evaluate",
    "curate",
    "edit",
    "animate",
    "unify",
)


@dataclass(frozen=True)
class Paper:
    """One row of the catalogue. hosts: architectures that it attaches to or is made of. minutes: what its experiment
    may take. row: everything the catalogue says."""

    arxiv: str
    title: str
    slug: str
    shelf: str
    kind: str
    hosts: tuple[str, ...]
    minutes: float
    row: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def file(self) -> Path:
        """Where its module lies once it is written."""
        return HERE / self.shelf / f"{self.slug}.py"

    @property
    def implemented(self) -> bool:
        return self.file.is_file()

    def module(self) -> ModuleType:
        """Its module, imported. Raises ShowtellError where it is not written yet."""
        if not self.implemented:
            raise ShowtellError(f"{self.slug} ({self.arxiv}) is in the catalogue, but nobody has written it yet")
        return import_module(f"showtell.papers.{self.shelf}.{self.slug}")


def catalogue(shelf: str | None = None) -> list[Paper]:
    """All papers, or those of one shelf, shelf by shelf in the order of their arXiv ids.

    Raises ShowtellError for an unknown shelf.
    """
    if shelf is not None and shelf not in SHELVES:
        raise ShowtellError(f"unknown shelf {shelf!r}; use one of: {', '.join(SHELVES)}")
    return [paper for name in ([shelf] if shelf else SHELVES) for paper in _shelf(name)]


@lru_cache(maxsize=len(SHELVES))
def _shelf(name: str) -> list[Paper]:
    found = [_paper(row) for row in _rows(HERE / "catalogue" / f"{name}.yaml")]
    return sorted(found, key=lambda paper: paper.arxiv)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a shelf. Reading YAML takes a second for the whole catalogue, so what was read is kept as JSON."""
    from showtell import files
    from showtell.measure.provenance import cache_folder, digest

    text = path.read_text(encoding="utf-8")
    kept = cache_folder() / "catalogue" / f"{path.stem}-{digest(text)}.json"
    try:
        return json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        rows = _parse(text)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, json.dumps(rows, ensure_ascii=False))
    except (OSError, ShowtellError):
        pass  # no cache, no harm: it is read again the next time
    return rows


def _parse(text: str) -> list[dict[str, Any]]:
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _paper(row: Mapping[str, Any]) -> Paper:
    return Paper(
        arxiv=str(row["arxiv"]),
        title=str(row["title"]),
        slug=str(row["slug"]),
        shelf=str(row["shelf"]),
        kind=str(row["kind"]),
        hosts=tuple(row["hosts"]),
        minutes=float(row["experiment"]["minutes"]),
        row=row,
    )


def find(name: str) -> Paper:
    """The paper with this arXiv id (a version or a URL may be on it) or slug.

    Raises ShowtellError naming the nearest ones.
    """
    wanted = name.strip().removeprefix("arXiv:").rsplit("/", 1)[-1]
    plain = wanted.lower().replace("-", "_")
    known = catalogue()
    for paper in known:
        if paper.slug == plain or paper.arxiv == wanted.split("v")[0]:
            return paper
    names = {key: paper for paper in known for key in (paper.slug, paper.arxiv)}
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.6)
    near = near or [paper.slug for paper in search(wanted)[:3]]
    hint = f"; did you mean {', '.join(near)}?" if near else "; `showtell papers` lists them"
    raise ShowtellError(f"unknown paper {name!r}{hint}")


def search(query: str = "", shelf: str | None = None) -> list[Paper]:
    """Papers in which every word of the query occurs: in title, slug, id, kind, hosts, parts or mechanism; those with
    all words in title, slug or id come first."""
    words = query.lower().split()

    def hits(paper: Paper, everything: bool) -> bool:
        text = f"{paper.title} {paper.slug} {paper.arxiv}"
        if everything:
            more = (paper.kind, *paper.hosts, *paper.row.get("parts", ()), str(paper.row.get("mechanism", "")))
            text = " ".join((text, *more))
        return all(word in text.lower() for word in words)

    found = [paper for paper in catalogue(shelf) if hits(paper, True)]
    return sorted(found, key=lambda paper: not hits(paper, False))
