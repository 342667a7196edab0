"""Each benchmark with programs that are made up: the keys and the arithmetic, not the speed."""

import functools

import pytest

import checkpoint
import federated
import first_step
import gpu
import step_time
from _harness import Options
from _programs import Trace
from _turns import Turn, Turns

STEP_S = {
    "konvoi": 0.09,
    "konvoi_command": 0.09,
    "ddp": 0.10,
    "hf_trainer": 0.12,
    "ray_train": 0.10,
    "plain_loop": 0.10,
}
START_S = {"konvoi": 2.0, "konvoi_command": 2.0, "ddp": 3.2, "hf_trainer": 5.0, "ray_train": 18.0, "plain_loop": 5.0}


def made_up(program, order, *, loss=3.0, blocked_s=0.02, written=True):
    """Every step takes the program's time, and one after which a checkpoint is written takes `blocked_s` more."""
    now, ends, blocked = 100.0 + START_S[program], [], []
    for step in range(1, order.steps + 1):
        now += STEP_S[program]
        if written and order.checkpoint_every and step % order.checkpoint_every == 0:
            blocked.append((step, blocked_s))
            now += blocked_s
        ends.append(now)
    return Trace(100.0, tuple(ends), (loss,) * order.steps, tuple(blocked), num_parameters=1_000_000_000)


def by_turns(make=made_up):
    """As `_turns.take_turns`, of programs that are made up; a stop swallows the first step of every turn."""

    def take(orders, *, first, per_turn, num_turns):
        traces = {name: make(program, order) for name, (program, order) in orders.items()}
        return {name: Turns(trace, tuple(turns(trace, first, per_turn, num_turns))) for name, trace in traces.items()}

    def turns(trace, first, per_turn, num_turns):
        ends = trace.ends
        for begin in range(first, first + num_turns * per_turn, per_turn):
            yield Turn(begin + 2, tuple(ends[k] - ends[k - 1] for k in range(begin + 1, begin + per_turn)))

    return take


@pytest.fixture
def peers_are_installed(monkeypatch):
    monkeypatch.setattr("_harness.version", lambda package, why: "1.0")


def flat(figures):
    assert all(value is None or isinstance(value, (int, float, str)) for value in figures.values())
    return figures


@pytest.mark.parametrize("quick", [True, False])
def test_step_time_has_its_keys_and_ratios(peers_are_installed, quick):
    result = step_time.measure(Options(quick=quick), by_turns())
    figures = flat(result.figures)
    assert set(step_time.KEYS) <= figures.keys()
    for key in ("ratio_vs_ddp", "ratio_vs_ddp_min", "ratio_vs_ddp_max", "ratio_vs_ddp_median_step"):
        assert figures[key] == pytest.approx(0.9)
    assert figures["ratio_vs_hf_trainer"] == pytest.approx(0.75)
    assert figures["ddp_step_ms"] == pytest.approx(100)
    assert len(result.repeats["konvoi_step_s"]) == (1 if quick else 10)


def test_step_time_says_null_without_transformers(monkeypatch):
    monkeypatch.setattr("_harness.version", lambda package, why: None)
    figures = step_time.measure(Options(quick=True), by_turns()).figures
    assert figures["hf_trainer"] is None
    assert figures["ratio_vs_hf_trainer"] is None
    assert figures["ratio_vs_ddp"] == pytest.approx(0.9)


def test_step_time_refuses_programs_that_learn_different_things(peers_are_installed):
    unlike = lambda program, order: made_up(program, order, loss=2.0 if program == "ddp" else 3.0)  # noqa: E731
    with pytest.raises(RuntimeError, match="same work"):
        step_time.measure(Options(quick=True), by_turns(unlike))


def test_first_step_counts_from_the_command_and_starts_alone(peers_are_installed):
    checks = []
    figures = flat(first_step.measure(Options(), made_up, lambda: checks.append(1)).figures)
    assert set(first_step.KEYS) <= figures.keys()
    assert figures["konvoi_s"] == pytest.approx(2.09)
    assert figures["ratio_vs_torchrun"] == pytest.approx(2.09 / 3.3)
    assert figures["ratio_vs_ray_train"] == pytest.approx(2.09 / 18.1)
    assert len(checks) == 3 + 5 + 5 + 3  # one unmeasured run each, then the rounds


def test_first_step_says_null_without_ray(monkeypatch):
    monkeypatch.setattr("_harness.version", lambda package, why: None)
    figures = first_step.measure(Options(quick=True), made_up, lambda: None).figures
    assert figures["ray"] is None
    assert figures["ratio_vs_ray_train"] is None
    assert figures["ray_train_s"] is None


@pytest.mark.parametrize(("quick", "steps", "num_checkpoints"), [(True, 20, 2), (False, 200, 10)])
def test_checkpoint_separates_time_blocked_from_time_lost(quick, steps, num_checkpoints):
    figures = flat(checkpoint.measure(Options(quick=quick), by_turns()).figures)
    assert set(checkpoint.KEYS) <= figures.keys()
    blocked, without = 0.02 * num_checkpoints, 0.09 * steps
    assert figures["blocked_fraction"] == pytest.approx(blocked / (without + blocked))
    assert figures["stall_fraction"] == pytest.approx(blocked / without)
    assert figures["torch_save_stall_fraction"] == pytest.approx(0.02 * num_checkpoints / (0.10 * steps))


def test_checkpoint_refuses_a_run_that_wrote_none():
    with pytest.raises(RuntimeError, match="0 checkpoints"):
        checkpoint.measure(Options(quick=True), by_turns(functools.partial(made_up, written=False)))


