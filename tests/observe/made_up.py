"""A run that never was, with all that can happen to one: a resumption, a death, evaluations, warnings, samples."""

from __future__ import annotations

import math
import random

from konvoi.observe.events import (
    Agreed,
    Averaged,
    CheckpointSaved,
    ClientsEvaluated,
    Evaluated,
    Event,
    Ready,
    Restarted,
    RoundDone,
    RunEnded,
    RunStarted,
    Sampled,
    StateFetched,
    StepDone,
    Warned,
    WorkerDied,
)

BEGAN = 1_700_000_000.0
JOB = {
    "model": "gpt(depth=6)",
    "data": "text('stdlib')",
    "objective": "next_token",
    "optimizer": "adamw(lr=0.003, weight_decay=0.1)",
    "schedule": "warmup(100) then cosine",
    "global_batch": 64,
    "seed": 0,
    "clip_grad_norm": 1.0,
    "unit": "tokens",
    "data_description": {"files": 1432, "bytes": 26_400_000, "held_out": "every 20th file"},
}

SPREAD = {"min": 0.1, "p10": 0.2, "median": 0.5, "p90": 0.8, "max": math.inf, "std": 0.25}


def step_done(step: int, time: float = 0.0, **changed: float | bool) -> StepDone:
    fields: dict[str, float | bool] = {"loss": 2.0, "grad_norm": 1.0, "lr": 1e-3, "weight": 16384.0, "seconds": 0.2}
    return StepDone(step=step, time=time, **{**fields, "data_s": 0.001, "wait_s": 0.01, **changed})  # type: ignore[arg-type]


def run_started(time: float = BEGAN, num_steps: int = 1500, **changed: object) -> RunStarted:
    derived = (
        "1. width = 64 × depth = 384 (nanochat's aspect ratio)",
        "2. heads = width / 64 = 6",
        "3. tokens = 20 × parameters = 24.6 M (Hoffmann et al. 2022, §3)",
    )
    machine = {"python": "3.11.9", "torch": "2.13.0+cpu", "cores": 2, "memory_bytes": 25_769_803_776}
    fields = {
        "job": JOB,
        "plan": {"dp": 2, "precision": "bf16"},
        "fleet": "local: 2 workers on cpu",
        "derived": derived,
    }
    return RunStarted(run="runs/stdlib-gpt", time=time, num_steps=num_steps, machine=machine, **{**fields, **changed})  # type: ignore[arg-type]


class _Clock:
    def __init__(self) -> None:
        self.now = BEGAN

    def after(self, seconds: float) -> float:
        self.now += seconds
        return self.now


def realistic_run(num_steps: int = 1500) -> list[Event]:
    """Stopped at two fifths and resumed an hour later; a worker dies at two thirds."""
    clock, chance = _Clock(), random.Random(0)
    stop, death = 2 * num_steps // 5, 2 * num_steps // 3
    events: list[Event] = [
        run_started(clock.now, num_steps),
        Ready(time=clock.after(2.1), num_parameters=1_230_000, seconds=2.1),
    ]
    events += [_evaluated(0, clock), Sampled(time=clock.now, step=0, prompt="def ", text="\x00q\ufffd<'Zu 7=hN;;vv~")]
    events += _steps(1, stop + 1, num_steps, clock, chance)
    events += [
        RunEnded(
            time=clock.now, reason="stopped", step=stop, seconds=clock.now - BEGAN, message="interrupted by the user"
        )
    ]
    clock.after(3600)
    events += [
        run_started(clock.now, num_steps, resumed_from=stop),
        Ready(time=clock.after(1.4), num_parameters=1_230_000, seconds=1.4),
    ]
    events += _steps(stop + 1, death, num_steps, clock, chance)
    events += [Warned(time=clock.now, message="worker 1 is 40 % slower than the others", worker=1)]
    events += [WorkerDied(time=clock.after(0.4), worker=1, host="alpha", reason="signal SIGKILL", step=death)]
    again = (death - 1) // 100 * 100
    events += [Restarted(time=clock.after(0.1), attempt=1, max_restarts=3, from_step=again)]
    events += [run_started(clock.now, num_steps, resumed_from=again, attempt=1)]
    events += [Ready(time=clock.after(1.2), num_parameters=1_230_000, seconds=1.2)]
    events += _steps(again + 1, num_steps + 1, num_steps, clock, chance)
    written = 'read(self, size=-1):\n    """Read up to size bytes from the file."""\n    if self.closed:\n'
    written += '        raise ValueError("I/O operation on <closed> file")\n'
    events += [Sampled(time=clock.now, step=num_steps, prompt="def ", text=written)]
    events += [RunEnded(time=clock.after(0.3), reason="finished", step=num_steps, seconds=clock.now - BEGAN - 3600)]
    return events


