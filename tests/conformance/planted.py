"""Bugs on purpose: each is patched in inside the worker for one row, which must then fail."""

import dataclasses
from unittest.mock import patch

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from konvoi.island import LiveIsland
from konvoi.job import vocabulary_parallel
from konvoi.learner import Learner
from konvoi.plan.split import (
    fully_shard,
    local_attention,
    materialize,
    parts,
    pipeline,
    replicate,
    same_machine,
    stages,
    tensor,
)
from konvoi.proof import trace


def small_buckets():
    """Several buckets for a model of a few thousand numbers."""
    return patch.multiple(replicate, BUCKET_BYTES=4000, FIRST_BUCKET_BYTES=500)


def apart():
    """As if each worker had a machine of its own: gradients are sent, and not added up in memory."""
    return patch.object(same_machine, "in_common", lambda shapes, group: None)


def nothing_apart(place, payload):
    """No bug, and messages."""
    with small_buckets(), apart():
        return trace(place, payload)


def dropped_sum_in_memory(place, payload):
    """The second bucket stays what this worker alone computed."""

    def add_up(self):
        original(dataclasses.replace(self, tensors=[own[:1] + own[2:] for own in self.tensors]))

    original = same_machine.Common.add_up
    with small_buckets(), patch.object(same_machine.Common, "add_up", add_up):
        return trace(place, payload)


def nothing(place, payload):
    """No bug: what shows that a row fails for the bug and not for its disguise."""
    with small_buckets():
        return trace(place, payload)


def dropped_all_reduce(place, payload):
    """The second bucket stays what this worker alone computed."""

    def send(self, bucket):
        if bucket is not self.buckets[1]:
            original(self, bucket)

    original = replicate.Buckets._send
    with small_buckets(), apart(), patch.object(replicate.Buckets, "_send", send):
        return trace(place, payload)


def mean_of_means(place, payload):
    """Each worker divides by its own weight, and the means are averaged."""
    found, plan = payload

    def objective(model, batch):
        loss_sum, weight = found.job.objective(model, batch)
        return loss_sum / weight.clamp(min=1), torch.ones_like(weight)

    job = dataclasses.replace(found.job, objective=objective)
    return trace(place, (dataclasses.replace(found, job=job), plan))


def clip_per_shard(place, payload):
    """The norm of this worker's shard, or of its stages, is taken for the model's."""

    def split(self, *args, **kwargs):
        return dataclasses.replace(original(self, *args, **kwargs), norm_groups=())

    original = LiveIsland.split
    with patch.object(LiveIsland, "split", split):
        return trace(place, payload)


def tie_broken(place, payload):
    """What was one tensor under two names is two."""
    with patch.object(materialize, "retie", lambda module, ties: None):
        return trace(place, payload)


def tied_weight_updated_twice(place, payload):
    """Once under each of its names."""

    def step(self):
        owners = [self.parameters[tie.owner] for tie in self.parts.ties]
        before = [owner.detach().clone() for owner in owners]
        original(self)
        with torch.no_grad():
            for owner, old in zip(owners, before, strict=True):
                owner.add_(owner - old)

    original = Learner.step
    with patch.object(Learner, "step", step):
        return trace(place, payload)


def lost_micro_batch(place, payload):
    """The step's last micro-batch counts in loss and weight, but its gradient is thrown away."""

    def run(module, objective, micro, scale, announce, before_last=lambda: None):
        kept = []

        def once(sums):
            announce(sums)
            kept.extend(None if p.grad is None else p.grad.clone() for p in module.parameters())

        original(module, objective, micro, scale, once, before_last)
        for parameter, grad in zip(module.parameters(), kept, strict=True):
            if grad is not None:
                parameter.grad.copy_(grad)

    original = parts.run_micro_batches
    with patch.object(parts, "run_micro_batches", run):
        return trace(place, payload)


def synchronised_too_early(place, payload):
    """Gradients are sent during the first micro-batch's backward pass, so that later ones stay local."""

    def run(module, objective, micro, scale, announce, before_last=lambda: None):
        before_last()
        early = micro[:1]
        original(module, objective, early, scale, found.append)
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(False)
        original(module, objective, micro[1:], scale, lambda sums: announce(sums + found[-1]))

    found = []
    original = parts.run_micro_batches
    with (
        small_buckets(),
        apart(),
        patch.object(replicate, "run_micro_batches", run),
        patch.object(fully_shard, "run_micro_batches", run),
    ):
        return trace(place, payload)


def divided_by_world_size(place, payload):
    """FSDP2's own division by the number of workers is left on."""
    with patch.object(FSDPModule, "set_gradient_divide_factor", lambda self, factor: None):
        return trace(place, payload)


