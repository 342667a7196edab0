"""Sums that members compute, against numpy over all of their data together."""

import numpy as np
import pytest

import konvoi as kv
from konvoi.errors import DataError, MessageRefused
from konvoi.job.data.figures import closer, merge
from konvoi.job.data.of import of
from konvoi.job.data.partition import by_key
from konvoi.job.data.statistics import frame, sums, survey
from konvoi.job.data.tensors import Arrays
from konvoi.security.leaving import Listed
from konvoi.values import DataSpec, Splits

SAME = 1e-12


def job(data):
    return kv.Job(model=kv.models.mlp(), data=data, objective=kv.objectives.classification())


def splits(columns, num_classes=None):
    return Splits(Arrays(columns), None, DataSpec(num_classes=num_classes))


def described(data, members, *, bins=10, span=None, each=False, num_classes=None):
    """What the verb does, over members whose data are apart."""
    asked = survey(data, num_classes)
    for number in (0, bins) if span is None else (bins,):
        asked = closer(asked, merge(asked, [sums(one, asked) for one in members]), number, span)
    return merge(asked, [sums(one, asked) for one in members], each=each)


def parts_of(columns, sizes):
    cuts = np.cumsum(sizes)[:-1]
    pieces = {name: np.split(column, cuts) for name, column in columns.items()}
    return [Arrays({name: pieces[name][number] for name in columns}) for number in range(len(sizes))]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=SAME, atol=0, equal_nan=True)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e7])
def test_a_table_is_described_as_numpy_does_it_over_all_members(offset):
    draw = np.random.default_rng(0)
    inputs = draw.normal(offset, [1.0, 0.01, 50.0], (1000, 3))
    columns = {"inputs": inputs, "labels": draw.integers(0, 4, 1000)}
    found = described(splits(columns, 4), parts_of(columns, (1, 300, 699)))
    one = found.columns["inputs"]
    assert found.samples == 1000
    close(one.mean, inputs.mean(0))
    close(one.std, inputs.std(0))
    assert one.count.tolist() == [1000] * 3
    assert one.missing.tolist() == [0] * 3
    for feature in range(3):
        edges = one.edges[feature]
        histogram = np.histogram(inputs[:, feature], 10, (edges[0], edges[-1]))[0]
        assert one.histogram[feature].tolist() == histogram.tolist()
        assert one.histogram[feature].sum() + one.below[feature] + one.above[feature] == 1000
        close((edges[0], edges[-1]), inputs[:, feature].mean() + np.array([-4, 4]) * inputs[:, feature].std())
    assert found.labels.tolist() == np.bincount(columns["labels"], minlength=4).tolist()
    close(found.balance, found.labels / 1000)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_described_by_channel(dtype):
    draw = np.random.default_rng(1)
    images = draw.integers(0, 256, (60, 3, 5, 4)).astype(dtype)
    found = described(splits({"inputs": images}), parts_of({"inputs": images}, (20, 40)), bins=8, span=(0, 256))
    one, values = found.columns["inputs"], images.astype(np.float64)
    close(one.mean, values.mean((0, 2, 3)))
    close(one.std, values.std((0, 2, 3)))
    assert one.count.tolist() == [60 * 20] * 3
    for channel in range(3):
        assert one.histogram[channel].tolist() == np.histogram(values[:, channel], 8, (0, 256))[0].tolist()


def test_missing_values_are_counted_and_left_out():
    draw = np.random.default_rng(2)
    inputs = draw.normal(5, 2, (200, 2))
    inputs[::3, 0], inputs[7, 1], inputs[9, 1] = np.nan, np.inf, -np.inf
    found = described(splits({"inputs": inputs}), parts_of({"inputs": inputs}, (50, 150))).columns["inputs"]
    good = np.where(np.isfinite(inputs), inputs, np.nan)
    close(found.mean, np.nanmean(good, 0))
    close(found.std, np.nanstd(good, 0))
    assert found.missing.tolist() == [67, 2]
    assert (found.count + found.missing).tolist() == [200, 200]


