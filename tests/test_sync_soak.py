"""The round under many more faults than fit into every run: most of an hour."""

import pytest

from tests.plan.sync.test_round import check_coverage, run_all


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_no_seed_of_a_hundred_thousand_breaks_a_promise():
    check_coverage(*run_all(100_000), 100_000)
