"""What the tests of this folder let workers do. Importable in a worker, and without pytest."""

import multiprocessing
import os
import signal
import sys
import time

from konvoi.errors import DataError, KonvoiError
from konvoi.observe.events import Warned


def who(place, payload):
    return place.worker, place.num_workers, payload


def standing(place, payload):
    return dict(os.environ), os.getcwd(), list(sys.path)


def page_faults(place, payload):
    """Per round of memory that is taken and given back as a training step does, once all of it was taken before."""
    import resource

    import torch

    def rounds(number):
        for _ in range(number):
            held = [torch.ones(1_000_000) for _ in range(4)]
            del held

    rounds(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rounds(20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20


def fail(place, payload):
    place.reach_step(7)
    if place.worker == 1:
        raise ValueError("the labels are of another planet")
    time.sleep(30)


def fail_after_a_consequence(place, payload):
    if place.worker == 0:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    time.sleep(0.5)
    raise ValueError("the cause")


def only_a_consequence(place, payload):
    raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")


def own_error(place, payload):
    place.reach_step(3)
    raise DataError("a bad file", found=place.worker, hint="look at it")


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def unspeakable(place, payload):
    raise Unspeakable


def error_that_cannot_travel(place, payload):
    raise KonvoiError("holds a function", found=lambda: None)


def result_that_cannot_travel(place, payload):
    return lambda: None


def die_until(place, attempt):
    if place.worker == 1 and place.attempt < attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    if place.attempt < attempt:
        time.sleep(30)
    return place.attempt


def leave(place, status):
    os._exit(status)


def talk_and_die(place, num_words):
    for number in range(num_words):
        place.send(Warned(message=str(number)))
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_stop(place, payload):
    place.send(Warned(message=f"pid {os.getpid()}"))
    while not place.stop_requested():
        time.sleep(0.01)
    return "saved"


def with_children(place, payload):
    """Forks as a data loader does, tells the process ids, and waits."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=time.sleep, args=(60,)) for _ in range(2)]
    for child in children:
        child.start()
    place.send(Warned(message=" ".join(map(str, [os.getpid(), *(child.pid for child in children)]))))
    if payload == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def signalled_like_everybody(place, payload):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    return "still here"


def terminate_a_child(place, payload):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(timeout=10)
    return child.exitcode


def read_input(place, payload):
    return sys.stdin.read()


def say_spawned(place, payload):
    raise ValueError("spawned" if "konvoi.fleet.agent" not in " ".join(sys.orig_argv) else "forked")
