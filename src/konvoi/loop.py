"""The training loop: the one place where job, plan, fleet and state meet."""

from __future__ import annotations

import time

from konvoi.fleet.worker import Place
from konvoi.island import enter
from konvoi.observe.events import StepDone
from konvoi.session import Session
from konvoi.task import Outcome, Task


def work(place: Place, task: Task) -> Outcome:
    """Train, as one worker of an island. Every worker returns the same."""
    with enter(place, task.plan) as island, Session(island, task) as session:
        parts, learner = session.parts, session.learner
        session.evaluate_first()
        for step, micro, data_s in session.steps():
            begin = time.perf_counter()
            lr = learner.lr(step)
            gradient = island.forward_backward(parts, micro, should_stop=place.stop_requested())
            island.clip(parts, gradient, learner.clip_grad_norm)
            is_finite = island.is_finite(gradient)
            if is_finite:
                learner.step()
            else:
                session.on_nonfinite(step, gradient)
            done = StepDone(
                step=step,
                loss=gradient.loss,
                grad_norm=gradient.norm,
                lr=lr,
                weight=gradient.weight,
                seconds=time.perf_counter() - begin + data_s,
                data_s=data_s,
                wait_s=gradient.wait_s,
                skipped=not is_finite,
                scale=gradient.scale,
            )
            island.after_step(is_finite)
            session.after_step(done)
            if gradient.should_stop or session.has_converged:
                return session.end("stopped" if gradient.should_stop else "early stopping", step)
        return session.end(*session.reached())
