import json

import pytest

import konvoi
from konvoi.plan.island import Island
from konvoi.proof import Table, rows, trace
from konvoi.proof.table import ACCELERATOR, Row
from konvoi.verbs import doctor
from tests.conformance import planted


@pytest.fixture(scope="module")
def found():
    return doctor.doctor()


def test_the_machine_is_described_in_json(found):
    assert json.loads(json.dumps(found)) == found
    assert found["konvoi"] == konvoi.__version__
    assert found["num_cores"] >= 1
    assert found["memory_bytes"] > 100_000_000
    assert found["disk_free_bytes"] > 0
    assert set(found["extras"]) == {"text", "hub", "hf", "lora", "images", "tensorboard"}


def test_two_workers_reach_each_other_here(found):
    assert found["loopback"] == "ok"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"can_fork": False}, "workers are spawned"),
        ({"loopback": "refused"}, "firewall"),
        ({"disk_free_bytes": 5_000_000}, "checkpoints may not fit"),
        ({"device_kind": "cpu"}, "no accelerator"),
        ({"congestion_control": "cubic"}, "tcp_congestion_control=bbr"),
        ({"extras": {"text": False, "hub": True, "hf": False}}, "pip install 'konvoi[text,hf]'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_warning_says_what_mends_it(change, says):
    fine = {"can_fork": True, "loopback": "ok", "disk_free_bytes": 10**12, "device_kind": "cuda", "extras": {}}
    fine |= {"congestion_control": "bbr"}
    assert list(doctor._warnings(fine)) == []
    (warning,) = doctor._warnings(fine | change)
    assert says in warning


def _prove(pool, table, budget_s=60.0, entry=trace):
    proof, lines = Table(pool), []
    whole = proof.differences
    proof.differences = lambda row, **options: whole(row, entry, **options)
    return doctor._prove(proof, table, lines.append, budget_s), lines


@pytest.mark.slow
def test_the_self_test_has_a_line_a_row(pool):
    is_good, lines = _prove(pool, rows(2, compiled=False)[:3])
    assert is_good
    assert [line[:6].strip() for line in lines[:-1]] == ["ok"] * 3
    assert lines[-1] == "3 of 3 rows hold"


def test_the_self_test_fails_where_a_split_computes_something_else(pool):
    table = [Row("gpt", Island(fsdp=2, precision="fp64"))]
    is_good, lines = _prove(pool, table, entry=planted.divided_by_world_size)
    assert not is_good
    assert lines[0].startswith("FAILED")
    assert "norms: relative difference" in lines[0]


def test_the_self_test_keeps_to_its_time_and_says_what_it_left_out(pool):
    is_good, lines = _prove(pool, rows(2, compiled=False), budget_s=0.0)
    assert is_good
    assert "rows were not tried" in lines[-2]


@pytest.mark.slow
def test_on_an_accelerator_the_rows_are_in_fp32(pool):
    table = list(dict.fromkeys(row.on_accelerator() for row in rows(2)))
    assert {row.plan.precision for row in table} == {"fp32", "bf16"}
    assert all(row.only_losses and row.tolerance >= ACCELERATOR for row in table)
    some = [row for row in table if row.case in ("cnn", "gpt ragged", "callable") and not row.plan.compile]
    assert _prove(pool, some)[0]
