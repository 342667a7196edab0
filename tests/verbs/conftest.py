"""One run of a small GPT, for the tests of this folder."""

import pytest

import konvoi as kv
from tests import small
from tests.verbs.texts import text_job


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="package")
def run(agent, folder):
    return small.train(agent, folder, text_job(folder), kv.Island(fsdp=2))
