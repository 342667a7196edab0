"""`konvoi.train` on one GPU: a GPT of about 1B parameters, bf16, compiled block by block, beside the barest loop.

    python benchmarks/gpu.py --json        about 10 minutes; without a GPU it prints "gpu": null and exits 0

mfu                   model FLOP/s over the device's peak of dense bf16. The FLOPs of a token are PaLM's appendix B,
                      6 N + 12 L H Q T, which counts attention between all pairs of positions
mfu_causal            the same where only the half is counted that a causal model has to compute
ratio_vs_plain_loop   tokens/s of konvoi over those of `peers/plain_loop.py`, from blocks that alternate: 1 is as fast

A block is 20 steps to warm up (compilation among them) and then 40, timed from end to end.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import _harness
import _programs
import _work
from _harness import Figure, Options, Result, absent, paired_ratios, spread
from _programs import Order, Trace

KEYS = ("mfu", "ratio_vs_plain_loop", "gpu")
WORK = "gpt_1b"
# Dense bf16 FLOP/s of the vendors' data sheets; the first name that is part of the device's counts.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def probe(what: str) -> str | float | None:
    """Asked of another process, so that this one holds no memory of the device: "name", or "matmul_flops"."""
    script = str(Path(__file__).parent / "_device.py")
    return json.loads(subprocess.run([sys.executable, script, what], capture_output=True, text=True, check=True).stdout)


def measure(
    options: Options,
    run: Callable[[str, Order], Trace] = _programs.run,
    probe: Callable[[str], str | float | None] = probe,
) -> Result:
    gpu = probe("name")
    if gpu is None:
        _harness.say("no GPU at hand: nothing is measured")
        return Result({"gpu": None} | absent("mfu", "mfu_causal", "ratio_vs_plain_loop"))
    warm_up, rounds = _work.WARM_UP, options.rounds or (1 if options.quick else 3)
    order = Order(WORK, warm_up + (5 if options.quick else 40), workers=1)
    traces = _harness.alternate({name: lambda name=name: run(name, order) for name in ("konvoi", "plain_loop")}, rounds)

    work = _work.WORKS[WORK]
    num_parameters = traces["konvoi"][0].num_parameters
    tokens = work.batch * work.seq_len * (order.steps - warm_up)
    rates = {name: [tokens / t.span_s(warm_up, order.steps) for t in runs] for name, runs in traces.items()}
    peak, source = peak_flops(str(gpu), probe)
    figures: dict[str, Figure] = {"gpu": gpu, "peak_flops": peak, "peak_source": source}
    figures["num_parameters"] = num_parameters
    for name, causal in (("mfu", False), ("mfu_causal", True)):
        per_token = _work.flops_per_token(work, num_parameters, causal=causal)
        figures |= spread(name, [rate * per_token / peak for rate in rates["konvoi"]])
        figures |= spread(f"plain_loop_{name}", [rate * per_token / peak for rate in rates["plain_loop"]])
    figures |= spread("ratio_vs_plain_loop", paired_ratios(rates["konvoi"], rates["plain_loop"]))
    for name, values in rates.items():
        figures |= spread(f"{name}_tokens_per_s", values)
    return Result(figures, {f"{name}_tokens_per_s": values for name, values in rates.items()})


def peak_flops(gpu: str, probe: Callable[[str], str | float | None]) -> tuple[float, str]:
    """What the device can do at most, and where that figure is from."""
    for name, flops in PEAK_FLOPS.items():
        if name in gpu:
            return flops, "data sheet"
    return float(probe("matmul_flops") or 0.0), "measured: matmul of 8192^3 in bf16"


if __name__ == "__main__":
    _harness.main("gpu", KEYS, measure)
