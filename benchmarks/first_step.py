"""From the command to the end of the first optimizer step: `konvoi train`, torchrun with DDP, and Ray Train; 2 workers.

    python benchmarks/first_step.py --json        about 3 minutes on 2 cores

Each repeat is a new command in an empty folder, and starts only when no process of konvoi's or Ray's is alive. One
unmeasured run of each comes first: it fills the page cache, Python's bytecode caches and the cache of tokens for all.
The end is the time that the first worker notes after its first optimizer step; what follows (evaluation, saving, Ray's
shutdown) does not count.
"""

from collections.abc import Callable

import _harness
import _programs
from _harness import Figure, Options, Result, absent, paired_ratios, spread
from _programs import Order, Trace

KEYS = ("ratio_vs_torchrun", "ratio_vs_ray_train", "ray")
PEERS = {"torchrun": "ddp", "ray_train": "ray_train"}  # what the ratio is called, and which program that is


def measure(
    options: Options,
    run: Callable[[str, Order], Trace] = _programs.run,
    wait_until_alone: Callable[[], None] = _programs.wait_until_alone,
) -> Result:
    ray = _harness.version("ray", why="ray_train")
    rounds = options.rounds or (1 if options.quick else 5)
    wanted = {"konvoi_command": rounds, "ddp": rounds} | ({"ray_train": min(rounds, 3)} if ray else {})
    order = Order("small_gpt", steps=1)

    def start(program: str) -> float:
        wait_until_alone()
        return run(program, order).first_step_s()

    for program in wanted:
        if not (options.quick and program == "ray_train"):  # it alone would take half of the minute
            _harness.say(f"unmeasured: {program}")
            start(program)
    seconds = _harness.alternate({program: lambda p=program: start(p) for program in wanted}, wanted)

    figures: dict[str, Figure] = {"ray": ray} | spread("konvoi_s", seconds["konvoi_command"])
    for peer, program in PEERS.items():
        if program not in seconds:
            figures |= absent(f"ratio_vs_{peer}", f"{peer}_s")
            continue
        figures |= spread(f"ratio_vs_{peer}", paired_ratios(seconds["konvoi_command"], seconds[program]))
        figures |= spread(f"{peer}_s", seconds[program])
    return Result(figures, {f"{program}_s": values for program, values in seconds.items()})


if __name__ == "__main__":
    _harness.main("first_step", KEYS, measure)
