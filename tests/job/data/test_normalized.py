"""Samples normalised by what members' sums say of all their data."""

import numpy as np
import pytest

import konvoi as kv
from konvoi.errors import DataError
from konvoi.job.data.keyed import Keys
from konvoi.job.data.normalized import columns_of, known, of_told, unnormalized
from konvoi.job.data.reading import read_stacked
from konvoi.job.data.slot import fill
from konvoi.job.data.tensors import Arrays
from konvoi.state.record import Record
from konvoi.values import DataSpec, Splits

DRAW = np.random.default_rng(0)
IMAGES = DRAW.normal([[[[3.0]], [[-50.0]]]], [[[[1.0]], [[20.0]]]], (30, 2, 4, 4)).astype(np.float32)
TABLE = DRAW.normal([1e3, 0.0, 7.0], [1.0, 0.01, 0.0], (40, 3)).astype(np.float32)


def read(source):
    rows = np.arange(len(source))
    return read_stacked(source, Keys(0, np.zeros_like(rows), rows))["inputs"]


def pooled(values, axes):
    values = values.astype(np.float64)
    mean, std = values.mean(axes, keepdims=True), values.std(axes, keepdims=True)
    return (values - mean) / np.where(std > 1e-9, std, 1.0)


@pytest.mark.parametrize(("values", "axes"), [(IMAGES, (0, 2, 3)), (TABLE, (0,)), (TABLE[:, 0], (0,))])
def test_features_and_channels_have_mean_0_and_deviation_1_read_one_by_one_and_many_at_once(values, axes):
    splits = Splits(Arrays({"inputs": values}), Arrays({"inputs": values[:3]}), DataSpec())

    class Given:
        def prepare(self):
            return splits

    found = kv.data.normalize(Given()).prepare()
    expected = pooled(values, axes)
    assert np.allclose(read(found.train), expected, atol=1e-5)
    assert np.array_equal(read(found.train), np.stack([one["inputs"] for one in found.train]))
    assert np.allclose(read(found.valid), expected[:3], atol=1e-5)  # by the training data's numbers
    assert found.train[0]["inputs"].dtype == np.float32


