"""The equivalence table is able to fail: each kind of bug, planted inside the workers, makes its row fail."""

import pytest

from konvoi.plan.island import Island
from konvoi.proof.table import Row
from tests.conformance import planted


def _row(case, **plan):
    return Row(case, Island(precision="fp64", **plan))


BUGS = [
    (planted.dropped_all_reduce, _row("gpt", dp=2)),
    (planted.dropped_sum_in_memory, _row("gpt", dp=2)),
    (planted.mean_of_means, _row("gpt ragged", dp=2)),
    (planted.mean_of_means, _row("gpt ragged", fsdp=2)),
    (planted.clip_per_shard, _row("gpt", fsdp=2)),
    (planted.clip_per_shard, _row("gpt", dp=2, fsdp=2)),
    (planted.tie_broken, _row("gpt tied", dp=2)),
    (planted.tie_broken, _row("gpt tied", fsdp=2)),
    (planted.tied_weight_updated_twice, _row("gpt tied", dp=2)),
    (planted.tied_weight_updated_twice, _row("gpt tied", fsdp=2)),
    (planted.lost_micro_batch, _row("gpt", accumulate=2)),
    (planted.synchronised_too_early, _row("gpt", dp=2, accumulate=2)),
    (planted.synchronised_too_early, _row("gpt", fsdp=2, accumulate=2)),
    (planted.divided_by_world_size, _row("gpt", fsdp=2)),
    (planted.divided_by_world_size, _row("gpt", dp=2, fsdp=2)),
    (planted.scale_not_undone, _row("gpt", dp=2)),
    (planted.scale_not_undone, _row("gpt", fsdp=2)),
    (planted.weights_differ_between_workers, _row("gpt", dp=2)),
    (planted.samples_read_twice, _row("gpt", dp=2)),
    (planted.clip_per_shard, _row("gpt deep", pp=2)),
    (planted.wrong_micro_batch, _row("gpt deep", pp=2)),
    (planted.wrong_micro_batch, _row("gpt deep", pp=2, schedule="zbv")),
    (planted.copys_gradient_dropped, _row("gpt deep tied", pp=2)),
    (planted.copy_out_of_date, _row("gpt deep tied", pp=2)),
    (planted.copy_counted_twice, _row("gpt deep tied", pp=2)),
    (planted.weights_differ_between_workers, _row("gpt deep", dp=2, pp=2)),
]
TP_BUGS = [
    (planted.clip_per_shard, _row("gpt", tp=2)),
    (planted.tie_broken, _row("gpt tied", tp=2)),
    (planted.replicated_counted_twice, _row("gpt", tp=2)),
    (planted.replicated_counted_twice, _row("gpt", fsdp=2, tp=2)),
    (planted.summand_taken_for_the_sum, _row("gpt", tp=2, sequence_parallel=True)),
    (planted.keys_of_other_heads, _row("gpt heads", tp=2)),
    (planted.target_in_every_part, _row("gpt", tp=2)),
    (planted.tp_reads_different_samples, _row("gpt", dp=2, tp=2)),
    (planted.weights_differ_between_workers, _row("gpt", tp=2)),
]
# Slow to launch: some are in every run.
SLOW = [(bug, row) for bug, row in BUGS if row.plan.schedule == "zbv" or row.plan.num_workers > 2]
SLOW += [(bug, row) for bug, row in BUGS if bug.__name__ in ("copys_gradient_dropped", "copy_out_of_date")]
SLOW += [(bug, row) for bug, row in TP_BUGS if row.plan.num_workers > 2 or bug.__name__ != "target_in_every_part"]


PAIRS = [pytest.param(*pair, marks=pytest.mark.slow) if pair in SLOW else pair for pair in [*BUGS, *TP_BUGS]]


@pytest.mark.parametrize(("bug", "row"), PAIRS, ids=lambda value: getattr(value, "__name__", None) or value.name)
def test_a_planted_bug_makes_its_row_fail(table, bug, row):
    found = table.differences(row, bug)
    assert found, "the table does not see this bug"


@pytest.mark.slow
def test_the_patches_are_gone_after_a_row(table):
    for row in {row for _, row in BUGS if row.plan.num_workers == 2 and row.plan.schedule == "1f1b"}:
        assert table.differences(row) == []


@pytest.mark.parametrize("plan", [{"dp": 2}, {"dp": 3, "accumulate": 2}], ids=str)
@pytest.mark.parametrize("disguise", [planted.nothing, planted.nothing_apart], ids=["one machine", "several"])
def test_several_small_buckets_compute_the_same(table, plan, disguise):
    assert table.differences(_row("gpt", **plan), disguise) == []
