"""The work that every program does: the same model class, initial weights, samples, batches and optimizer for all.

Nothing heavy is imported before it is used, so that no program's start pays for another's needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch import Tensor, nn

    import konvoi as kv
    from konvoi.job.models.gpt import GPT

SEED = 0
LR = 3e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARM_UP = 20  # steps before a block that is timed, of the full runs
TRACE = "trace.json"  # where a peer leaves its trace, in its working directory
STEPS = "steps"  # where its first worker leaves a line for every step, as it goes


@dataclass(frozen=True)
class Work:
    model: Mapping[str, Any]  # the arguments of konvoi.models.gpt
    seq_len: int
    batch: int  # sequences per worker and step
    precision: str = "fp32"
    compiled: bool = False


WORKS = {
    "small_gpt": Work({"depth": 4, "width": 128, "num_heads": 4}, seq_len=128, batch=8),
    "gpt_20m": Work({"depth": 11, "width": 384}, seq_len=128, batch=8),
    "gpt_2m": Work({"depth": 6, "width": 160, "num_heads": 5}, seq_len=128, batch=2),  # --quick only
    # Every dim of every matrix a multiple of 512, heads of 128, and a vocabulary as large as such a model's usually is.
    "gpt_1b": Work(
        {"depth": 20, "width": 2048, "num_heads": 16, "mlp_width": 5632, "vocab_size": 32768},
        seq_len=1024,
        batch=16,
        precision="bf16",
        compiled=True,
    ),
}


def arguments() -> argparse.Namespace:
    """What our own script and every peer understand (see `_programs.Order`); `work` comes as its value."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=sorted(WORKS), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--checkpoint-every", type=int, default=None)
    args = parser.parse_args()
    args.work = WORKS[args.work]
    return args


def data(work: Work) -> kv.values.Data:
    from konvoi.job.data.text import text

    return text("stdlib", seq_len=work.seq_len)


def recipe(work: Work) -> GPT:
    from konvoi.job.models.gpt import gpt

    return gpt(**work.model)


def flops_per_token(work: Work, num_parameters: int, *, causal: bool = False) -> float:
    """Of one training step: `6 N + 12 L H Q T` (PaLM, arXiv 2204.02311 appendix B).

    N leaves out the input embedding, which is read and not multiplied. The formula counts attention between all pairs
    of positions; `causal` counts only the half that a causal model has to compute. Recomputation never counts.
    """
    shape = recipe(work).shape
    vocab_size = work.model.get("vocab_size", 257)
    attention = 12 * shape.depth * shape.num_heads * shape.head_dim * work.seq_len
    return 6 * (num_parameters - vocab_size * shape.width) + attention / (2 if causal else 1)


# --- what peers use; konvoi does the same by itself


def prepared(work: Work) -> kv.values.Splits:
    _spare_the_peers()
    return data(work).prepare()


def _spare_the_peers() -> None:
    """Peers need konvoi's model and data, not its public list: 0.1 s of imports that their users would not have."""
    if "konvoi" not in sys.modules:
        found = importlib.util.find_spec("konvoi")
        assert found is not None
        bare = types.ModuleType("konvoi")
        bare.__path__ = list(found.submodule_search_locations or ())
        sys.modules["konvoi"] = bare


def module(work: Work, splits: kv.values.Splits, device: str = "cpu") -> nn.Module:
    """With the very weights that konvoi begins with: loss by loss, runs can be compared."""
    import torch

    from konvoi.plan.split.materialize import build, materialize

    model = build(recipe(work).fit(splits.spec), SEED, torch.device(device), torch.float32)
    materialize(model, SEED, torch.device(device), [("", model)], lambda unit: None)
    return model


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Norms do not decay: konvoi's rule, and transformers.Trainer's."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def batches(work: Work, splits: kv.values.Splits, rank: int, world_size: int) -> Iterator[Mapping[str, Tensor]]:
    """Endless {"input_ids": (batch, seq_len + 1)}: konvoi's own loader, in the order of the job's seed."""
    from konvoi.job.data.loader import Batches

    loader = Batches(splits.train, seed=SEED, global_batch=work.batch * world_size, worker=rank, num_workers=world_size)
    for (micro_batch,) in loader:
        yield micro_batch.batch


class Ends(list[float]):
    """When each optimizer step ended, in seconds since the epoch; told as it goes where `told` is true."""

    def __init__(self, told: bool) -> None:
        self._file = open(STEPS, "wb", buffering=0) if told else None  # noqa: SIM115

    def step(self) -> None:
        self.append(time.time())
        if self._file is not None:
            self._file.write(b'"StepDone"\n')


def leave_trace(
    module: nn.Module,
    ends: Sequence[float],
    losses: Sequence[float],
    blocked: Sequence[tuple[int, float]] = (),
    folder: str = ".",
) -> None:
    """What a peer calls at its end, on its first worker; `_programs.Trace` says what the fields are."""
    num_parameters = sum(p.numel() for p in module.parameters())
    fields = {"ends": ends, "losses": losses, "blocked": blocked, "num_parameters": num_parameters}
    Path(folder, TRACE).write_text(json.dumps(fields))


def mean_of_workers(losses: Sequence[float]) -> list[float]:
    """The losses of the global batches, as konvoi shows them; called after what is timed."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


def leave_together() -> NoReturn:
    """End this worker without freeing anything, once all are here.

    The destructor of a gloo group waits for its threads; where it runs last from inside DDP's, it does so with the
    interpreter's lock held, which such a thread may want: seen to hang in one run of five (torch 2.13).
    """
    import torch.distributed as dist

    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


# --- what konvoi's side uses


def job(work: Work, *, steps: int, workers: int) -> kv.Job:
    import konvoi as kv

    return kv.Job(
        model=recipe(work),
        data=data(work),
        objective=kv.objectives.next_token(),
        optimizer=kv.optimizers.adamw(lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY),
        schedule=kv.schedules.constant(),
        global_batch=work.batch * workers,
        steps=steps,
        seed=SEED,
        clip_grad_norm=CLIP,
        validate_every=0,
    )
