"""What test_mirror sends to the pool's workers."""

import torch

from konvoi.island import enter
from konvoi.job.data.collate import collate
from konvoi.mirror import Mirror
from konvoi.proof.steps import _held_out, _whole, let_go


def there_and_back(place, payload):
    """The first worker's tensors as they were brought; the workers' own, whole, after others were taken back; and the
    held-out loss with those."""
    found, plan = payload
    job = found.job
    with enter(place, plan) as island:
        example = (job.collate or collate)([job.data[0]])
        parts = island.split(job.model, job.objective, seed=job.seed, freeze=job.freeze, example=example)
        mirror = Mirror(island, parts)
        _held_out(island, parts, found)  # fsdp keeps some weights gathered behind it
        brought = {name: tensor.double().numpy().copy() for name, tensor in mirror.tensors.items()}
        for name, parameter in mirror.tensors.items():
            parameter.add_(torch.linspace(0, len(name) / 100, parameter.numel()).view_as(parameter))
        mirror.take_back()
        own = {name: _whole(p.detach()) for name, p in parts.named_parameters() if p.requires_grad}
        result = list(brought.items()), island.of_all_stages(own), _held_out(island, parts, found)
    let_go()
    return result
