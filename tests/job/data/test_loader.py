import multiprocessing
import random
import threading
from itertools import islice
from typing import ClassVar

import numpy as np
import pytest
import torch

from konvoi.errors import DataError
from konvoi.job.data.loader import Batches, eval_batches
from konvoi.job.data.mapping import Mapped
from konvoi.job.data.positions import Order
from konvoi.job.data.tensors import Arrays


class Noisy:
    """A data set of other people: it draws from every global generator."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {"index": index, "noise": np.array([random.random(), np.random.rand(), torch.rand(()).item()])}


class Quiet:
    deterministic: ClassVar[bool] = True

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {"index": index, "noise": np.array([float(index)] * 3)}


def add_noise(sample, rng):
    return {**sample, "more": rng.random(), "global": random.random()}


STACKED = Arrays({"index": np.arange(23), "noise": np.arange(69.0).reshape(23, 3)})
SOURCES = {
    "noisy": Noisy(),
    "quiet": Quiet(),
    "stacked": STACKED,
    "mapped": Mapped(Mapped(Noisy(), add_noise), lambda sample, rng: {**sample, "most": rng.random()}),
}


def read(source, steps, *, num_workers=1, accumulate=1, start_step=0, num_loaders=0, seed=5):
    """Each step's global batch, put together from the parts of all workers."""
    parts = []
    for worker in range(num_workers):
        with Batches(
            source,
            seed=seed,
            global_batch=10,
            worker=worker,
            num_workers=num_workers,
            accumulate=accumulate,
            start_step=start_step,
            num_loaders=num_loaders,
        ) as batches:
            parts.append(list(islice(batches, steps)))
    assert all(len(step) == accumulate and all(micro.counts for micro in step) for part in parts for step in part)
    return [_join([micro.batch for part in parts for micro in part[step]]) for step in range(steps)]


def _join(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize(("num_workers", "accumulate"), [(2, 1), (3, 1), (4, 2), (1, 4)])
def test_the_samples_and_their_randomness_do_not_depend_on_the_plan(source, num_workers, accumulate):
    assert_same(read(source, 6, num_workers=num_workers, accumulate=accumulate), read(source, 6))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_loader_processes_change_nothing(source):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert_same(read(source, 5, num_workers=2, accumulate=2, num_loaders=2), read(source, 5))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_covers_its_positions_of_the_order():
    seen = [batch["index"].tolist() for batch in read(STACKED, 7)]
    expected = [Order(5, 23).indices(step * 10, step * 10 + 10)[1].tolist() for step in range(7)]
    assert seen == expected


def test_resuming_on_another_number_of_workers_goes_on_in_the_middle_of_an_epoch():
    assert_same(read(Noisy(), 4, num_workers=3, start_step=5), read(Noisy(), 9)[5:])


def test_many_steps_go_on_where_the_positions_computed_ahead_end():
    source = Arrays({"index": np.arange(5000)})
    batches = iter(Batches(source, seed=0, global_batch=3000, worker=1, num_workers=2))
    for step in range(4):
        expected = Order(0, 5000).indices(step * 3000 + 1500, step * 3000 + 3000)[1]
        assert next(batches)[0].batch["index"].tolist() == expected.tolist()


def test_augmentation_differs_between_epochs_and_leaves_the_training_generators_alone():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    rows = torch.cat([torch.column_stack([batch["index"], batch["noise"]]) for batch in read(Noisy(), 7)]).tolist()
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    noise_of_zero = [row[1:] for row in rows if row[0] == 0]
    assert len(noise_of_zero) == 3
    assert len({tuple(noise) for noise in noise_of_zero}) == 3


def test_transforms_that_are_stacked_do_not_repeat_each_others_draws():
    (batch,) = read(SOURCES["mapped"], 1)
    assert not (batch["more"] == batch["most"]).any()
    assert not (batch["global"] == batch["noise"][:, 0]).any()


def test_too_small_a_global_batch_is_refused_with_the_numbers():
    with pytest.raises(DataError, match="a micro-batch would be empty") as caught:
        Batches(STACKED, seed=0, global_batch=7, worker=0, num_workers=4, accumulate=2)
    assert "7 for 4 workers x 2 micro-batches" in str(caught.value)
    assert "global_batch >= 8" in str(caught.value)


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="the data set is empty"):
        Batches([], seed=0, global_batch=1, worker=0, num_workers=1)
    with pytest.raises(DataError, match="the data set is empty"):
        list(eval_batches([], batch=1, worker=0, num_workers=1))


def test_closing_leaves_no_process_and_no_thread():
    threads = set(threading.enumerate())
    batches = Batches(Noisy(), seed=0, global_batch=4, worker=0, num_workers=1, num_loaders=2)
    held = iter(batches)
    next(held)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)  # multiprocessing's own; they end by themselves once their queue is closed
        assert not thread.is_alive()
    assert list(held) == []


def test_a_new_pass_ends_the_one_before():
    batches = Batches(STACKED, seed=0, global_batch=4, worker=0, num_workers=1)
    first = iter(batches)
    next(first)
    assert torch.equal(next(iter(batches))[0].batch["index"], read_first())
    assert list(first) == []


def read_first():
    return torch.from_numpy(Order(0, 23).indices(0, 4)[1])


def test_an_error_in_a_loader_process_reaches_the_caller():
    class Broken(Quiet):
        def __getitem__(self, index):
            raise RuntimeError(f"sample {index} is broken")

    with (
        Batches(Broken(), seed=0, global_batch=4, worker=0, num_workers=1, num_loaders=1) as batches,
        pytest.raises(RuntimeError, match=r"sample \d+ is broken"),
    ):
        next(iter(batches))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_evaluation_sees_every_sample_once_and_as_many_items_on_every_worker(num_workers):
    items = [
        list(eval_batches(STACKED, batch=5, worker=worker, num_workers=num_workers)) for worker in range(num_workers)
    ]
    assert {len(part) for part in items} == {5}
    seen = [
        i for step in zip(*items, strict=True) for micro in step if micro.counts for i in micro.batch["index"].tolist()
    ]
    assert seen == list(range(23))


def test_a_worker_without_samples_still_gets_one_that_does_not_count():
    items = [list(eval_batches(STACKED, batch=5, worker=worker, num_workers=7)) for worker in range(7)]
    idle = [micro for part in items for micro in part if not micro.counts]
    assert len(idle) == 4 * 2 + 4  # five samples for seven workers, four times; then three
    assert all(micro.batch["noise"].shape == (1, 3) for micro in idle)


def test_evaluation_is_the_same_every_time():
    first, second = (list(eval_batches(Noisy(), batch=23, worker=0, num_workers=1)) for _ in range(2))
    assert torch.equal(first[0].batch["noise"], second[0].batch["noise"])
