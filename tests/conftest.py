"""The test bench: one pool of forked workers for the whole session. A row is a function sent to a few of them."""

import os

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.proof import PRELOAD
from konvoi.verbs.train import PRELOAD as PRELOAD_OF_TRAIN
from tests.small import LOADED_LATER


@pytest.fixture(scope="session")
def agent():
    """For runs of `small`: one, with what workers load later loaded at once."""
    with AgentHandle((*PRELOAD_OF_TRAIN, *LOADED_LATER)) as agent:
        yield agent


@pytest.fixture(scope="session")
def pool():
    with AgentHandle(PRELOAD) as agent, Pool(agent, int(os.environ.get("KONVOI_TEST_WORKERS", "4"))) as pool:
        yield pool
