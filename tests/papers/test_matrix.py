"""docs/matrix.md says what the tests say: cells, footnotes and debts."""

from __future__ import annotations

import matrix
import pytest

from showtell.bridges.families import FAMILIES


def table(cells):
    """slug -> column -> cell, of the page that is made for these cells."""
    found, heads = {}, []
    for line in matrix.page(cells).splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        if row[:1] == ["paper"]:
            heads = row
        elif row and not set(row[0]) <= {"-"}:
            found[row[0]] = dict(zip(heads, row))
    return found


def test_tested_cells_debts_and_what_does_not_apply():
    cells = {("frap", "sd"): "", ("frap", "flux"): "no unconditional branch", ("frap", "wan"): ""}
    frap = table(cells)["frap"]
    assert frap["hosts"] == "unet, dit, mmdit"
    assert (frap["SD"], frap["SDXL"], frap["Wan"]) == ("yes", "", "yes")
    assert frap["FLUX"] == "– (1)" and "1. frap: no unconditional branch" in matrix.page(cells)
    assert "LTX" not in frap


def test_any_of_a_family_s_models_counts():
    assert table({("frap", "pixart_sigma"): "", ("frap", "pixart"): "not this one"})["frap"]["PixArt"] == "yes"


def test_every_family_that_loads_has_a_column():
    assert {name for _, _, families, _ in matrix.COLUMNS for name in families} == {one.name for one in FAMILIES}


@pytest.mark.parametrize("cell", [("fraps", "sd"), ("frap", "sd9")])
def test_unknown_papers_and_families_are_refused(cell):
    with pytest.raises(ValueError, match="papers go by slug"):
        matrix.page({cell: ""})


def test_the_page_in_the_documentation_is_current(request):
    cells = request.config.stash.get(matrix.CELLS, None)
    if cells is None:
        pytest.skip("not all tests of papers were collected")
    assert matrix.PAGE.read_text() == matrix.page(cells), "run: python tests/papers/matrix.py"
