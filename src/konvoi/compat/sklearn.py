"""scikit-learn's linear models, trained by the rounds of a federation: the one file that knows scikit-learn."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from konvoi.errors import DataError, FleetError, JobError, MissingExtra, PlanError
from konvoi.fleet.simulated import Simulated, simulated
from konvoi.job.data.tensors import Arrays
from konvoi.job.job import Job
from konvoi.plan.compress import none
from konvoi.plan.convoy import Convoy
from konvoi.plan.federated import fedavg
from konvoi.values import Division

if TYPE_CHECKING:
    from konvoi.population.work import Learnt, Work

__all__ = ["fit"]

WEIGHTS = ("coef_", "intercept_")  # of a model whose mean is a model


def fit(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    clients: Division | Simulated,
    plan: Convoy | None = None,
    groups: Any = None,
    seed: int = 0,
) -> Any:
    """Fit a linear model of scikit-learn to data that are divided among clients; returns a fitted copy of `estimator`.

    Each client of a round begins with the agreed `coef_` and `intercept_`, takes `partial_fit`'s steps over its own
    samples, one after the other, and the mean of what clients end with is agreed on, by the plan's rule (McMahan et
    al., arXiv 1602.05629, algorithm 1). So can be fitted what has `partial_fit`, `coef_` and `intercept_`:
    `SGDClassifier`, `SGDRegressor`, `Perceptron`; logistic regression is `SGDClassifier(loss="log_loss")`.

    - `X`: (samples, features), an array or sparse matrix; `y`: (samples,), classes or numbers.
    - `clients`: who has which rows, e.g. `kv.data.dirichlet(clients=20, alpha=0.3)`; or `kv.fleet.simulated(...)`, for
      clients that are away, lost or late. All are trained in this process.
    - `plan`: `kv.fedavg(rounds=100)` and its like, with `epochs`, or `steps` of one sample each.
    - `groups`: (samples,), each sample's client, for `kv.data.by_key("groups")`.
    - `seed`: of the order of samples, which replaces the estimator's own shuffling.

    A rate that falls with the steps (`learning_rate="optimal"`) goes on from round to round, as if the client had been
    in each. Raises: JobError, DataError, PlanError, FleetError for what cannot be; MissingExtra without scikit-learn.

    >>> import numpy as np
    >>> from sklearn.linear_model import SGDClassifier
    >>> from konvoi.job.data.partition import dirichlet
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> y = np.where(X.sum(1) > 0, "ill", "well")
    >>> model = fit(SGDClassifier(), X, y, clients=dirichlet(clients=5, alpha=0.3), plan=fedavg(rounds=20))
    >>> model.score(X, y) > 0.9
    True
    """
    try:
        from sklearn.base import clone, is_classifier
        from sklearn.utils import check_X_y
    except ImportError:
        raise MissingExtra("scikit-learn", "sklearn", "konvoi.compat.sklearn") from None
    plan = plan if plan is not None else fedavg()
    fleet = clients if isinstance(clients, Simulated) else simulated(clients)
    _check(estimator, plan, fleet)
    try:
        X, y = check_X_y(X, y, accept_sparse="csr", dtype=[np.float64, np.float32], order="C")
    except ValueError as error:
        raise DataError("scikit-learn cannot use these samples", found=str(error).strip()) from error
    classes, codes = np.unique(y, return_inverse=True) if is_classifier(estimator) else (None, y)
    columns = {"labels" if classes is not None else "targets": codes}
    columns |= {"groups": np.asarray(groups)} if groups is not None else {}
    if groups is not None and len(columns["groups"]) != len(y):
        found = f"{len(columns['groups'])} groups, {len(y)} samples"
        raise DataError("each sample has a group", found=found)
    source = Arrays(columns)
    model, has_order = clone(estimator), "shuffle" in estimator.get_params()
    if has_order:
        model.set_params(shuffle=False)
    model.partial_fit(X[:1], y[:1], **({} if classes is None else {"classes": classes}))  # its arrays, and their shapes
    if missing := [name for name in WEIGHTS if not hasattr(model, name)]:
        found = f"{type(model).__name__} without {', '.join(missing)}"
        raise JobError("what is averaged are a linear model's coefficients", found=found)
    _begin(model, estimator)
    local = plan.local
    assert local is not None
    batch = 1 if local.steps else len(y)
    job = Job(model=type(model), data=source, objective=_steps_of_its_own, global_batch=batch, seed=seed)
    _train(job, plan, fleet, model, X, y)
    return model.set_params(shuffle=estimator.shuffle) if has_order else model


def _check(estimator: Any, plan: Convoy, fleet: Simulated) -> None:
    """Raises: JobError, PlanError, FleetError."""
    if not hasattr(estimator, "partial_fit"):
        hint = 'SGDClassifier(loss="log_loss") is logistic regression, SGDRegressor() least squares'
        raise JobError("a client takes steps, by partial_fit", found=type(estimator).__name__, hint=hint)
    if getattr(estimator, "average", False):
        raise JobError("what a client averages over its own steps is lost between rounds", found="average=True")
    if plan.local is None:
        raise PlanError("clients have data of their own", found=", ".join(plan.describe()), hint="kv.fedavg(rounds=50)")
    if asked := [name for name in ("proximal", "controls", "personal", "finetune") if getattr(plan.local, name)]:
        raise PlanError("a client's steps are scikit-learn's own", found=", ".join(asked), hint="kv.fedavg(...)")
    if plan.compression != none():
        raise PlanError("simulated clients send every bit, so far", found=repr(plan.compression))
    if fleet.holdout:
        hint = "X and y are what is trained on; score the rest with the model that is returned"
        raise FleetError("nothing is evaluated on the way", found=f"holdout={fleet.holdout}", hint=hint)


def _begin(model: Any, estimator: Any) -> None:
    """With zeros, as scikit-learn; or with what a fitted estimator has that is to go on (`warm_start`)."""
    goes_on = getattr(estimator, "warm_start", False) and hasattr(estimator, "coef_")
    for name in WEIGHTS:
        here = getattr(model, name)
        if goes_on and np.shape(getattr(estimator, name)) != here.shape:
            found = f"{name} {np.shape(getattr(estimator, name))}"
            raise JobError("what is gone on from is of other data", found=found, expected=str(here.shape))
        here[...] = getattr(estimator, name) if goes_on else 0.0


def _train(job: Job, plan: Convoy, fleet: Simulated, model: Any, X: Any, y: Any) -> None:
    """All rounds; the model ends with what is agreed."""
    import torch

    from konvoi.fleet.worker import Place
    from konvoi.population.choosing import Costs, Trainer
    from konvoi.population.rounds import Rounds

    indices = fleet.division.of(job.data)
    if plan.cohort > len(indices):
        found, expected = plan.cohort, f"at most {len(indices)}"
        raise PlanError("a cohort is larger than the federation", found=found, expected=expected)
    weights = {name: torch.from_numpy(getattr(model, name).copy()) for name in WEIGHTS}
    rounds = Rounds(job, plan, fleet, indices, weights, Place(0, 1), Path())
    trainer = Trainer(_PartialFit(model, X, y), None, Costs(1.0))
    for _ in range(plan.rounds):
        rounds.next(trainer)
    rounds.load()
    for name, agreed in weights.items():
        setattr(model, name, agreed.numpy())


class _PartialFit:
    """How clients are trained: one after the other, by scikit-learn."""

    def __init__(self, model: Any, X: Any, y: Any) -> None:
        self.model, self.X, self.y = model, X, y

    def train(self, work: Work) -> Learnt:
        import torch

        from konvoi.population.work import Learnt

        counts = []
        for number, batches in enumerate(work.batches):
            mine, rows = copy.deepcopy(self.model), np.concatenate(batches)
            for name, stack in zip(WEIGHTS, work.weights, strict=True):
                setattr(mine, name, stack[number].numpy().copy())
            if hasattr(mine, "t_"):
                mine.t_ = 1.0 + (work.round - 1) * len(rows)
            mine.partial_fit(self.X[rows], self.y[rows])
            for name, stack in zip(WEIGHTS, work.weights, strict=True):
                stack[number] = torch.from_numpy(getattr(mine, name))
            counts.append(float(len(rows)))
        weights = torch.tensor(counts, dtype=torch.float64)
        return Learnt(torch.zeros_like(weights), weights, torch.zeros_like(weights))


def _steps_of_its_own(*_: Any) -> Any:
    raise NotImplementedError("scikit-learn has a loss of its own")
