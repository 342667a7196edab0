"""Write docs/benchmarks.md from benchmarks/results/*.json: `python docs/make_benchmarks.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PAGE = Path(__file__).parent / "benchmarks.md"

HEAD = """\
<!-- Made by docs/make_benchmarks.py from benchmarks/results: run a benchmark, then `make docs`. -->
# Figures beside others'

Each comes from one run of `python benchmarks/NAME.py --json`, in which konvoi and its peers alternate on the same work
and the same cores. A ratio is konvoi's figure over the peer's, so that below 1 konvoi is quicker; it is the median of
the pairs, and its least and greatest show the noise. What each peer is, and how it is tuned, stands at the head of the
program. Of `federated` the ratios are the peer's time over konvoi's: above 1, konvoi is quicker.
"""

# Figure, what it is, and what it should be at most (or at least, where it says so).
SHOWN: dict[str, list[tuple[str, str, str]]] = {
    "step_time": [
        ("ratio_vs_ddp", "a training step, 2 workers, against torch DDP", "≤ 1.02"),
        ("ratio_vs_hf_trainer", "the same against transformers.Trainer", "≤ 0.97"),
    ],
    "first_step": [
        ("ratio_vs_torchrun", "command to the end of the first step, against torchrun with DDP", "≤ 0.75"),
        ("ratio_vs_ray_train", "the same against Ray Train", "≤ 0.15"),
    ],
    "checkpoint": [
        ("blocked_fraction", "share of the time inside save, 20M parameters, every 20 steps", "≤ 0.01"),
        ("stall_fraction", "wall time with checkpoints over without, less one", "≤ 0.05"),
        ("torch_save_stall_fraction", "the same for torch.save in the loop", ""),
    ],
    "pipeline": [
        ("bubble_excess", "idle share of a pipeline beyond its schedule's own, worst of six cases", "≤ 0.03"),
        ("imbalance", "the slower stage's time over the mean of both, less one", ""),
    ],
    "memory": [
        ("worst_ratio_vs_theory", "memory of a worker over docs/memory.md, the worst of six plans", "≤ 1.10"),
        ("best_ratio_vs_theory", "the same, the best of six", "≥ 0.95"),
        ("zero1_mb", "MB of a worker, 57M parameters in fp32 with AdamW, `fsdp=2, zero=1`", ""),
        ("deepspeed_zero1_mb", "the same by DeepSpeed, stage 1", ""),
        ("zero2_mb", "`fsdp=2, zero=2`", ""),
        ("deepspeed_zero2_mb", "the same by DeepSpeed, stage 2", ""),
        ("zero3_mb", "`fsdp=2`", ""),
        ("plain_fsdp2_mb", "the same by plain FSDP2", ""),
        ("deepspeed_zero3_mb", "the same by DeepSpeed, stage 3", ""),
    ],
    "codecs": [
        ("int8_encode", "GB of float32 a second and core, into eight bits a value", "≥ 1"),
        ("int8_decode", "and back", ""),
        *(
            (f"{name}_{what}", text if what == "encode" else "and back", "")
            for name, text in (
                ("four_bit", "into four bits"),
                ("two_bit", "into two"),
                ("one_bit", "into one"),
                ("largest_of_8", "`largest_of(8)`"),
                ("largest_of_32", "`largest_of(32)`"),
                ("top_k_3_percent", "`top_k(0.03)`"),
                ("frequencies_32", "`frequencies(32)`"),
                ("power_sgd_4", "`power_sgd(4)`, rows of 1024"),
            )
            for what in ("encode", "decode")
        ),
    ],
    "wan_faults": [
        (
            "goodput",
            "counted tokens over what living, connected islands could read: kills, a cut, a slow one",
            "≥ 0.85",
        ),
        ("goodput_quiet", "the same without faults", ""),
        ("loss_gap", "held-out loss against a quiet run of as many tokens", "≤ 0.02"),
        ("recovery_s", "seconds from a kill to the next step, without the state's transfer", "≤ 5"),
    ],
    "wan_learning": [
        *(
            (
                f"loss_gap_{rate}",
                f"held-out loss over synchronous training's, less one, at 1/{rate} of its bytes: mean and one s.e.",
                f"≤ {aim}",
            )
            for rate, aim in ((25, 0.01), (100, 0.03), (400, 0.05), (1000, 0.08))
        ),
        *(
            (f"loss_gap_{rate}_{end}", f"the same at 1/{rate}, one seed{text}", "")
            for rate in (25, 100, 400, 1000)
            for end, text in (("first_seed", ""), ("twice_the_tokens", ", twice the tokens"))
        ),
    ],
    "wan_speed": [
        (
            "utilization",
            "steps a second over those without exchange, 100 Mbit/s, 80 ms, a 100th of the bytes",
            "≥ 0.95",
        ),
        ("utilization_bad_bbr", "20 Mbit/s, 200 ms, 1 % lost in bursts, a 400th of the bytes, bbr", "≥ 0.90"),
        ("utilization_bad_cubic", "the same with cubic", "≥ 0.85"),
        ("speedup_of_possible", "speed-up over torch DDP, of what is possible", "≥ 0.95"),
        ("torchft_utilization", "torchft's DiLoCo, as often", ""),
    ],
    "federated": [
        ("ratio_vs_flower", "100 clients, 4 steps of 8, a small CNN: Flower's time for a round over konvoi's", "≥ 20"),
        ("ratio_vs_pfl", "the same of pfl-research", "≥ 3"),
        ("ratio_vs_loop", "the same of a plain loop", "≥ 2"),
        ("ratio_vs_flower_real", "24 unlike clients, 1.7M parameters: Flower's time over konvoi's", "≥ 2"),
        ("ratio_vs_loop_real", "the same of a plain loop", "≥ 1.0"),
        ("setup_s_10000_clients", "seconds before the first round, 10,000 clients", ""),
        ("memory_mib_10000_clients", "MiB of the largest process, 10,000 clients", ""),
    ],
    "gpu": [
        ("mfu", "share of a GPU's peak, 1B parameters", "≥ 0.50"),
        ("ratio_vs_plain_loop", "speed against the barest loop", "≥ 0.99"),
    ],
}


def page() -> str:
    return "\n".join([HEAD, *(_section(name) for name in SHOWN)])


def _section(name: str) -> str:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"## {name}\n\nNo full run has been recorded.\n"
    found: dict[str, Any] = json.loads(path.read_text())
    machine = found["machine"]
    lines = [f"## {name}", "", "| what | figure | least to greatest | aim |", "|---|---|---|---|"]
    for figure, text, aim in SHOWN[name]:
        value, least, greatest = (found.get(f"{figure}{suffix}") for suffix in ("", "_min", "_max"))
        spread = "" if least is None else f"{least:.4g} to {greatest:.4g}"
        shown = f"{value:.4g}" if isinstance(value, float | int) else value or "not run"
        lines.append(f"| {text} (`{figure}`) | {shown} | {spread} | {aim} |")
    where = f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
    return "\n".join([*lines, "", f"{found['date'][:10]}, commit {found['commit']}, {where}.", ""])


if __name__ == "__main__":
    PAGE.write_text(page())
