import os

import pytest

from konvoi.proof import Table
from tests.conformance import page


@pytest.fixture(scope="session")
def table(pool):
    """One for all rows, so that each case's single process runs once."""
    return Table(pool)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" or report.outcome != "passed":
        page.OUTCOMES[item.name] = report.outcome


def pytest_sessionfinish():
    """`make equivalence` writes docs/equivalence.md from what this run has shown."""
    if os.environ.get("KONVOI_WRITE_TABLE"):
        page.PATH.write_text(page.text())
