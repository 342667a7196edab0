"""The same clients in konvoi's simulation, as its users run it: `kv.train` with a fleet of simulated clients."""

import sys
import time
from functools import partial
from pathlib import Path

import torch

import konvoi as kv
from konvoi.job.data.partition import Partition
from konvoi.observe.events import Ready
from konvoi.observe.sinks.jsonl import read_events

sys.path.insert(0, str(Path(__file__).parents[1]))
import _clients


def main(folder: Path, samples: list[list[int]], local: dict[str, int]) -> None:
    begun = time.time()
    work = _clients.read(folder)
    job = kv.Job(
        model=partial(_clients.build, work.setting, work.weights),
        data=kv.data.tensors(inputs=work.images.numpy(), labels=work.labels.numpy(), holdout=0),
        objective=kv.objectives.classification(),
        optimizer=kv.optimizers.sgd(lr=_clients.LR),
        schedule=kv.schedules.constant(),
        global_batch=local.pop("batch"),
        clip_grad_norm=None,
        validate_every=0,
    )
    clients = Partition(len(samples), lambda *_: [torch.tensor(one).numpy() for one in samples])
    plan = kv.fedavg(rounds=len(work.batches), **local)
    run = kv.train(job, plan, kv.fleet.simulated(clients, num_workers=2), folder=folder, checkpoint_every=0, sinks=[])
    ready = next(event for event in read_events(run.folder / "events.jsonl") if isinstance(event, Ready))
    learnt = {name: p.detach() for name, p in run.model().named_parameters()}
    setup_s = ready.time - begun
    _clients.finish(folder, learnt, [step.seconds for step in run.steps], setup_s)
    (folder / "note.txt").write_text(ready.note)


if __name__ == "__main__":
    import json

    told = json.loads(Path(sys.argv[1], "clients.json").read_text())
    main(Path(sys.argv[1]), told["samples"], told["local"])
