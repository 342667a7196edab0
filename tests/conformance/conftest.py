import pytest

from konvoi.proof import Table


@pytest.fixture(scope="session")
def table(pool):
    """One for all rows, so that each case's single process runs once."""
    return Table(pool)
