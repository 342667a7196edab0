"""One agent for the tests of this folder: as `train` would start it, with what workers load later loaded at once."""

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.verbs.train import PRELOAD


@pytest.fixture(scope="session")
def agent():
    with AgentHandle((*PRELOAD, "torch._dynamo", "konvoi.state.shards")) as agent:
        yield agent
