"""The test bench: one pool of forked workers for the whole session. A row is a function sent to a few of them."""

import os

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.proof import PRELOAD


@pytest.fixture(scope="session")
def pool():
    with AgentHandle(PRELOAD) as agent, Pool(agent, int(os.environ.get("KONVOI_TEST_WORKERS", "4"))) as pool:
        yield pool