def test_a_feature_that_nobody_has_is_no_number_and_cannot_be_normalised():
    inputs = np.stack([np.arange(6.0), np.full(6, np.nan)], 1)
    found = described(splits({"inputs": inputs}), parts_of({"inputs": inputs}, (2, 4)))
    assert np.isnan(found.columns["inputs"].mean).tolist() == [False, True]
    assert np.isnan(found.columns["inputs"].std).tolist() == [False, True]
    with pytest.raises(DataError, match="no number at all"):
        found.normalize()


@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.5678, 1e17])
def test_a_constant_has_no_deviation_and_is_moved_to_zero(constant):
    inputs = np.stack([np.full(1000, constant), np.arange(1000.0)], 1)
    found = described(splits({"inputs": inputs}), parts_of({"inputs": inputs}, (333, 667)))
    assert found.columns["inputs"].std[0] == 0
    assert found.columns["inputs"].histogram[0].sum() == 1000
    normal = found.normalize()({"inputs": inputs[3]})["inputs"]
    assert abs(normal[0]) <= 1e-15 * max(1.0, abs(constant))


def test_a_member_without_samples_of_a_class_counts_none():
    columns = {"inputs": np.arange(8.0), "labels": np.array([0, 0, 0, 1, 1, 2, 2, 2])}
    found = described(splits(columns, 4), parts_of(columns, (3, 5)), each=True)
    assert found.labels.tolist() == [3, 2, 3, 0]
    assert [one.labels.tolist() for one in found.members] == [[3, 0, 0, 0], [0, 2, 3, 0]]
    assert [one.samples for one in found.members] == [3, 5]
    close(found.members[1].columns["inputs"].mean, [5.0])


def test_members_are_not_told_of_unless_asked_for():
    columns = {"inputs": np.arange(8.0)}
    assert described(splits(columns), parts_of(columns, (3, 5))).members == ()


def test_targets_are_described_too():
    columns = {"inputs": np.arange(6.0)[:, None], "targets": np.arange(12.0).reshape(6, 2)}
    found = described(splits(columns), parts_of(columns, (3, 3)))
    close(found.columns["targets"].mean, [5.0, 6.0])
    assert found.labels is None
    assert found.balance is None
    assert found.skipped == ("labels: the samples have none",)


def test_samples_that_are_read_one_by_one_are_the_same():
    draw = np.random.default_rng(3)
    inputs, labels = draw.normal(size=(30, 2, 3)), draw.integers(0, 2, 30)
    data = of(list(zip(inputs.astype(np.float32), labels.tolist(), strict=True))).prepare()
    asked = survey(data, num_classes=2)
    found = merge(asked, [sums(data.train, asked)])
    close(found.columns["inputs"].mean, inputs.astype(np.float32).astype(np.float64).mean((0, 2)))
    assert found.labels.tolist() == np.bincount(labels).tolist()


def test_without_a_number_of_classes_labels_are_skipped_with_the_reason():
    data = of([(np.zeros(2), 1), (np.ones(2), 0)]).prepare()
    assert survey(data).num_classes == 0
    assert survey(data).skipped == ("labels: the data do not say how many classes there are (num_classes=)",)
    assert survey(data, num_classes=2).skipped == ()


def test_of_tokens_only_samples_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question " * 50)
    data = kv.data.text(tmp_path, seq_len=16, cache_dir=tmp_path / "cache").prepare()
    asked = survey(data)
    found = merge(asked, [sums(data.train, asked)])
    assert (found.samples, found.columns, found.labels) == (len(data.train), {}, None)
    assert "tokens" in found.skipped[0]


def test_a_class_that_is_not_agreed_is_an_error():
    asked = survey(splits({"inputs": np.zeros(3), "labels": np.array([0, 1, 1])}, 2))
    with pytest.raises(DataError, match="classes that are not agreed"):
        sums(Arrays({"inputs": np.zeros(2), "labels": np.array([0, 2])}), asked)


@pytest.mark.parametrize("other", [{"inputs": np.zeros((4, 3))}, {"pixels": np.zeros((4, 2))}])
def test_samples_of_another_form_are_an_error(other):
    asked = survey(splits({"inputs": np.zeros((3, 2))}))
    with pytest.raises(DataError):
        sums(Arrays(other), asked)