def test_gpu_without_one_says_null():
    figures = gpu.measure(Options(), made_up, lambda what: None).figures
    assert set(gpu.KEYS) <= figures.keys()
    assert figures["gpu"] is None
    assert figures["mfu"] is None


def test_gpu_counts_flops_by_the_formula():
    figures = flat(gpu.measure(Options(), made_up, lambda what: "NVIDIA H100 80GB HBM3").figures)
    assert set(gpu.KEYS) <= figures.keys()
    width, depth, seq, vocab, batch = 2048, 20, 1024, 32768, 16
    per_token = 6 * (1_000_000_000 - vocab * width) + 12 * depth * width * seq
    assert figures["mfu"] == pytest.approx(per_token * batch * seq / 0.09 / 989e12)
    assert figures["mfu_causal"] < figures["mfu"]
    assert figures["ratio_vs_plain_loop"] == pytest.approx(0.10 / 0.09)  # tokens/s: above 1 is faster


def test_an_unknown_gpu_is_measured():
    probe = {"name": "Some GPU", "matmul_flops": 1e15}.get
    figures = gpu.measure(Options(quick=True), made_up, probe).figures
    assert figures["peak_flops"] == 1e15
    assert figures["peak_source"].startswith("measured")


def test_the_large_model_has_about_a_billion_parameters():
    import torch

    import _work

    with torch.device("meta"):
        model = _work.recipe(_work.WORKS["gpt_1b"])()
    assert 0.9e9 < sum(p.numel() for p in model.parameters()) < 1.3e9


def test_the_checkpointed_model_has_about_twenty_million_parameters():
    import dataclasses

    import torch

    import _work

    with torch.device("meta"):
        model = dataclasses.replace(_work.recipe(_work.WORKS["gpt_20m"]), vocab_size=257)()
    assert 19e6 < sum(p.numel() for p in model.parameters()) < 21e6


ROUND_S = {
    "small": {
        "konvoi": 0.1,
        "loop_1x2": 0.4,
        "loop_2x1": 0.3,
        "flower_1": 6.0,
        "flower_2": 4.0,
        "flower_4": 5.0,
        "pfl_1x2": 0.7,
        "pfl_2x1": 0.8,
    },
    "real": {"konvoi": 2.0, "loop_1x2": 3.0, "loop_2x1": 4.0, "flower_1": 8.0, "flower_2": 9.0, "flower_4": 10.0},
    "many": {"konvoi": 30.0},
}


def clients_made_up(name, setting, rounds):
    """The first two rounds take ten times as long."""
    steady = ROUND_S[setting][name]
    return federated.Told((10 * steady,) * 2 + (steady,) * (rounds - 2), setup_s=5.0, peak_mib=300.0, way="together")


def test_federated_takes_the_best_of_each_peers_sizes():
    figures = flat(federated.measure(Options(), clients_made_up).figures)
    assert set(federated.KEYS) <= figures.keys()
    for key, ratio in {"flower": 40, "pfl": 7, "loop": 3, "flower_real": 4, "loop_real": 1.5}.items():
        assert [figures[f"ratio_vs_{key}{end}"] for end in ("", "_min", "_max")] == pytest.approx([ratio] * 3)
    assert figures["konvoi_round_ms"] == pytest.approx(100)
    assert figures["memory_mib_10000_clients"] == 300
    assert figures["konvoi_way_real"] == "together"


def test_federated_in_a_hurry_runs_each_peer_in_one_size():
    ran = []

    def run(name, setting, rounds):
        ran.append((name, setting))
        return clients_made_up(name, setting, rounds)

    figures = flat(federated.measure(Options(quick=True), run).figures)
    assert set(federated.KEYS) <= figures.keys()
    assert len(ran) == 4 + 3 + 1
    assert None not in figures.values()


def test_federated_says_what_makes_the_peers_and_null_without_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(federated, "PEERS_PYTHON", tmp_path / "python")
    monkeypatch.setattr(federated, "run_program", clients_made_up)
    figures = flat(federated.measure(Options(quick=True)).figures)
    assert set(federated.KEYS) <= figures.keys()
    assert figures["ratio_vs_flower"] is figures["ratio_vs_pfl"] is figures["ratio_vs_flower_real"] is None
    assert figures["ratio_vs_loop"] == pytest.approx(3)
    assert "make bench-setup" in capsys.readouterr().err


def test_federated_refuses_who_has_learnt_something_else(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(federated, "LEARNT", {})
    for factor in (1.0, 1.0005):
        torch.save({"weight": torch.tensor([1.0, 2.0]) * factor}, tmp_path / "learnt.pt")
        federated.check_same("konvoi", "small", 10, tmp_path)
    torch.save({"weight": torch.tensor([1.0, 2.01])}, tmp_path / "learnt.pt")
    with pytest.raises(RuntimeError, match="pfl has learnt something else: weight"):
        federated.check_same("pfl", "small", 10, tmp_path)


def test_the_real_clients_are_uneven_with_five_steps_on_average(tmp_path):
    import _clients

    federated.prepare(tmp_path, "real", 1)
    work = _clients.read(tmp_path)
    steps = [len(one) for one in work.batches[0]]
    assert min(steps) < 3 < 8 < max(steps)
    assert 4 < sum(steps) / len(steps) < 6.5
    assert max(len(step) for one in work.batches[0] for step in one) == 32
    assert sum(p.numel() for p in work.model().parameters()) > 1e6
