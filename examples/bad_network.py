"""Four islands over a bad network, twice: a quiet run, and one in which one is killed and one cut off.

    python examples/bad_network.py [--folder runs] [--steps 480]        2.5 minutes on 2 cores; Linux, root

Each island is a host of its own on this computer: 0.4 cores, 20 Mbit/s, 120 ms from every other, and a packet in a
thousand lost. Both runs have their own report; `wan.html` shows them side by side.
"""

import argparse
from pathlib import Path

import konvoi as kv
from konvoi.lab import Lab, Link, fault
from konvoi.observe import compare
from konvoi.observe.events import Agreed, WorkerDied
from konvoi.observe.sinks.jsonl import read_events

ISLANDS = 4
PLAN = kv.Island() | kv.local_sgd(every=8, compression=kv.compress.low_bit(1), ahead=8, deadline_s=2.0)
LINK = Link(up=20, down=20, rtt=120, loss=0.001, burst=3)
FAULTS = ("kill 1 at 8", "cut 2 at 15 for 12")


def far_job(steps: int) -> kv.Job:
    return kv.Job(
        model=kv.models.gpt(depth=2, width=96),
        data=kv.data.text("stdlib", seq_len=96),
        objective=kv.objectives.next_token(),
        optimizer=kv.optimizers.adamw(lr=2e-3),
        global_batch=4 * ISLANDS,
        steps=steps,
        validate_every=steps,
        validate_batches=8,
        sample_prompt=None,
    )


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--steps", type=int, default=480)
    args = parser.parse_args(argv)
    folders = []
    for name, texts in (("wan-quiet", ()), ("wan-faults", FAULTS)):
        number = sum(path.name.startswith(name) for path in args.folder.glob("*")) if args.folder.exists() else 0
        with Lab(ISLANDS, LINK, cpu=0.4, faults=[fault(text) for text in texts], say=print) as lab:
            run = kv.train(
                far_job(args.steps), PLAN, lab.fleet(), folder=args.folder, name=name + f"-{number + 1}" * (number > 0)
            )
        print(lab.describe_traffic())
        folders.append(run.folder)
    for folder in folders:
        events = read_events(folder)
        agreed = [event for event in events if isinstance(event, Agreed)]
        died = sum(isinstance(event, WorkerDied) for event in read_events(folder / "islands" / "island-1"))
        counted = sum(sum(event.counted.values()) for event in agreed)
        print(f"{folder.name}: {len(agreed)} agreements over {counted:,} samples; island-1 died {died} times")
    page = compare.write(args.folder / "wan.html", "The same training, quiet and with faults", folders)
    print(f"side by side: {page}")
    return page


if __name__ == "__main__":
    main()