def _steps(start: int, stop: int, num_steps: int, clock: _Clock, chance: random.Random) -> list[Event]:
    events: list[Event] = []
    for step in range(start, stop):
        seconds = chance.lognormvariate(math.log(0.2), 0.08) * (
            4 if step == start else 3 if chance.random() < 0.004 else 1
        )
        events.append(
            step_done(
                step,
                clock.after(seconds),
                loss=_loss(step) + chance.gauss(0, 0.05) + (0.5 if step == num_steps // 4 else 0),
                grad_norm=chance.lognormvariate(0.2 - step / num_steps, 0.25) * (12 if step == num_steps // 4 else 1)
                + 6 * math.exp(-step / 30),
                lr=3e-3 * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * min(step / num_steps, 1))),
                seconds=seconds,
                data_s=seconds * 0.006,
                wait_s=seconds * chance.uniform(0.01, 0.09),
            )
        )
        if step % 100 == 0:
            events.append(_evaluated(step, clock))
            events.append(
                CheckpointSaved(
                    time=clock.now,
                    step=step,
                    path=f"checkpoints/{step}",
                    size_bytes=14_800_000,
                    blocked_s=0.012,
                    seconds=0.4,
                )
            )
    return events


def _evaluated(step: int, clock: _Clock) -> Evaluated:
    loss = _loss(step) + 0.06
    values = {"loss": loss, "bits_per_byte": loss / math.log(2)}
    return Evaluated(time=clock.after(1.1), step=step, split="valid", values=values, seconds=1.1, best=step > 0)


def _loss(step: int) -> float:
    return 1.28 + 4.2 * math.exp(-step / 60) / (1 + step / 400) + 0.9 * math.exp(-step / 500)


def one_of_each() -> list[Event]:
    """Every kind once, in an order that could have happened."""
    return [
        run_started(resumed_from=None, attempt=0),
        Ready(time=BEGAN + 2, num_parameters=1_230_000, seconds=2.0),
        Sampled(time=BEGAN + 2, step=0, prompt="def ", text="q<\x00>\n"),
        step_done(1, BEGAN + 3),
        Evaluated(time=BEGAN + 4, step=1, split="valid", values={"loss": 5.5, "accuracy": 0.1}, seconds=0.5, best=True),
        ClientsEvaluated(
            time=BEGAN + 4, step=1, split="clients", clients=7, spread={"loss": SPREAD, "accuracy": SPREAD}
        ),
        CheckpointSaved(time=BEGAN + 5, step=1, path="checkpoints/1", size_bytes=10**6, blocked_s=0.01, seconds=0.2),
        Warned(time=BEGAN + 6, message="worker 1 is slow [red]", worker=1),
        WorkerDied(time=BEGAN + 7, worker=1, host="alpha", reason="signal SIGKILL", step=1),
        Restarted(time=BEGAN + 8, attempt=1, max_restarts=3, from_step=1),
        Averaged(time=BEGAN + 8, peer="island-1", count=2, sent_bytes=10**6),
        StateFetched(time=BEGAN + 8, round=3, size_bytes=10**6, seconds=0.5),
        Agreed(time=BEGAN + 8, round=4, counted={"ada": 32, "bob": 28}, sent_bytes=10**5),
        RoundDone(time=BEGAN + 8, round=5, asked=10, counted=8, refused=1, clock=12.0),
        RunEnded(time=BEGAN + 9, reason="finished", step=1, seconds=9.0, message="all [bold]done"),
    ]