# -- what leaves -------------------------------------------------------------------------------------------------------


def test_what_a_member_computes_goes_into_its_frame_and_comes_back():
    draw = np.random.default_rng(4)
    columns = {"inputs": draw.normal(size=(50, 3)), "labels": draw.integers(0, 3, 50)}
    first = survey(splits(columns, 3))
    asked = closer(first, merge(first, [sums(Arrays(columns), first)]), 5)
    listed = Listed((frame(asked),))
    members = [sums(one, asked) for one in parts_of(columns, (0, 20, 30))]
    sent = [listed.build("statistics", one) for one in members]
    assert len({*map(len, sent)}) == 1  # of the same size, whatever they have; and nothing at all is a size, too
    back = [listed.read(one)[1] for one in sent]
    for mine, theirs in zip(members, back, strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    close(merge(asked, back).columns["inputs"].mean, columns["inputs"].mean(0))


def test_what_is_not_asked_cannot_leave():
    asked = survey(splits({"inputs": np.zeros((3, 2))}))
    found = sums(Arrays({"inputs": np.zeros((3, 2))}), asked)
    with pytest.raises(MessageRefused, match="has no such field"):
        Listed((frame(asked),)).build("statistics", {**found, "labels": np.zeros(2)})


def test_an_answer_of_another_form_is_not_added():
    asked = survey(splits({"inputs": np.zeros((3, 2))}))
    good = sums(Arrays({"inputs": np.zeros((3, 2))}), asked)
    with pytest.raises(DataError, match="not of the form"):
        merge(asked, [good, {**good, "inputs.sum": np.zeros(1)}])
    with pytest.raises(DataError, match="nobody"):
        merge(asked, [])


# -- the verb ----------------------------------------------------------------------------------------------------------


def test_clients_that_are_simulated_together_have_the_figures_of_the_whole():
    draw = np.random.default_rng(5)
    inputs, labels = draw.normal(3, 2, (500, 4)), draw.integers(0, 3, 500)
    data = kv.data.tensors(inputs=inputs, labels=labels, holdout=0.2)
    train = data.prepare().train.columns
    clients = kv.fleet.simulated(kv.data.dirichlet(clients=7, alpha=0.3))
    found = kv.statistics(job(data), clients, each=True)
    values = train["inputs"].astype(np.float64)
    assert found.samples == 400 == sum(one.samples for one in found.members)
    assert len(found.members) == 7
    close(found.columns["inputs"].mean, values.mean(0))
    close(found.columns["inputs"].std, values.std(0))
    assert found.labels.tolist() == np.bincount(train["labels"], minlength=3).tolist()
    assert len(found.as_rows()) == 1 + 4 + 3


def test_members_by_a_column_of_the_samples():
    columns = {"inputs": np.arange(6.0), "site": np.array([0, 0, 1, 1, 1, 2])}
    members = by_key("site").of(Arrays(columns))
    asked = survey(splits(columns))
    assert [int(sums(Arrays(columns), asked, rows)["samples"]) for rows in members] == [2, 3, 1]


def test_what_they_say_normalises_what_a_job_trains_on():
    draw = np.random.default_rng(6)
    data = kv.data.tensors(inputs=draw.normal(40, 7, (200, 3, 4)), labels=np.arange(200) % 2, holdout=0)
    clients = kv.fleet.simulated(kv.data.iid(clients=3))
    normal = kv.data.map(data, kv.statistics(job(data), clients).normalize())
    again = kv.statistics(job(normal), clients).columns["inputs"]
    np.testing.assert_allclose(again.mean, 0, atol=1e-6)
    np.testing.assert_allclose(again.std, 1, rtol=1e-6)


def test_a_stream_is_refused():
    class Endless:
        def __iter__(self):
            return iter([{"inputs": np.zeros(2), "labels": 0}])

    with pytest.raises(DataError, match="stream"):
        kv.statistics(job(Endless()), kv.fleet.simulated(kv.data.iid(clients=2)))
