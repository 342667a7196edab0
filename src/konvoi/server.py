"""Who helps the islands of a convoy and has no data: a server adds up and decides, a witness only votes."""

from __future__ import annotations

import torch

from konvoi.fleet.worker import Place
from konvoi.island import enter
from konvoi.learner import Follower, Learner
from konvoi.membership import Member
from konvoi.mirror import Mirror
from konvoi.resuming import load
from konvoi.task import Outcome, Task


def work(place: Place, task: Task) -> Outcome:
    """Serve until the islands have taken their last steps, as the only worker."""
    job, given = task.prepared.job, task.membership
    assert given is not None
    if given.name == given.plan.witness:
        nothing = {str(number): torch.zeros(1) for number in range(given.plan.fragments)}
        with Member(given, nothing, place, place.send) as member:
            member.serve()
        return _outcome(place)
    with enter(place, task.plan) as island:
        parts = island.split(job.model, job.objective, seed=job.seed, freeze=job.freeze)
        # As the islands', so that what it fetches from them, should it have fallen behind, can be read.
        follows = given.plan.updates == "gradients"
        learner = (Follower if follows else Learner)(job, parts, task.prepared.num_steps)
        if task.restore_from is not None:
            load(task.restore_from[1], learner, parts, 1)
        beside = learner.state if isinstance(learner, Follower) else ()
        with Member(given, Mirror(island, parts).tensors, place, place.send, beside=beside) as member:
            member.serve()
    return _outcome(place)


def _outcome(place: Place) -> Outcome:
    return Outcome("stopped" if place.stop_requested() else "finished", 0)
