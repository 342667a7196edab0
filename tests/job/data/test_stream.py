import random

import pytest

from konvoi.errors import DataError
from konvoi.job.data.keyed import global_generators_kept
from konvoi.job.data.stream import Endless, Resumable, Stream


class Passes:
    """Notes the epochs that it is told, and shuffles."""

    def __init__(self, length=5):
        self.length, self.epochs, self.reads = length, [], 0

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        order = list(range(self.length))
        random.shuffle(order)
        for value in order:
            self.reads += 1
            yield value, random.random()


@pytest.fixture(autouse=True)
def generators_kept():
    with global_generators_kept():
        yield


def test_a_stream_that_ends_begins_again_in_another_order():
    samples = Passes()
    endless = Endless(samples, seed=0)
    read = [endless.next() for _ in range(15)]
    epochs = [[value for value, _ in read[start : start + 5]] for start in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert len({draw for _, draw in read}) == 15
    assert samples.epochs == [0, 1, 2]


@pytest.mark.parametrize("skipped", [0, 1, 4, 5, 6, 10, 13])
def test_skipping_gives_what_reading_gives(skipped):
    slow, fast = Endless(Passes(), seed=0), Endless(Passes(), seed=0)
    expected = [slow.next() for _ in range(skipped + 7)][skipped:]
    fast.skip(skipped)
    assert fast.num_read == skipped
    assert [fast.next() for _ in range(7)] == expected


def test_skipping_reads_one_epoch_to_learn_its_length_and_no_more():
    samples = Passes(length=10)
    Endless(samples, seed=0).skip(10 * 1000 + 3)
    assert samples.reads <= 10 + 1 + 3


def test_an_empty_stream_is_refused():
    with pytest.raises(DataError, match="the iterable is empty"):
        Endless([], seed=0).next()


def test_a_shard_of_other_arguments_is_not_ours():
    class Theirs:
        def __iter__(self):
            return iter(())

        def shard(self, num_shards, index):
            raise AssertionError

    class Ours(Theirs):
        def shard(self, index, count):
            return self

    assert not Stream(Theirs()).is_cut
    assert Stream(Ours()).is_cut
    assert not Stream([]).is_cut
    assert not isinstance(Ours(), Resumable)


@pytest.mark.parametrize(
    ("batch", "shards"), [(8, 64), (10, 60), (32, 64), (64, 64), (100, 50), (128, 64), (97, 97), (1, 64)]
)
def test_the_number_of_virtual_shards_fits_the_global_batch(batch, shards):
    count = Stream([]).num_shards(batch)
    assert count == shards
    assert count % batch == 0 or batch % count == 0
