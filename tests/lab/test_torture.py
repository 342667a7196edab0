"""Every way to agree, on a bad network where one island is killed again and again, and another is cut off."""

import dataclasses

import pytest

import konvoi as kv
from konvoi.lab import Lab, Link, fault
from konvoi.observe.events import Agreed, Averaged, Restarted, RunEnded
from konvoi.observe.sinks.jsonl import read_events
from konvoi.plan.convoy import Convoy
from tests.lab.test_lab import needs_quota

pytestmark = [needs_quota, pytest.mark.soak, pytest.mark.timeout(400)]

PLANS = {
    "local_sgd": kv.local_sgd(every=8, deadline_s=2.0),
    "by time": kv.local_sgd(every=8, deadline_s=2.0, pace="time"),
    "one decides": kv.local_sgd(every=8, deadline_s=2.0, deciders=("island-0",)),
    "diloco": kv.diloco(every=8, deadline_s=2.0, compression=kv.compress.int8()),
    "streaming_diloco": kv.streaming_diloco(every=20, deadline_s=2.0),
    "adaptive": kv.adaptive(deadline_s=2.0),
    "decoupled_momentum": kv.decoupled_momentum(deadline_s=2.0),
    "parameter_server": kv.parameter_server(deadline_s=2.0),
    "two servers": Convoy(every=8, servers=("s", "t"), deadline_s=2.0),
    "async_sgd": kv.async_sgd(every=8),
    "stale_synchronous": kv.stale_synchronous(every=8),
    "gossip": kv.gossip(every=8),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_all_go_on_and_end_without_anybodys_patience_running_out(plan, tmp_path):
    job = kv.Job(
        model=kv.models.gpt(depth=2, width=96),
        data=kv.data.text("stdlib", seq_len=96),
        objective=kv.objectives.next_token(),
        optimizer=kv.optimizers.adamw(lr=2e-3),
        global_batch=16,
        steps=160 if plan.every > 1 else 40,  # where every step waits for 20 Mbit/s
        validate_every=0,
    )
    plan = dataclasses.replace(plan, patience_s=600.0)
    link = Link(up=20, down=20, rtt=120, loss=0.001, burst=3)
    faults = [fault(text) for text in ("kill 1 every 7", "cut 2 at 9 for 6", "kill 3 at 12")]
    with Lab(4, link, cpu=0.4, faults=faults) as lab:
        run = kv.train(job, kv.Island() | plan, lab.fleet(), folder=tmp_path, sinks=[], checkpoint_every=0)
    found = [[*read_events(run.folder / folder)] for folder in ("", *(f"islands/island-{n}" for n in (1, 2, 3)))]
    assert all(isinstance(events[-1], RunEnded) for events in found)
    assert found[0][-1].reason == "finished"
    assert sum(isinstance(event, (Agreed, Averaged)) for event in found[0]) >= 3
    assert [n for n, events in enumerate(found) if any(isinstance(event, Restarted) for event in events)] == [1, 3]
