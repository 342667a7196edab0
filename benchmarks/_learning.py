"""One training run of `wan.py --part learning`: islands that take their steps in turn, in one process.

What is common to all: a GPT of 0.67 million parameters, the standard library's bytes, 32 sequences of 64 a step, shared
by the islands; Muon (Jordan et al., 2024) for the blocks' matrices and AdamW for the rest; a cosine to a tenth of the
rate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

ISLANDS, BATCH, SEQ_LEN, DEPTH, WIDTH = 4, 32, 64, 3, 128
VALID, TEST = 4096, 8192  # samples of the held-out figures


@dataclass(frozen=True)
class Trial:
    """`plan`: a convoy as the command line has it; "": one island, the whole batch at every step."""

    plan: str
    lr: float
    momentum: float = 0.95
    adamw_lr: float = 3e-3
    steps: int = 3000
    seed: int = 0

    @property
    def id(self) -> str:
        return hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()

    @property
    def num_tokens(self) -> int:
        return self.steps * BATCH * SEQ_LEN

    def run(self) -> dict[str, Any]:
        """Losses in nats a byte, and how many times fewer bytes an island sends than data parallelism would."""
        import torch

        from konvoi.plan.convoy import Convoy, Plan
        from konvoi.plan.presets import parse
        from konvoi.simulate import Simulation

        torch.set_num_threads(1)
        begin = time.time()
        plan = parse(f"|{self.plan}") if self.plan else None
        convoy = plan.convoy if isinstance(plan, Plan) else Convoy(every=self.steps + 1)
        sources = splits()
        simulation = Simulation(self._prepared(sources["train"]), convoy, ISLANDS if plan else 1)
        curve = []
        for step in simulation.run():
            if step % max(1, self.steps // 10) == 0:
                curve.append((step, round(loss(simulation, sources["valid"].train, 1024), 5)))
                print(f"{self}: {curve[-1]}", file=sys.stderr, flush=True)
            if not all(math.isfinite(one.losses[-1]) for one in simulation.islands):
                break
        simulation.agree()
        num_parameters = sum(p.numel() for p in simulation.islands[0].parameters.values())
        data_parallel = 2 * (ISLANDS - 1) / ISLANDS * 4 * num_parameters * self.steps
        sent = max(simulation.hub.sent_bytes.values(), default=0)
        return {
            "id": self.id,
            **dataclasses.asdict(self),
            "valid": loss(simulation, sources["valid"].train, VALID),
            "test": loss(simulation, sources["test"].train, TEST),
            "fewer_bytes": data_parallel / sent if plan else 1.0,
            "plan_hash": convoy.hash if plan else "",
            "num_parameters": num_parameters,
            "curve": curve,
            "seconds": round(time.time() - begin),
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
        }

    def _prepared(self, train: Any) -> Any:
        from konvoi.job import models, objectives, optimizers, schedules
        from konvoi.job.job import Job, prepare

        rest = optimizers.adamw(lr=self.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
        job = Job(
            model=models.gpt(depth=DEPTH, width=WIDTH).fit(train.spec),
            data=train.train,
            objective=objectives.next_token(),
            optimizer=optimizers.muon(lr=self.lr, momentum=self.momentum, weight_decay=0.0, adamw=rest),
            schedule=schedules.cosine(warmup=0.05, floor=0.1),
            global_batch=BATCH,
            steps=self.steps,
            seed=self.seed,
        )
        return prepare(job)


def splits() -> dict[str, Any]:
    """The standard library's files: nine tenths to train on, and half of the rest for either held-out figure."""
    from konvoi.job import data
    from konvoi.job.data.corpus import find, hold_out, name_hash

    train, held_out = hold_out(find("stdlib"), 0.1)
    held_out.sort(key=lambda piece: name_hash(piece.name))
    files = {"train": train, "valid": held_out[0::2], "test": held_out[1::2]}
    return {
        name: data.text([piece.path for piece in pieces], seq_len=SEQ_LEN, holdout=0.0).prepare()
        for name, pieces in files.items()
    }


def loss(simulation: Any, source: Any, num_samples: int) -> float:
    """Of the first island, over the first samples."""
    from konvoi.job.data.loader import eval_batches

    one, objective = simulation.islands[0], simulation.prepared.job.objective
    batches = eval_batches(source, batch=64, worker=0, num_workers=1)
    some = (micro for _, micro in zip(range(num_samples // 64), batches, strict=False))
    sums = one.island.sums(one.parts, some, lambda model, batch: dict(zip("lw", objective(model, batch), strict=True)))
    return float(sums["l"] / sums["w"])