def scale_not_undone(place, payload):
    """The gradient keeps the factor that the loss carried."""

    def forward_backward(self, *args, **kwargs):
        gradient = original(self, *args, **kwargs)
        gradient.factor *= gradient.scale
        return gradient

    original = LiveIsland.forward_backward
    with patch.object(LiveIsland, "forward_backward", forward_backward):
        return trace(place, payload)


def weights_differ_between_workers(place, payload):
    """Each worker begins with its own weights."""
    found, plan = payload
    job = dataclasses.replace(found.job, seed=found.job.seed + place.worker)
    with patch("konvoi.proof.steps.Batches", _with_seed(found.job.seed)):
        return trace(place, (dataclasses.replace(found, job=job), plan))


def samples_read_twice(place, payload):
    """Every worker reads the first worker's part."""
    found, plan = payload
    from konvoi.job.data.loader import Batches

    with patch("konvoi.proof.steps.Batches", lambda data, **fields: Batches(data, **fields | {"worker": 0})):
        return trace(place, (found, plan))


def wrong_micro_batch(place, payload):
    """The last stage takes the labels of the micro-batch before."""

    def forward(self, *state, number):
        return original(self, *state, number=(number - 1).clamp(min=0) if self.is_last else number)

    original = stages.Stage.forward
    with patch.object(stages.Stage, "forward", forward):
        return trace(place, payload)


def copys_gradient_dropped(place, payload):
    """What the last stage does with a tied weight does not reach its owner."""
    with patch.object(pipeline.Copies, "add_gradients", lambda self: None):
        return trace(place, payload)


def copy_out_of_date(place, payload):
    """The last stage keeps a tied weight as it was."""
    with patch.object(pipeline.Copies, "refresh", lambda self: None):
        return trace(place, payload)


def copy_counted_twice(place, payload):
    """A tied weight's gradient goes into the norm on both of its stages, and is trained on both."""

    def init(self, *args):
        original(self, *args)
        self.names.clear()

    original = pipeline.Copies.__init__
    with patch.object(pipeline.Copies, "__init__", init):
        return trace(place, payload)


def replicated_counted_twice(place, payload):
    """What each worker of a tp axis holds whole goes into the norm as often."""

    def split(self, *args, **kwargs):
        return dataclasses.replace(original(self, *args, **kwargs), counted=None)

    original = LiveIsland.split
    with patch.object(LiveIsland, "split", split):
        return trace(place, payload)


def summand_taken_for_the_sum(place, payload):
    """A gradient of which each worker has a summand is not added up."""

    def take(gradient, placements):
        mesh, shape, stride = gradient.device_mesh, gradient.shape, gradient.stride()
        if gradient.placements != placements and all(placement.is_replicate() for placement in placements):
            return DTensor.from_local(gradient.to_local(), mesh, placements, shape=shape, stride=stride)
        return original(gradient, placements)

    original = tensor._as_laid_out
    with patch.object(tensor, "_as_laid_out", take):
        return trace(place, payload)


def keys_of_other_heads(place, payload):
    """Every worker's queries read the keys and values of the first worker's."""

    def attend(mesh, worker, num_workers, q, k, v, **fields):
        k, v = (torch.cat([t[:, :1], t[:, :1]], dim=1) if t.shape[1] == 2 else t for t in (k, v))
        return original(mesh, worker, num_workers, q, k, v, **fields)

    original = local_attention._attend
    with patch.object(local_attention, "_attend", attend):
        return trace(place, payload)


def target_in_every_part(place, payload):
    """Every worker takes its part of the vocabulary for the first."""

    def forward(ctx, logits, targets, first, group, ignore_index):
        return original(ctx, logits, targets, 0, group, ignore_index)

    original = vocabulary_parallel._CrossEntropy.forward
    with patch.object(vocabulary_parallel._CrossEntropy, "forward", staticmethod(forward)):
        return trace(place, payload)


def tp_reads_different_samples(place, payload):
    """Workers of a tp axis read different parts of the batch, as those of dp do."""

    def init(self, *args):
        original(self, *args)
        self.part = self.place.worker % self.plan.num_parts

    original = LiveIsland.__init__
    with patch.object(LiveIsland, "__init__", init):
        return trace(place, payload)


def only_the_first_tensor_travels(place, payload):
    """What a stage sends is what flows through every block, and not what an encoder has left for all of a decoder's."""

    def calls_of(*args):
        return dataclasses.replace(original(*args), flowing={})

    original = stages.calls_of
    with patch.object(stages, "calls_of", calls_of):
        return trace(place, payload)


def experts_summands_not_added(place, payload):
    """What each worker's parts of the experts give is taken for the whole."""

    def run_locally(module, mesh, *, is_partial):
        original(module, mesh, is_partial=False)

    original = tensor.run_locally
    with patch.object(tensor, "run_locally", run_locally):
        return trace(place, payload)


def _with_seed(seed):
    from konvoi.job.data.loader import Batches

    return lambda data, **fields: Batches(data, **fields | {"seed": seed})
