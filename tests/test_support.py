import tomllib

import pytest

from docs import make_support


def _table(**cells):
    return {"columns": {"cpu": "CPU"}, "groups": [{"title": "Split", "features": [{"name": "dp", **cells}]}]}


def test_the_page_is_made_from_the_table_as_it_is():
    table = tomllib.loads(make_support.TABLE.read_text())
    assert make_support.PAGE.read_text() == make_support.page(table), "run `make docs`"


def test_a_cell_without_a_value_claims_nothing():
    assert "| dp | *not tested by us* |" in make_support.page(_table())


def test_a_device_is_named_with_its_day_and_commit():
    cell = {"device": "H100", "date": "2026-01-01", "commit": "abc"}
    assert "| dp | **tested on** H100, 2026-01-01, abc |" in make_support.page(_table(cpu=cell))


@pytest.mark.parametrize("cell", ["tests/no_such_file.py", {"device": "H100"}, True])
def test_a_claim_that_cannot_be_checked_is_refused(cell):
    with pytest.raises(ValueError, match=r"no such test|expected a test's path"):
        make_support.page(_table(cpu=cell))


def test_a_misspelt_column_is_refused():
    with pytest.raises(ValueError, match="no such column"):
        make_support.page(_table(cuda="-"))
