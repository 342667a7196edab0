"""scikit-learn's linear models in a federation: each round equals a plain loop over clients."""

from __future__ import annotations

import numpy as np
import pytest

import konvoi as kv
from konvoi.compat.sklearn import fit
from konvoi.errors import ConfigError
from konvoi.job.data.tensors import Arrays
from konvoi.population import cohorts

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone, is_classifier  # noqa: E402
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier, SGDRegressor  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(150, 4))
SCORES = X @ DRAW.normal(size=(4, 3))
TWO = np.where(SCORES[:, 0] > 0, "ill", "well")
THREE = SCORES.argmax(1)
NUMBERS = SCORES[:, 0]
CLIENTS = kv.data.quantity_skew(clients=5, alpha=0.7)
MODELS = {
    "two classes": (SGDClassifier(loss="log_loss"), TWO),
    "three classes": (SGDClassifier(), THREE),
    "perceptron": (Perceptron(penalty="l2"), THREE),
    "numbers": (SGDRegressor(), NUMBERS),
}
PLANS = {
    "fedavg": kv.fedavg(rounds=4, cohort=3, epochs=2),
    "steps, equal": kv.fedavg(rounds=3, steps=7, equal=True),
    "momentum": kv.fedavg(rounds=4, outer_momentum=0.9, outer_lr=0.5),
}


def twin(estimator, y, plan, fleet):
    """The rounds, one client after the other."""
    parts = CLIENTS.of(Arrays({"labels": np.arange(len(y))}))
    sizes = [plan.local.sizes(len(part), 1 if plan.local.steps else len(y)) for part in parts]
    classes = {"classes": np.unique(y)} if is_classifier(estimator) else {}
    model = clone(estimator).set_params(shuffle=False).partial_fit(X[:1], y[:1], **classes)
    agreed = [np.zeros_like(model.coef_), np.zeros_like(model.intercept_)]
    momentum = [np.zeros_like(one) for one in agreed]
    for number in range(1, plan.rounds + 1):
        cohort = cohorts.of_round(number, plan, fleet, [*map(len, sizes)]).counted
        shares = np.array([1.0 if plan.local.equal else len(parts[client]) for client in cohort])
        ends = []
        for client in cohort:
            mine = clone(estimator).set_params(shuffle=False).partial_fit(X[:1], y[:1], **classes)
            mine.coef_, mine.intercept_ = agreed[0].copy(), agreed[1].copy()
            batches = cohorts.order(0, client, number, parts[client], sizes[client])
            mine.t_ = 1 + (number - 1) * sum(sizes[client])
            for rows in batches:
                mine.partial_fit(X[rows], y[rows])
            ends.append([mine.coef_, mine.intercept_])
        for place in range(2):
            move = agreed[place] - sum(s * end[place] for s, end in zip(shares / shares.sum(), ends, strict=True))
            momentum[place] = plan.outer_momentum * momentum[place] + move
            agreed[place] = agreed[place] - plan.outer_lr * (move + plan.outer_momentum * momentum[place])
    return agreed


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_a_federation_equals_the_loop(model, plan):
    estimator, y = MODELS[model]
    fleet = kv.fleet.simulated(CLIENTS, dropout=0.2)
    found = fit(estimator, X, y, clients=fleet, plan=PLANS[plan])
    coef, intercept = twin(estimator, y, PLANS[plan], fleet)
    np.testing.assert_allclose(found.coef_, coef, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.intercept_, intercept, rtol=1e-9, atol=1e-11)
    assert not hasattr(estimator, "coef_")  # what is given stays as it is
    assert found.get_params() == estimator.get_params()


def test_unlike_clients_learn_a_model_that_is_good_for_all():
    clients = kv.data.dirichlet(clients=8, alpha=0.1)
    model = fit(SGDClassifier(loss="log_loss"), X, TWO, clients=clients, plan=kv.fedavg(rounds=40))
    assert model.score(X, TWO) > 0.95
    assert {*model.predict(X)} == {"ill", "well"}
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1.0)


def test_sparse_samples_are_the_same():
    from scipy.sparse import csr_matrix

    model, plan = SGDClassifier(fit_intercept=False), kv.fedavg(rounds=3)
    dense, sparse = (fit(model, one, TWO, clients=CLIENTS, plan=plan) for one in (X, csr_matrix(X)))
    np.testing.assert_allclose(dense.coef_, sparse.coef_, rtol=1e-9)


def test_clients_by_their_groups():
    sites = np.repeat(["a", "b", "c"], 50)
    plan, clients = kv.fedavg(rounds=2), kv.data.by_key("groups")
    one = fit(SGDClassifier(), X, TWO, clients=clients, plan=plan, groups=sites)
    other = fit(SGDClassifier(), X, TWO, clients=clients, plan=plan, groups=np.repeat(["a", "b"], 75))
    assert not np.array_equal(one.coef_, other.coef_)


def test_a_model_that_is_to_go_on_goes_on():
    plan = kv.fedavg(rounds=1, epochs=0.01)
    first = fit(SGDClassifier(warm_start=True, learning_rate="constant", eta0=1e-6), X, TWO, clients=CLIENTS)
    then = fit(first, X, TWO, clients=CLIENTS, plan=plan)
    np.testing.assert_allclose(then.coef_, first.coef_, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": LogisticRegression()}, "takes steps, by partial_fit"),
        ({"estimator": GaussianNB()}, "a linear model's coefficients"),
        ({"estimator": SGDClassifier(average=True)}, "lost between rounds"),
        ({"plan": kv.fedprox(rounds=2)}, "scikit-learn's own"),
        ({"plan": kv.scaffold(rounds=2)}, "scikit-learn's own"),
        ({"plan": kv.diloco()}, "data of their own"),
        ({"plan": kv.fedavg(rounds=2, cohort=9)}, "larger than the federation"),
        ({"clients": kv.fleet.simulated(CLIENTS, holdout=0.1)}, "nothing is evaluated"),
        ({"X": X * np.nan}, "cannot use these samples"),
        ({"groups": [1, 2]}, "each sample has a group"),
    ],
)
def test_what_cannot_be_is_an_error(change, message):
    given = {"estimator": SGDClassifier(), "X": X, "y": TWO, "clients": CLIENTS, "plan": kv.fedavg(rounds=2)} | change
    with pytest.raises(ConfigError, match=message):
        fit(given.pop("estimator"), given.pop("X"), given.pop("y"), **given)
