"""Apps written for Flower: against loops written by hand, and against Flower itself where it is installed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from konvoi.compat import flower
from konvoi.compat.flower.server import ClientManager, rounds
from konvoi.compat.flower.simulation import Here
from konvoi.errors import FleetError, JobError, WorkerError
from tests.compat import rows

APP = Path(__file__).with_name("flower_app.py")
PEERS_PYTHON = Path(sys.prefix) / "peers" / "bin" / "python"  # Flower wants other versions of what others want, too
SAME = 1e-6


def start(*shapes, dtype=np.float64):
    draw = np.random.default_rng(1)
    return flower.ndarrays_to_parameters([draw.normal(size=shape).astype(dtype) for shape in shapes or [4]])


def run(strategy, num_rounds=2, num_clients=4, seed=0, app=rows.APP, **more):
    """In this process: what the workers do is held equal to it below."""
    parts = flower.ServerAppComponents(config=flower.ServerConfig(num_rounds), strategy=strategy)
    return rounds(parts, Here(app, num_clients, more), ClientManager(num_clients, seed))


def by_hand(num_rounds, initial, clients=range(4)):
    found = initial
    for _ in range(num_rounds):
        moved = [(found + np.arange(4.0) * (one + 1)) / 2 for one in clients]
        sizes = [rows.SIZES[one] for one in clients]
        found = sum(size * one for size, one in zip(sizes, moved, strict=True)) / sum(sizes)
    return found


def test_the_parameters_are_those_of_a_loop_written_by_hand():
    initial = start()
    history = run(flower.FedAvg(initial_parameters=initial), num_rounds=3)
    np.testing.assert_allclose(history.parameters[0], by_hand(3, initial.tensors[0]), rtol=1e-14)


def test_losses_are_means_by_samples_and_metrics_are_what_the_app_makes_of_them():
    seen = []

    def told(results):
        seen.append(results)
        return {"total": sum(number for number, _ in results)}

    strategy = flower.FedAvg(
        initial_parameters=start(),
        evaluate_fn=lambda number, parameters, config: (float(number), {"size": parameters[0].size}),
        fit_metrics_aggregation_fn=told,
        evaluate_metrics_aggregation_fn=told,
    )
    history = run(strategy, num_rounds=2)
    assert history.losses_centralized == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert history.metrics_centralized == {"size": [(0, 4), (1, 4), (2, 4)]}
    assert history.metrics_distributed_fit == {"total": [(1, 17), (2, 17)]}
    assert history.metrics_distributed == {"total": [(1, 17), (2, 17)]}
    there = [np.square(history.parameters[0] - np.arange(4.0) * (one + 1)).sum() for one in range(4)]
    assert history.losses_distributed[-1] == (2, pytest.approx(np.average(there, weights=rows.SIZES)))
    assert [number for number, _ in seen[0]] == list(rows.SIZES)


def test_configurations_reach_the_clients_and_a_client_keeps_its_state():
    found = []
    strategy = flower.FedAvg(
        initial_parameters=start(),
        fraction_evaluate=0.0,
        fit_metrics_aggregation_fn=lambda all: found.append(all) or {},
    )
    run(strategy, num_rounds=3, lr=0.5)
    assert [[told["rounds"] for _, told in one] for one in found] == [[1] * 4, [2] * 4, [3] * 4]
    assert {(told["lr"], told["of"]) for one in found for _, told in one} == {(0.5, 4)}


def test_without_initial_parameters_a_client_is_asked_for_them():
    history = run(flower.FedAvg(fraction_evaluate=0.0), num_rounds=0)
    np.testing.assert_array_equal(history.parameters[0], np.full(4, 9.0))


def test_a_share_of_the_clients_takes_part_by_the_seed():
    def asked(seed):
        found = []
        strategy = flower.FedAvg(
            initial_parameters=start(),
            fraction_fit=0.5,
            fraction_evaluate=0.0,
            fit_metrics_aggregation_fn=lambda all: found.append(tuple(number for number, _ in all)) or {},
        )
        run(strategy, num_rounds=8, seed=seed)
        return found

    assert asked(0) == asked(0) != asked(1)
    assert {len(one) for one in asked(0)} == {2}
    assert len({*asked(0)}) > 2


def test_dtypes_stay_and_counters_are_rounded():
    class Counting(flower.NumPyClient):
        def fit(self, parameters, config):
            return [parameters[0] + np.float32(0.5), parameters[1] + 3], 1, {}

    app = flower.ClientApp(client_fn=lambda context: Counting())
    initial = flower.ndarrays_to_parameters([np.zeros((2, 3), np.float32), np.array(5)])
    for strategy in (flower.FedAvg, flower.FedAvgM):
        history = run(strategy(initial_parameters=initial, fraction_evaluate=0.0), num_rounds=1, app=app)
        assert [one.dtype for one in history.parameters] == [np.float32, np.int64]
        assert history.parameters[1] == 8


ADAPTIVE = {
    "FedAdam": (flower.FedAdam, {"eta": 0.1, "tau": 1e-3}),
    "FedYogi": (flower.FedYogi, {"eta": 0.1, "tau": 1e-3}),
    "FedAdagrad": (flower.FedAdagrad, {"eta": 0.1, "tau": 1e-3}),
    "FedAvgM": (flower.FedAvgM, {"server_momentum": 0.9, "server_learning_rate": 0.5}),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_servers_steps_are_those_written_by_hand(name):
    make, options = ADAPTIVE[name]
    initial = start()
    found = run(make(initial_parameters=initial, **options), num_rounds=4).parameters[0]
    x, m, v = initial.tensors[0], 0.0, 0.0
    for number in range(1, 5):
        move = by_hand(1, x) - x
        if name == "FedAvgM":
            m = 0.9 * m + move
            x = x + 0.5 * m
            continue
        beta1, beta2 = (0.0, 0.0) if name == "FedAdagrad" else (0.9, 0.99)
        m, square = beta1 * m + (1 - beta1) * move, move * move
        v = {
            "FedAdam": beta2 * v + (1 - beta2) * square,
            "FedYogi": v - (1 - beta2) * square * np.sign(v - square),
            "FedAdagrad": v + square,
        }[name]
        lr = 0.1 * (np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1)) if name == "FedAdam" else 1)
        x = x + lr * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(found, x, rtol=1e-12)


def test_prox_sends_its_mu():
    found = []

    class Client(flower.NumPyClient):
        def fit(self, parameters, config):
            found.append(config)
            return parameters, 1, {}

    strategy = flower.FedProx(
        proximal_mu=0.25,
        initial_parameters=start(),
        fraction_evaluate=0.0,
        on_fit_config_fn=lambda number: {"a": number},
    )
    run(strategy, num_rounds=1, num_clients=2, app=flower.ClientApp(lambda context: Client()))
    assert found == [{"a": 1, "proximal_mu": 0.25}] * 2


# -- failures ----------------------------------------------------------------------------------------------------------


def failing(what, value, **more):
    return flower.FedAvg(initial_parameters=start(), on_fit_config_fn=lambda number: {what: value}, **more)


@pytest.mark.parametrize(
    ("what", "value", "why"),
    [("fail", (2,), "ValueError: the disk is gone"), ("nan", 2, "not finite"), ("shape", 2, "other shapes")],
)
def test_a_client_that_fails_is_counted_by_its_partition_and_the_others_make_the_round(what, value, why):
    strategy = failing(what, value)
    with pytest.warns(UserWarning, match="round 1 goes on without it: the client of partition 2 failed in fit"):
        history = run(strategy, num_rounds=1)
    assert [(number, client) for number, client, _ in history.failures] == [(1, 2)]
    assert why in history.failures[0][2]
    np.testing.assert_allclose(history.parameters[0], by_hand(1, start().tensors[0], (0, 1, 3)), rtol=1e-14)


def test_a_failure_that_is_not_accepted_is_raised_with_its_traceback():
    with pytest.raises(WorkerError, match="the client of partition 1 failed in fit: ValueError: the disk") as caught:
        run(failing("fail", (1,), accept_failures=False))
    assert caught.value.step == 1
    assert "in fit" in caught.value.remote_traceback


def test_where_all_fail_the_first_is_raised():
    with pytest.raises(WorkerError, match="partition 0"):
        run(failing("fail", (0, 1, 2, 3)))


def test_a_client_that_cannot_evaluate_is_counted_too():
    strategy = flower.FedAvg(initial_parameters=start(), on_evaluate_config_fn=lambda number: {"fail": 3})
    with pytest.warns(UserWarning, match="partition 3 failed in evaluate"):
        history = run(strategy, num_rounds=1)
    assert len(history.losses_distributed) == 1


def test_an_app_whose_clients_do_not_evaluate_goes_on_without():
    class Client(flower.NumPyClient):
        def fit(self, parameters, config):
            return parameters, 1, {}

    strategy = flower.FedAvg(initial_parameters=start(), accept_failures=False)
    history = run(strategy, num_rounds=1, app=flower.ClientApp(lambda context: Client()))
    assert (history.losses_distributed, history.failures) == ([], [])


def test_more_clients_than_there_are_is_an_error_at_once():
    with pytest.raises(FleetError, match="more clients than there are"):
        run(flower.FedAvg(initial_parameters=start(), min_fit_clients=5))


def test_what_a_client_returns_is_its_own_also_where_all_share_one_model():
    model = np.zeros(4)

    class Sharing(flower.NumPyClient):
        def __init__(self, partition):
            self.partition = partition

        def fit(self, parameters, config):
            model[:] = self.partition  # one array for all, as of a model that a process loads once
            return [model], 1, {}

    app = flower.ClientApp(lambda context: Sharing(context.node_config["partition-id"]))
    history = run(flower.FedAvg(initial_parameters=start(), fraction_evaluate=0.0), num_rounds=1, app=app)
    np.testing.assert_allclose(history.parameters[0], np.full(4, 1.5))


def test_records_are_of_their_kind_and_arrays_go_to_torch_and_back():
    import torch

    state = flower.RecordDict()
    module = torch.nn.Linear(2, 1)
    state.array_records["model"] = flower.ArrayRecord(module.state_dict())
    state["seen"] = flower.MetricRecord({"rounds": 1})
    kinds = (state.array_records, state.metric_records, state.config_records)
    assert [list(one) for one in kinds] == [["model"], ["seen"], []]
    again = torch.nn.Linear(2, 1)
    again.load_state_dict(state["model"].to_torch_state_dict())
    assert torch.equal(again.weight, module.weight)
    with pytest.raises(TypeError, match="a ConfigRecord is expected"):
        state.config_records["seen"] = state["seen"]
    with pytest.raises(KeyError):
        state.config_records["seen"]
    del state.metric_records["seen"]
    assert list(state) == ["model"]


# -- over workers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_do_what_one_process_does_and_a_client_stays_at_its_own():
    found = []
    strategy = flower.FedAvg(
        initial_parameters=start(), fit_metrics_aggregation_fn=lambda all: found.append([one for _, one in all]) or {}
    )
    history = flower.run_simulation(
        flower.ServerApp(config=flower.ServerConfig(num_rounds=3), strategy=strategy),
        rows.APP,
        num_supernodes=4,
        run_config={"lr": 0.5},
    )
    alone = run(flower.FedAvg(initial_parameters=start()), num_rounds=3)
    np.testing.assert_array_equal(history.parameters[0], alone.parameters[0])
    assert history.losses_distributed == alone.losses_distributed
    assert [[one["rounds"] for one in each] for each in found] == [[1] * 4, [2] * 4, [3] * 4]
    processes = [[one["process"] for one in each] for each in found]
    assert processes[0] == processes[1] == processes[2]


@pytest.mark.slow
def test_a_failure_in_a_worker_keeps_its_partition_and_its_traceback():
    server = flower.ServerApp(
        config=flower.ServerConfig(num_rounds=1), strategy=failing("fail", (3,), accept_failures=False)
    )
    with pytest.raises(
        WorkerError, match="the client of partition 3 failed in fit: ValueError: the disk is gone"
    ) as caught:
        flower.run_simulation(server, rows.APP, num_supernodes=4)
    assert "rows.py" in caught.value.remote_traceback


# -- what is not there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Grid", "Message", "start_simulation", "Krum", "LocalDpMod", "secagg_mod"])
def test_what_is_not_there_names_itself_and_the_nearest_way(name):
    with pytest.raises(JobError, match=f"Flower's {name} is not") as caught:
        exec(f"from konvoi.compat.flower import {name}")
    assert caught.value.expected


def test_a_client_of_messages_is_refused_where_it_is_written():
    with pytest.raises(JobError, match="Flower's Client is not"):

        class Mine(flower.Client):
            pass


def test_what_nobody_has_is_an_import_error():
    with pytest.raises(ImportError):
        exec("from konvoi.compat.flower import Krumm")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (flower.ClientApp, "Message"),
        (lambda: flower.ClientApp(rows.client_fn, mods=[print]), "mods"),
        (lambda: rows.APP.lifespan, "lifespan"),
        (flower.ServerApp, "main"),
        (lambda: flower.ServerAppComponents(server=object()), "Server"),
    ],
)
def test_what_an_app_cannot_do_here_is_refused(call, name):
    with pytest.raises(JobError, match=f"Flower's {name} is not"):
        call()


def test_a_client_of_another_library_is_told_about():
    app = flower.ClientApp(client_fn=lambda context: object())
    with pytest.raises(WorkerError, match="client_fn made no client"):
        run(flower.FedAvg(initial_parameters=start()), app=app)


def test_importing_it_loads_no_torch():
    program = "import konvoi.compat.flower, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# -- Flower itself -----------------------------------------------------------------------------------------------------


def run_app(python, program, name, folder):
    folder.mkdir()
    done = subprocess.run(
        [python, program, name, folder], capture_output=True, text=True, check=False, timeout=280, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    arrays = [dict(np.load(path)) for path in sorted(folder.glob("round-*.npz"))]
    return arrays, json.loads((folder / "noted.json").read_text())


def changed(folder):
    """The app with other lines of import, and nothing else."""
    program = folder / "app.py"
    program.write_text(
        re.sub(r"^from flwr[\w.]* import", "from konvoi.compat.flower import", APP.read_text(), flags=re.MULTILINE)
    )
    return program


def test_an_app_runs_with_its_lines_of_import_changed(tmp_path):
    arrays, noted = run_app(sys.executable, changed(tmp_path), "FedAvg", tmp_path / "found")
    assert len(arrays) == 4
    assert noted["metrics"][-2] == {"rounds": 3.0}
    assert noted["losses"][0] > noted["losses"][-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="Flower is not installed beside: make bench-setup")
@pytest.mark.parametrize("name", ["FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_flower_itself_ends_with_the_same_parameters(name, tmp_path):
    ours, noted = run_app(sys.executable, changed(tmp_path), name, tmp_path / "ours")
    theirs, noted_there = run_app(PEERS_PYTHON, APP, name, tmp_path / "theirs")
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        for key in other:
            np.testing.assert_allclose(mine[key], other[key], rtol=SAME, atol=SAME)
    np.testing.assert_allclose(noted["losses"], noted_there["losses"], rtol=SAME)
    assert noted["metrics"] == [pytest.approx(one, rel=SAME) for one in noted_there["metrics"]]
