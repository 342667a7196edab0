"""statistics: what a federation's data are like, before anything is trained."""

from __future__ import annotations

from konvoi.errors import DataError
from konvoi.fleet.simulated import Simulated
from konvoi.job.data.figures import Figures, describe
from konvoi.job.data.normalized import unnormalized
from konvoi.job.data.of import of
from konvoi.job.job import Job
from konvoi.values import Source


def statistics(
    job: Job,
    fleet: Simulated,
    *,
    bins: int = 20,
    span: tuple[float, float] | None = None,
    num_classes: int | None = None,
    each: bool = False,
) -> Figures:
    """What the members' training data are like, from sums that each computes over its own.

    Members are asked for counts and sums; when the means are known, for squares around them; and when the deviations
    are, for histograms of `bins` bins, four deviations to either side (over `span`, where that is given, without this
    third question). Features of vectors and channels of images are described one by one.

    The figures are `columns[name]` with `count`, `missing`, `mean`, `std` and `histogram`; `labels` and `balance`,
    samples by class; and what is `skipped`, and why: of tokens only samples are counted. With `each` there are also
    `members`, the same of every one. `normalize()` makes what `kv.data.map` takes; `kv.data.normalize` does it in
    a recipe, whose own normalisation is looked under here. Equal to numpy's over all the data
    together, to 12 digits (variances: Chan, Golub and LeVeque, The American Statistician 37(3), 1983).

    Raises: DataError for data that cannot be divided, or described.

    >>> import numpy as np
    >>> import konvoi as kv
    >>> data = kv.data.tensors(inputs=np.arange(20.0).reshape(10, 2), labels=np.arange(10) % 2, holdout=0)
    >>> job = kv.Job(model=kv.models.mlp(), data=data, objective=kv.objectives.classification())
    >>> found = kv.statistics(job, kv.fleet.simulated(kv.data.iid(clients=3)))
    >>> found.samples, found.columns["inputs"].mean, found.balance
    (10, array([ 9., 10.]), array([0.5, 0.5]))
    >>> normal = kv.data.map(data, found.normalize())
    """
    splits = of(unnormalized(job.data)).prepare()
    source = splits.train
    if not isinstance(source, Source):
        raise DataError("a stream cannot be divided among clients", found=type(source).__name__)
    if bins < 1:
        raise DataError("a histogram has bins", found=bins, expected="at least 1")
    members = fleet.division.of(source)
    return describe(splits, members, bins=bins, span=span, num_classes=num_classes, each=each)
