"""Sites and their server over TLS: rounds are decided, by whom they should be, and nothing counts twice."""

from __future__ import annotations

import numpy as np
import pytest

from tests.sites.conftest import NUMBERS, make_pack, weights


def test_a_run_is_the_weighted_mean_of_its_sites(federation, tmp_path):
    pack = make_pack(tmp_path)
    for name, number in (("a", "1"), ("b", "2"), ("c", "3")):
        federation.run(federation.site(name, pack, data=number))
    federation.submit(pack, first=3)
    federation.wait(lambda: federation.hall.runs and federation.hosted().is_over)
    run = federation.hosted()
    assert [len(one["updates"]) for one in run.history()] == [3, 3, 3]
    assert np.allclose(weights(run), 3 * (1 + 4 + 9) / 6)  # each counts by its samples, and moves by its number
    assert weights(run).shape == (NUMBERS,)
    assert not run.refused
    assert run.history()[1]["told"]["loss"] == pytest.approx((1 + 4 + 9) / 6, rel=1e-6)
