import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from konvoi.errors import DataError
from konvoi.job.data.mapping import map as map_data
from konvoi.job.data.of import of
from konvoi.job.data.stream import Stream
from konvoi.job.data.stream_loader import StreamBatches, locate


class Plain:
    """No contract but iter()."""

    def __init__(self, values=range(37)):
        self.values = list(values)
        self.reads = 0

    def __iter__(self):
        for value in self.values:
            self.reads += 1
            yield {"value": value, "noise": random.random()}


class Cuttable(Plain):
    def shard(self, index, count):
        return Plain(self.values[index::count])


class Resuming(Plain):
    start = here = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for place in range(start, len(self.values)):
            self.reads += 1
            self.here = place + 1
            yield {"value": self.values[place], "noise": random.random()}

    def state_dict(self):
        return {"here": self.here}

    def load_state_dict(self, state):
        self.start = self.here = state["here"]


KINDS = {"plain": Plain, "resuming": Resuming, "cuttable": lambda: Stream(Cuttable(range(370)), virtual_shards=20)}


def read(make, steps, *, num_workers=1, accumulate=1, start_step=0, state=None):
    parts = []
    for worker in range(num_workers):
        batches = StreamBatches(
            make(),
            seed=5,
            global_batch=10,
            worker=worker,
            num_workers=num_workers,
            accumulate=accumulate,
            start_step=start_step,
            state=state,
        )
        parts.append(list(islice(batches, steps)))
    steps_of = [[micro.batch for part in parts for micro in part[step]] for step in range(steps)]
    return [{name: torch.cat([batch[name] for batch in step]).tolist() for name in step[0]} for step in steps_of]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("num_workers", "accumulate"), [(2, 1), (3, 2), (4, 1)])
def test_samples_and_randomness_do_not_depend_on_the_plan(make, num_workers, accumulate):
    assert read(make, 9, num_workers=num_workers, accumulate=accumulate) == read(make, 9)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("start_step", [1, 3, 4, 9])
def test_resuming_without_a_state_skips(make, start_step):
    assert read(make, 3, num_workers=3, start_step=start_step) == read(make, start_step + 3)[start_step:]


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("start_step", [1, 3, 4, 9])
def test_the_state_of_any_worker_resumes_any_plan_without_reading_again(worker, start_step):
    batches = StreamBatches(Resuming(), seed=5, global_batch=10, worker=worker, num_workers=2)
    held = iter(batches)
    for _ in range(start_step):
        next(held)
    state = batches.state_dict()
    stream = Resuming()
    resumed = read(lambda: stream, 3, start_step=start_step, state=state)
    assert resumed == read(Resuming, start_step + 3)[start_step:]
    assert stream.reads == 30


def test_a_plain_stream_has_no_state_and_refuses_one():
    batches = StreamBatches(Plain(), seed=0, global_batch=4, worker=0, num_workers=1)
    next(iter(batches))
    assert batches.state_dict() is None
    state = {"epoch": 0, "index": 4, "length": 0, "num_read": 4, "stream": {}}
    with pytest.raises(DataError, match="cannot go on from a saved state"):
        next(iter(StreamBatches(Plain(), seed=0, global_batch=4, worker=0, num_workers=1, start_step=1, state=state)))


def test_virtual_shards_hold_every_sample_once_an_epoch():
    steps = read(lambda: Stream(Cuttable(range(400)), virtual_shards=20), 40)
    assert Counter(value for step in steps for value in step["value"]) == dict.fromkeys(range(400), 1)
    assert len({draw for step in steps for draw in step["noise"]}) == 400


def test_a_worker_opens_only_the_shards_of_its_places():
    opened = []

    class Watched(Cuttable):
        def shard(self, index, count):
            opened.append(index)
            return super().shard(index, count)

    stream = Stream(Watched(range(640)), virtual_shards=64)
    list(islice(StreamBatches(stream, seed=0, global_batch=32, worker=1, num_workers=4), 8))
    assert sorted(opened) == list(range(16, 32))


@pytest.mark.parametrize(("batch", "shards"), [(10, 60), (60, 10), (8, 8), (1, 7), (7, 1)])
def test_places_read_each_shard_in_order_without_a_gap(batch, shards):
    seen = {}
    for step in range(12 * shards):
        for slot in range(batch):
            shard, number = locate(step, slot, batch, shards)
            assert seen.get(shard, -1) + 1 == number
            seen[shard] = number
    assert len(seen) == shards
    assert max(seen.values()) == min(seen.values())


def test_what_it_costs_is_said():
    def notes(samples, num_workers):
        return StreamBatches(samples, seed=0, global_batch=32, worker=0, num_workers=num_workers).notes

    assert notes(Cuttable(), 4) == ()
    assert notes(Resuming(), 1) == ()
    assert "each of the 4 workers reads all of it and keeps 1/4" in notes(Resuming(), 4)[0]
    assert [note.split(": ")[1][:12] for note in notes(Plain(), 4)] == ["each of the ", "resuming rea"]
    assert (
        "50 virtual shards, not 64"
        in StreamBatches(Cuttable(), seed=0, global_batch=100, worker=0, num_workers=1).notes[0]
    )


def test_an_empty_virtual_shard_is_named():
    with pytest.raises(DataError, match=r"virtual shard 3 of 64 .* is empty"):
        next(iter(StreamBatches(Cuttable(range(3)), seed=0, global_batch=64, worker=0, num_workers=1)))


def test_too_small_a_global_batch_is_refused():
    with pytest.raises(DataError, match="a micro-batch would be empty"):
        StreamBatches(Plain(), seed=0, global_batch=3, worker=0, num_workers=4)


def test_closing_ends_an_iterator_that_is_held():
    batches = StreamBatches(Plain(), seed=0, global_batch=2, worker=0, num_workers=1)
    held = iter(batches)
    next(held)
    batches.close()
    assert list(held) == []


def test_functions_mapped_over_a_stream_are_keyed_and_the_generators_left_alone():
    data = map_data(of(Plain()), lambda sample, rng: {**sample, "more": rng.random()})

    def make():
        return data.prepare().train

    random.seed(0), np.random.seed(0)
    expected = (random.random(), np.random.rand())
    random.seed(0), np.random.seed(0)
    steps = read(make, 9)
    assert (random.random(), np.random.rand()) == expected
    assert steps == read(make, 9, num_workers=3)
    assert len({draw for step in steps for draw in step["more"]}) == 90
