"""A program that trains, or goes on with what is there; made to be killed.  python -m tests.killed FOLDER AXIS"""

import sys
import time
from pathlib import Path

import konvoi as kv
from tests import small


def slowly(done):
    """Steps and saving take long enough for a kill to fall into each of them."""
    from konvoi.state import checkpoint

    time.sleep(0.02)
    if checkpoint._publish.__module__ == "konvoi.state.checkpoint":
        publish = checkpoint._publish

        def slow_publish(partial, final, facts):
            time.sleep(0.1)
            return publish(partial, final, facts)

        checkpoint._publish = slow_publish


def run(folder, axis):
    is_there = (folder / "run" / "task.pickle").exists()
    job = small.job(model=small.wobbly, ema=0.9, hooks=kv.Hooks(on_step=slowly))
    options = {"resume": "run"} if is_there else {"name": "run"}
    fleet = kv.fleet.local(2, oversubscribe=True)
    kv.train(job, kv.Island(**{axis: 2}), fleet, folder=folder, sinks=[], checkpoint_every=3, **options)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
