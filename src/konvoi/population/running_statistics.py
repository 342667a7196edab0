"""Statistics that training keeps beside a model's weights, which no federation agrees on."""

from __future__ import annotations

import torch

from konvoi import devices
from konvoi.errors import JobError
from konvoi.island import LiveIsland
from konvoi.job.data.positions import Ints
from konvoi.plan.split.parts import Parts
from konvoi.population.reading import Read
from konvoi.values import MicroBatch

SAMPLES = 2  # of one alone there are no statistics


def refuse_running_statistics(island: LiveIsland, parts: Parts, read: Read, samples: Ints) -> None:
    """Seen in a forward pass of training, as any module may keep some. Constants are none.

    Raises: JobError.
    """
    before = {name: buffer.clone() for name, buffer in parts.named_buffers()}
    if not before:
        return
    micro = island.to_device(MicroBatch(read(samples[:SAMPLES], 0)))
    for module in parts.modules:
        module.train()
    with devices.seeded(0), torch.no_grad(), island.computing():
        parts.run(parts.objective, micro.batch)
    changed = [name for name, buffer in parts.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise JobError(
            "training changes what this model keeps beside its weights, and a federation agrees on weights alone",
            found=", ".join(changed[:3]) + ", ..." * (len(changed) > 3),
            hint="nn.GroupNorm, or batch norm with track_running_stats=False",
        )