def test_it_goes_by_constants_that_are_given_and_by_no_others():
    data = kv.data.normalize(kv.data.tensors(inputs=TABLE, labels=np.arange(40) % 2, holdout=0))
    told = {"inputs": {"mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 0.0]}}
    found = known(data, of_told(told)).prepare()
    assert np.allclose(read(found.train), (TABLE - [1, 2, 3]) / [2, 4, 1], rtol=1e-6)
    assert found.description["normalized"] == {"inputs": {"mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 1.0]}}
    with pytest.raises(DataError, match="not known") as raised:
        known(data, {})
    assert "--survey" in str(raised.value)
    with pytest.raises(DataError, match="not of the form"):
        known(data, of_told({"inputs": {"mean": [1.0], "std": [2.0]}})).prepare()
    for wrong in ({"mean": [1.0, None, 3.0], "std": [1.0] * 3}, {"mean": [1.0]}, {"mean": ["x"], "std": [1.0]}):
        with pytest.raises(DataError):
            of_told({"inputs": wrong})


def test_maps_may_be_on_either_side_and_a_survey_is_of_what_lies_under_it():
    def twice(sample, rng):
        return {**sample, "inputs": 2 * sample["inputs"]}

    slot = kv.data.slot(lambda path: kv.data.tensors(inputs=TABLE, labels=np.arange(40) % 2, holdout=0), example="x")
    data = kv.data.map(kv.data.normalize(kv.data.map(slot, twice)), twice)
    assert columns_of(data) == ("inputs",)
    assert columns_of(slot) == columns_of(kv.data.map(slot, twice)) == ()
    under = fill(unnormalized(data), None).prepare()
    assert np.allclose(np.stack([one["inputs"] for one in under.train]), 2 * TABLE)
    samples = fill(data, None).prepare().train
    assert np.allclose(np.stack([one["inputs"] for one in samples]), 2 * pooled(TABLE, (0,)), atol=1e-4)
    job = kv.Job(model=kv.models.mlp(), data=data, objective=kv.objectives.classification())
    figures = kv.statistics(job, kv.fleet.simulated(kv.data.iid(clients=4)))
    assert np.allclose(figures.columns["inputs"].mean, 2 * TABLE.astype(np.float64).mean(0))


def test_what_cannot_be_normalised_is_said():
    data = kv.data.tensors(inputs=TABLE, labels=np.arange(40) % 2, holdout=0)
    with pytest.raises(DataError, match="nothing is known of this column"):
        kv.data.normalize(data, "weight").prepare()
    for wrong in ("labels", 3):
        with pytest.raises(DataError, match="names of columns"):
            kv.data.normalize(data, wrong)
    with pytest.raises(DataError, match="stream"):
        kv.data.normalize(iter_of([{"inputs": np.zeros(2)}])).prepare()


class iter_of:
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_simulated_clients_are_normalised_by_what_they_train_on(tmp_path, agent):
    """And by nothing that they keep for evaluation, or that the job holds out."""
    labels = np.arange(40) % 2
    data = kv.data.normalize(kv.data.tensors(inputs=TABLE, labels=labels, holdout=0.25))
    job = kv.Job(
        model=kv.models.mlp(widths=(4,)),
        data=data,
        objective=kv.objectives.classification(),
        optimizer=kv.optimizers.sgd(lr=0.1),
        schedule=kv.schedules.constant(),
        global_batch=8,
        validate_every=0,
    )
    fleet = kv.fleet.simulated(kv.data.iid(clients=3), num_workers=1, way="one by one", holdout=0.3)
    run = kv.train(job, kv.fedavg(rounds=1), fleet, folder=tmp_path, sinks=[], agent=agent)
    task = Record(run.folder).task()
    rows = np.concatenate(task.population.indices)
    assert 0 < len(rows) < 30
    raw = data.data.prepare().train.columns["inputs"]
    assert np.allclose(read(task.prepared.splits.train), _by(raw, rows), atol=1e-5)
    assert np.allclose(task.prepared.job.data.by[0].mean, raw[rows].astype(np.float64).mean(0), rtol=1e-12)


def _by(values, rows):
    some = values[rows].astype(np.float64)
    std = some.std(0)
    return (values - some.mean(0)) / np.where(std > 1e-9, std, 1.0)


def test_nothing_is_normalised_twice():
    data = kv.data.tensors(inputs=TABLE, labels=np.arange(40) % 2, holdout=0)
    by = of_told({"inputs": {"mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 1.0]}})
    found = known(kv.data.normalize(data, "inputs", "inputs"), by).prepare()
    assert np.allclose(read(found.train), (TABLE - [1, 2, 3]) / [2, 4, 1], rtol=1e-6)
    for around in (lambda one: one, lambda one: kv.data.map(one, lambda sample, rng: sample)):
        with pytest.raises(DataError, match="normalised already"):
            kv.data.normalize(around(kv.data.normalize(data)))


def test_what_is_read_into_a_slot_is_not_normalised_by_its_own_numbers():
    data = kv.data.normalize(kv.data.tensors(inputs=TABLE, labels=np.arange(40) % 2, holdout=0))
    with pytest.raises(DataError, match="normalised around it"):
        kv.data.slot(lambda path: data, example="x").prepare()


@pytest.mark.parametrize(
    "wrong", [{"std": [1e-320, 1.0, 1.0]}, {"std": [1e-60, 1.0, 1.0]}, {"mean": [1e200, 0.0, 0.0]}]
)
def test_statistics_of_which_no_numbers_come_are_refused_before_training(wrong):
    data = kv.data.tensors(inputs=TABLE, labels=np.arange(40) % 2, holdout=0)
    told = {"inputs": {"mean": [0.0] * 3, "std": [1.0] * 3, **wrong}}
    with pytest.raises(DataError, match="make no numbers"):
        known(kv.data.normalize(data), of_told(told)).prepare()
