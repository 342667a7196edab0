"""Every way of splitting computes what one process computes. One row a plan; later splits add theirs to proof.rows."""

import sys

import pytest

from konvoi.fleet.crew import AgentHandle
from konvoi.fleet.pool import Pool
from konvoi.plan.island import TWO_STAGES
from konvoi.proof import PRELOAD, Table, is_a_fair_test, rows
from tests.conformance import page
from tests.plan.split import split_rows

ROWS = rows(4)
# Rows that take more than a second or two: what compiles (seconds, those of the GPT as many again), pipelines of more
# than two workers or with something beside them, others that are like a quicker one but for a case or an axis, and most
# of tp's, whose operators are slow to launch; of these one of each kind is in every run.
QUICK_TP = ("gpt tied tp=2", "gpt ragged tp=2,sequence_parallel=True")
QUICK_PP = ("gpt deep dp=2,pp=2",)
QUICK_WIDE = ("gpt dp=3", "gpt dp=2,fsdp=2", *QUICK_PP)


def is_slow(row):
    if row.case == "gpt deep lora":
        return True
    if row.plan.tp > 1:
        return row.name not in QUICK_TP
    compiles = row.plan.compile
    has_two_stages = row.plan.schedule in TWO_STAGES
    shares = row.case == "gpt deep tied" and (row.plan.num_workers > 2 or has_two_stages)
    is_variant = row.plan.pp > 1 and (row.plan.num_workers > 2 or row.plan.checkpoint_activations or bool(row.changes))
    is_base = row.case == "gpt" and row.plan.precision == "fp64" and row.plan.accumulate < 4
    is_again = row.plan.pp == 1 and row.plan.num_workers > 2 and not is_base
    is_kind = row.plan.pp > 1 and (has_two_stages or row.case not in ("gpt deep", "gpt deep tied", "mlp"))
    is_wider = row.plan.num_workers > 2 and row.name not in QUICK_WIDE
    is_other = (
        row.plan.schedule == "gpipe" or (row.plan.zero < 3 and row.plan.accumulate == 1) or row.case == "instance"
    )
    is_rare = is_wider or is_other or (is_variant and row.name not in QUICK_PP)
    return compiles or shares or is_again or is_kind or is_rare


SLOW = [row for row in ROWS if is_slow(row)]
MARKED = [pytest.param(row, marks=pytest.mark.slow) if row in SLOW else row for row in ROWS]
CASES = {(row.case, row.changes): row for row in ROWS if row.plan.precision == "fp64"}


@pytest.mark.parametrize("row", MARKED, ids=lambda row: row.name)
def test_a_plan_computes_what_one_process_computes(table, row):
    assert table.differences(row, timeout_s=110 if row.plan.compile else 60) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_row_leaves_no_thread_behind(table):
    rows_by_name = {row.name: row for row in ROWS}
    before = table.pool.run(split_rows.num_threads, None, 2)
    for name in ("gpt dp=2,fsdp=2", "gpt tied tp=2", "gpt deep pp=2"):
        table.differences(rows_by_name[name])
        assert max(table.pool.run(split_rows.num_threads, None, 2)) <= max(before), name


@pytest.fixture(scope="module")
def table_of_eight():
    """More workers than other rows share a pool of."""
    with AgentHandle(PRELOAD) as agent, Pool(agent, 8) as pool:
        yield Table(pool)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in rows(8) if row.plan.num_workers == 8], ids=lambda row: row.name)
def test_all_axes_at_once(table_of_eight, row):
    assert table_of_eight.differences(row, timeout_s=110) == []


def test_the_page_names_every_row_and_shows_none_that_differs():
    text = page.PATH.read_text()
    assert [
        row.name for row in rows(8) if f"| {row.case} | `{row.name.removeprefix(row.case).strip()}` |" not in text
    ] == []
    assert [line for line in page.family_lines().values() if line not in text] == []
    assert "differs" not in text
    assert "not shown" not in text, "run `make equivalence`"


@pytest.mark.parametrize("row", CASES.values(), ids=lambda row: row.name)
def test_a_case_shows_errors_because_it_learns_and_is_clipped(table, row):
    assert is_a_fair_test(table.reference(row), row.of().job.clip_grad_norm)
