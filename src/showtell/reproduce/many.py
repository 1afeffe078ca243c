"""Many papers, one after the other or spread over a Ray cluster; every result is recorded as it comes in."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from showtell import files
from showtell.errors import ShowtellError
from showtell.papers import Paper, catalogue, find
from showtell.reproduce.runner import Result, Settings, Show, failed, record, reproduce


def chosen(names: Sequence[str], shelf: str | None = None, everything: bool = False) -> list[Paper]:
    """The papers that were asked for: by id or slug, all that are written of a shelf, or all that are written.

    Raises ShowtellError: nothing asked for, an unknown name (naming the nearest), a paper that is not written yet.
    """
    papers = [find(name) for name in names]
    for paper in papers:
        if not paper.implemented:
            paper.module()  # says so
    if shelf or everything:
        papers += [paper for paper in catalogue(shelf) if paper.implemented]
    elif not names:
        raise ShowtellError("nothing to reproduce; give arXiv ids or slugs, --shelf SHELF or --all")
    return list({paper.slug: paper for paper in papers}.values())


def reproduce_all(
    papers: Sequence[Paper],
    settings: Settings,
    show: Show | None = None,
    publish: bool = False,
    out: Path | None = None,
    ray: str | None = None,
) -> Iterator[Result]:
    """The result of every paper as it is ready, in the ledger already. What breaks does not stop the others.

    out: a folder that gets SLUG.json and the pictures. ray: address of a cluster, or "auto".
    """
    if ray is not None:
        from showtell.reproduce.cluster import spread

        results = spread(papers, settings, ray)
    else:
        results = (attempt(paper, settings, show) for paper in papers)
    for result in results:
        recorded = record(result, publish)
        if out is not None:
            _write(recorded, out)
        yield recorded


def attempt(paper: Paper, settings: Settings, show: Show | None = None) -> Result:
    """The paper's result; one that says "failed", and where, if its experiment breaks."""
    try:
        return reproduce(paper, settings, show)
    except Exception as error:  # whatever a paper does, the others go on
        result = failed(paper, settings, error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, ShowtellError) else f" ({Path(place.filename).name}, line {place.lineno})"
        return Result(result.row, note=result.note + where)


def _write(result: Result, out: Path) -> None:
    from showtell.reproduce.ledger import picture_of

    slug = result.row["slug"]
    files.write(out / f"{slug}.json", json.dumps(result.row, ensure_ascii=False, indent=1) + "\n")
    pictures = result.pictures or {path.name: path.read_bytes() for path in picture_of(result.row)}
    for number, (name, data) in enumerate(pictures.items()):
        files.write(out / f"{slug}{'' if number == 0 else f'-{number + 1}'}{Path(name).suffix}", data)
