"""What the pool's own tests send to its workers."""

import os
import signal
import time
from unittest import mock

import torch
import torch.distributed as dist

from konvoi.errors import PlanError
from konvoi.island import enter
from konvoi.plan.island import Island


def where(place, payload):
    return place.worker, place.num_workers, os.getpid(), payload


def add(place, payload):
    """The sum of everybody's number, by the island's own way to meet."""
    with enter(place, Island(dp=place.num_workers)):
        total = torch.tensor([float(place.worker + payload)])
        if place.num_workers > 1:
            dist.all_reduce(total)
        return total.item()


def hang(place, worker):
    if place.worker == worker:
        time.sleep(3600)
    return "answered before the row was given up"


def hang_in_a_collective(place, worker):
    with enter(place, Island(dp=place.num_workers)):
        if place.worker == worker:
            time.sleep(3600)
        dist.all_reduce(torch.ones(1))


def die(place, worker):
    with enter(place, Island(dp=place.num_workers)):
        if place.worker == worker:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))


def lose_a_neighbour_while_meeting(place, worker):
    if place.worker != worker:
        return
    with mock.patch.object(dist.distributed_c10d, "_new_process_group_helper") as meet:
        meet.side_effect = RuntimeError("gloo connectFullMesh failed: Connection closed by peer")
        with enter(place, Island(dp=place.num_workers)):
            pass


def explode(place, worker):
    with enter(place, Island(dp=place.num_workers)):
        if place.worker == worker:
            raise ZeroDivisionError("a slice of nothing")
        dist.all_reduce(torch.ones(1))


def refuse(place, worker):
    if place.worker == worker:
        raise PlanError("no such thing", hint="try another")


def speak_late(place, payload):
    place.send("an event")
    return payload
