"""One agent for the tests of this folder, as `train` would start it."""

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.verbs.train import PRELOAD


@pytest.fixture(scope="session")
def agent():
    with AgentHandle(PRELOAD) as agent:
        yield agent
